"""Scratch: no pretraining, the baseline that every table needs.

Paper:     any; a pretraining that does not beat it was not worth it.
Shapes:    none: it receives no batch.
"""

from typing import Literal

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders.base import Encoder


class Scratch(Method):
    """Leaves the encoder at its random initial weights; the loop is not entered."""

    class Config(FrozenConfig):
        name: Literal["scratch"] = "scratch"

    trains = False

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Raise ValueError: there are no views."""
        raise ValueError("scratch: it trains nothing and takes no views; check Method.trains before feeding a method")

    def loss(self, views: Views) -> Losses:
        """Raise ValueError: there is no loss."""
        raise ValueError("scratch: it trains nothing and has no loss; check Method.trains before training a method")
