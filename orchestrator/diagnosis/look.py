"""Second look: a training's first batch, drawn again on the CPU, and what its network makes of it."""

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from data.views.batch import Batch
from methods.base import Method, Views
from methods.downstream import Task
from methods.downstream.classification import Classifier
from methods.parts.flat_map import flat_features, mean_features
from orchestrator.diagnosis.record import RebuiltTraining
from orchestrator.feed import stream

MOST_SAMPLES = {2: 16, 3: 4}  # of a batch that is drawn again: volumes take a CPU seconds each


@dataclass(frozen=True)
class SecondLook:
    """A batch as the training drew it first, and its views; images and gradients on the CPU."""

    rebuilt: RebuiltTraining
    batch: Batch
    views: Views

    @classmethod
    def at(cls, rebuilt: RebuiltTraining) -> "SecondLook":
        """Draw the first samples of a training, and their views, with its seed."""
        dims = rebuilt.shards[0][0].spatial_dims
        number = max(2, min(rebuilt.plan.stream.batch_size, MOST_SAMPLES[dims]))
        batch = stream.first_samples(rebuilt.feed, number)
        with torch.no_grad():
            views = rebuilt.begun.drawn(batch, batch.rng(rebuilt.plan.stream.seed))
        return cls(rebuilt, batch, views)

    @property
    def newest(self) -> Method:
        """The network as it was last saved, or as it began."""
        return self.rebuilt.trained or self.rebuilt.begun

    @property
    def averages(self) -> bool:
        """Whether what follows the encoder sees only the mean over space of its last map."""
        begun = self.rebuilt.begun
        network = begun.network if isinstance(begun, Task) else None
        return begun.averages or (isinstance(network, Classifier) and network.pooled)

    @cached_property
    def begun_features(self) -> Float[Tensor, "n d"]:
        """The encoder's last map of the first views before training; averaged where the method averages it."""
        return self._features(self.rebuilt.begun)

    @cached_property
    def features(self) -> Float[Tensor, "n d"]:
        """The same from the newest checkpoint."""
        return self._features(self.newest)

    def _features(self, method: Method) -> Float[Tensor, "n d"]:
        with torch.no_grad(), _training(method, False):
            features = mean_features if self.averages else flat_features
            return features(method.encoder, self.views.images[0])

    def gradient(self, precision: str) -> Float[Tensor, " p"]:
        """Return the gradient of all parameters of a copy of the newest network, computed as ``precision`` says."""
        method = deepcopy(self.newest).train()
        torch.manual_seed(0)  # of dropout and drop-path
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = method.loss(self.views).total
        loss.backward()
        grads = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
        return torch.cat(grads) if grads else torch.zeros(1)


@contextmanager
def _training(method: Method, mode: bool) -> Generator[None]:
    before = method.training
    method.train(mode)
    try:
        yield
    finally:
        method.train(before)
