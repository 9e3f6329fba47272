"""Validation: a downstream task's scores on held-out samples, taken on all ranks together while it trains."""

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch.distributed as dist
from jaxtyping import Int

from data.exact import exact
from data.shards.index import ShardSet
from methods.base import Method
from methods.downstream.base import Cases, Evidence, Task, merge
from orchestrator.judging.cases import with_patients
from orchestrator.judging.gallery import GALLERIES, Gallery
from orchestrator.training.checkpoint import State
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World

PREDICTIONS, CONFUSIONS = "predictions.png", "confusions.png"


@dataclass(frozen=True)
class Rhythm:
    """When to validate and when to give up, in epochs of ``steps_per_epoch`` (not always a whole number).

    From epoch ``dense_from`` on, every epoch is validated.
    """

    steps_per_epoch: Fraction
    every_epochs: float
    dense_from: float | None = None
    patience_epochs: float | None = None

    def due(self, step: int) -> bool:
        """Tell whether ``step`` is the first to complete another interval of epochs."""
        epoch, before = (s / self.steps_per_epoch for s in (step, step - 1))
        dense = self.dense_from is not None and epoch >= exact(self.dense_from)
        every = exact(min(1.0, self.every_epochs) if dense else self.every_epochs)
        return epoch // every > before // every

    def times(self, steps: int) -> int:
        """Return how many steps are due up to the last; where every epoch is validated, give or take one."""
        epochs, every = steps / self.steps_per_epoch, exact(self.every_epochs)
        sparse = epochs if self.dense_from is None else min(epochs, exact(self.dense_from))
        return int(sparse // every + (epochs - sparse) // exact(min(1.0, self.every_epochs)))

    def exhausted(self, state: State) -> bool:
        """Tell whether the score has not improved for ``patience_epochs``."""
        if self.patience_epochs is None:
            return False
        return (state.step - state.best_step) / self.steps_per_epoch >= exact(self.patience_epochs)


@dataclass
class Validation:
    """Scores a task on rows of shards; every rank predicts its part of them.

    ``drawn`` holds the newest validation's pictures from rank 0, as PNGs by file name; ``cases`` holds what its
    metrics are means of, equal on all ranks.
    """

    shards: ShardSet
    row_ids: Int[np.ndarray, " n"]
    rhythm: Rhythm
    pictures: bool = True
    drawn: dict[str, bytes] = field(default_factory=dict, init=False)
    remarks: tuple[str, ...] = field(default=(), init=False)
    cases: Cases = field(default_factory=dict, init=False)

    def due(self, step: int) -> bool:
        return self.rhythm.due(step)

    def exhausted(self, state: State) -> bool:
        return self.rhythm.exhausted(state)

    def run(self, method: Method, world: World) -> dict[str, float]:
        """Return the task's metrics, ``score`` among them; equal on all ranks."""
        assert isinstance(method, Task)
        gallery = GALLERIES[method.needs]() if self.pictures and world.rank == 0 else None
        evidence = evidence_of(method, self.shards, self.row_ids, world, gallery)
        scores = method.scores(evidence)
        self.remarks, self.cases = scores.remarks, with_patients(scores.cases, self.shards, self.row_ids)
        if gallery is not None:
            self.drawn = _draw(gallery, method, evidence)
        return scores.metrics


def evidence_of(
    task: Task, shards: ShardSet, row_ids: Int[np.ndarray, " n"], world: World, gallery: Gallery | None = None
) -> Evidence:
    """Return the evidence of rows of shards, of which every rank judges its part; a gallery is shown each of them."""
    parts: list[Evidence] = []
    for batch in batches_of(shards, row_ids, world, task.needs):
        judged = task.judge(batch)
        parts.append(judged.evidence)
        if gallery is not None:
            for index, true, predicted in judged.seen:
                gallery.offer(batch, index, true, predicted)
    return _from_all_ranks(merge(parts, task.joined), task, world)


def _draw(gallery: Gallery, method: Task, evidence: Evidence) -> dict[str, bytes]:
    """Draw some predictions, and the confusion matrix if there is one."""
    from orchestrator.judging.pictures import draw_confusions

    confusions = method.confusions(evidence)
    drawn = {
        PREDICTIONS: gallery.draw(method.class_names),
        CONFUSIONS: None if confusions is None else draw_confusions(confusions, method.class_names),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def _from_all_ranks(evidence: Evidence, task: Task, world: World) -> Evidence:
    """Join what the ranks have gathered, in the order of the ranks."""
    if world.size == 1:
        return evidence
    gathered: list[Evidence] = [{} for _ in range(world.size)]
    dist.all_gather_object(gathered, evidence)
    return merge(gathered, task.joined)
