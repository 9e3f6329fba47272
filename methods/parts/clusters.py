"""Clusters: what embeddings are compared with, and the loss of embeddings of one sample that disagree.

Shapes:    B samples, A views that tell a sample's cluster, V views, d dimensions.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int64
from torch import Tensor

from methods.base import Facts, Losses, ParamGroup, Progress
from methods.parts.shares import ShareHolder


class Clusters(ShareHolder, ABC):
    """The clusters of a method's embeddings, which ask of a training what a method asks: see ``Method``.

    ``place`` is where their config lies in an experiment.
    """

    def __init__(self, facts: Facts, place: str = "method") -> None:
        super().__init__()
        self.facts, self.place = facts, place

    @abstractmethod
    def loss(self, z: Float[Tensor, "v b d"], rows: Int64[Tensor, " b"] | None) -> Losses:
        """Compare embeddings of length 1; the first A views tell the clusters."""

    @abstractmethod
    def doubts(self) -> tuple[str, ...]:
        """Say, with numbers, why these samples or batches will hardly fill the clusters."""

    @abstractmethod
    def param_groups(self) -> list[ParamGroup]:
        """Return the prototypes that learn."""

    @abstractmethod
    def after_step(self, progress: Progress) -> None:
        """Remember what the step has seen."""

    @abstractmethod
    def after_epoch(self, progress: Progress) -> None:
        """Update what needs all samples."""
