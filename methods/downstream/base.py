"""Task: a downstream task is a method that learns from labels and is judged on held-out samples."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import add
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from data.labels import Labels
from data.views.batch import Batch
from methods.base import Method, ParamGroup, Progress
from methods.encoders import Encoder

Evidence = dict[str, np.ndarray]
"""What was counted or predicted of each unit that is scored (a volume, a slice, a picture), by its id."""
Join = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Makes one of what two parts of evidence say of the same unit."""
Cases = dict[str, list[str] | list[list[dict[str, Any]]] | np.ndarray]
"""Columns of equal length: text, truth values, numbers (NaN where they are not defined), or each case's boxes."""


@dataclass(frozen=True)
class Judgement:
    """The judgement of a batch: evidence, and for pictures (index in the batch, truth, prediction) of each sample."""

    evidence: Evidence
    seen: list[tuple[int, Tensor, Tensor]]


@dataclass(frozen=True)
class TaskScores:
    """Metrics by name, ``score`` among them (higher is better), and remarks on them.

    ``cases`` holds what the metrics are means of: the column ``case`` has the ids of the evidence's units.
    """

    metrics: dict[str, float]
    remarks: tuple[str, ...] = ()
    cases: Cases = field(default_factory=dict)


def merge(parts: Iterable[Evidence], join: Join = add) -> Evidence:
    """Join evidence by unit, sorted by unit; a unit's evidence may lie in several parts. Counts add up."""
    merged: Evidence = {}
    for part in parts:
        for unit, own in part.items():
            merged[unit] = join(merged[unit], own) if unit in merged else own
    return dict(sorted(merged.items()))


class Task(Method):
    """A network that contains an encoder; built from a config, the encoder, and the names of the label values.

    needs          the labels that it learns from
    class_names    names of the classes that the network distinguishes
    """

    needs: ClassVar[Labels]  # pyright: ignore[reportIncompatibleVariableOverride]  # nothing assigns it
    class_names: tuple[str, ...]
    network: nn.Module
    progress: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        # Hidden from torch's registry: the network registers the modules already.
        object.__setattr__(self, "encoder", encoder)
        self._num_held: int | None = 0
        self._held_until = 0.0
        # As precise as the loop's own progress: if rounded, modules and gradients would thaw at different steps.
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))

    @abstractmethod
    def judge(self, batch: Batch) -> Judgement:
        """Predict a batch of whole samples, without gradients."""

    @abstractmethod
    def scores(self, evidence: Evidence) -> TaskScores:
        """Score the evidence of all batches and ranks together."""

    @staticmethod
    def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return what two parts of evidence say together of one unit; by default they are counts, which add up."""
        return first + second

    def check_volumes(self, sliced: bool) -> None:
        """Raise ValueError where the task needs whole volumes and some samples are slices of them."""

    def confusions(self, evidence: Evidence) -> Int[np.ndarray, "true predicted"] | None:
        """Count samples by true and predicted class; None where such counts have no meaning."""
        return None

    def card(self) -> dict[str, Any]:
        """Return what a user of the network must know of its outputs, as JSON values."""
        return {"class_names": list(self.class_names)}

    def freeze(self, num_levels: int | None, until: float = 1.0) -> None:
        """Freeze the encoder's first levels (None: all of it) until some progress in [0, 1].

        Meanwhile their normalisation and dropout work as in evaluation. Raises ValueError where the encoder has fewer
        levels.
        """
        levels = self.encoder.levels()
        if num_levels is not None and num_levels > len(levels):
            raise ValueError(
                f"downstream.frozen_levels {num_levels}: the encoder has {len(levels)} levels; give at most as many, "
                "or `all`"
            )
        self._num_held = num_levels
        self._held_until = until
        if until >= 1:
            for module in self._held():
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Task":
        """Set the training mode of all modules that are not frozen."""
        super().train(mode)
        if float(self.progress) < self._held_until:
            for module in self._held():
                module.eval()
        return self

    def trained_in_chunks(self) -> Iterator[nn.Module]:
        """Yield the parts of what images pass in chunks, without the levels that stay frozen to the end."""
        until_the_end = self._held() if self._held_until >= 1 else []
        held = {id(part) for module in until_the_end for part in module.modules()}
        return (part for part in self.chunked().modules() if id(part) not in held)

    def _held(self) -> list[nn.Module]:
        """Return the frozen levels as they are now: modules inside them may have been replaced."""
        return [self.encoder] if self._num_held is None else self.encoder.levels()[: self._num_held]

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameters; temporarily frozen ones form groups of their own, which start later."""
        held = {id(p) for module in self._held() for p in module.parameters()}
        groups = []
        for group in super().param_groups():
            for is_held, start in ((False, 0.0), (True, self._held_until)):
                params = [p for p in group.params if (id(p) in held) == is_held]
                if params:
                    groups.append(ParamGroup(params, group.decay, group.schedule, start))
        return groups

    def after_step(self, progress: Progress) -> None:
        """Record the progress: it is saved with the weights, and a restart resumes from it."""
        self.progress.fill_(progress.share)
