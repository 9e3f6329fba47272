"""Validation: a segmentation's scores on held-out samples, taken on all ranks together while it trains."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from data.batch import Batch
from data.collate import collate
from data.shardreader import ShardReader
from data.shardset import ShardSet
from methods.base import Method
from methods.downstream.metrics import Counts, Scores, merge_counts, score
from methods.downstream.segmentation import Segmentation
from orchestrator.checkpoint import State
from orchestrator.loop import World
from orchestrator.report import MaskedSlice, draw_masks

SLICES_PER_BATCH = 32
PICTURED_VOLUMES = 4
ROUNDING = 1e-9  # 42 steps of 4.2 to an epoch are ten epochs, not a little less


@dataclass(frozen=True)
class Rhythm:
    """When to validate and when to give up, in epochs of ``steps_per_epoch`` (not always a whole number).

    From epoch ``dense_from`` on, every epoch is validated.
    """

    steps_per_epoch: float
    every_epochs: float
    dense_from: float | None = None
    patience_epochs: float | None = None

    def due(self, step: int) -> bool:
        """Tell whether ``step`` is the first to complete another interval of epochs."""
        epoch, before = (s / self.steps_per_epoch + ROUNDING for s in (step, step - 1))
        dense = self.dense_from is not None and epoch >= self.dense_from
        every = min(1.0, self.every_epochs) if dense else self.every_epochs
        return epoch // every > before // every

    def exhausted(self, state: State) -> bool:
        """Tell whether the score has not improved for the patience."""
        if self.patience_epochs is None:
            return False
        return (state.step - state.best_step) / self.steps_per_epoch >= self.patience_epochs


@dataclass
class Validation:
    """Scores a segmentation on rows of shards; every rank predicts its part of them.

    ``picture`` is what the newest validation looked like: masks over slices of rank 0's volumes, as PNG.
    """

    shards: ShardSet
    row_ids: Int[np.ndarray, " n"]
    rhythm: Rhythm
    pictures: bool = True
    picture: bytes | None = field(default=None, init=False)
    remarks: tuple[str, ...] = field(default=(), init=False)

    def due(self, step: int) -> bool:
        return self.rhythm.due(step)

    def exhausted(self, state: State) -> bool:
        return self.rhythm.exhausted(state)

    def run(self, method: Method, world: World) -> dict[str, float]:
        """Return ``score`` (the mean Dice), the mean Dice and IoU, and both for every label; equal on all ranks."""
        assert isinstance(method, Segmentation)
        gallery = Gallery() if self.pictures and world.rank == 0 else None
        parts: list[Counts] = []
        for batch in self._batches(world):
            for index, true, predicted in method.compare(batch):
                parts.append(method.tally(batch, index, true, predicted))
                if gallery is not None:
                    gallery.offer(batch, index, true, predicted)
        counts = _from_all_ranks(merge_counts(parts), world)
        scores = score(np.stack(list(counts.values())), method.class_names, method.config.convention)
        self.remarks = scores.remarks
        if gallery is not None:
            self.picture = gallery.draw(method.class_names)
        return metrics_of(scores)

    def _batches(self, world: World) -> Iterator[Batch]:
        reader = ShardReader(self.shards, with_labels=True)
        own = np.array_split(self.row_ids, world.size)[world.rank]
        size = SLICES_PER_BATCH if self.shards.spatial_dims == 2 else 1
        for start in range(0, len(own), size):
            table = reader.read(own[start : start + size])
            zeros = pa.array(np.zeros(table.num_rows, dtype=np.int64))
            yield collate(table.append_column("number", zeros).append_column("epoch", zeros)).to(world.device)


@dataclass
class Gallery:
    """Keeps, of every volume, the slice with the most labels (then the most labelled voxels)."""

    best: dict[str, tuple[tuple[int, int], MaskedSlice]] = field(default_factory=dict)

    def offer(self, batch: Batch, index: int, true: Int[Tensor, "*s"], predicted: Int[Tensor, "*s"]) -> None:
        """Look at one compared sample; a volume offers its richest axial plane."""
        planes = true.reshape(-1, *true.shape[-2:])
        plane = max(range(len(planes)), key=lambda number: _richness(planes[number]))
        mask = planes[plane]
        richness = _richness(mask)
        volume = batch.volumes[index]
        if volume in self.best and self.best[volume][0] >= richness:
            return
        title = f"{volume}, slice {plane}" if true.ndim == 3 else volume
        self.best[volume] = (richness, _masked_slice(batch, index, plane, title, mask, predicted))

    def draw(self, class_names: tuple[str, ...]) -> bytes | None:
        """Draw a few volumes, always the same ones; None where there is none."""
        chosen = [self.best[volume][1] for volume in sorted(self.best)[:PICTURED_VOLUMES]]
        return draw_masks(chosen, class_names) if chosen else None


def _richness(mask: Int[Tensor, "h w"]) -> tuple[int, int]:
    """Return how many labels a slice shows, and how many labelled voxels."""
    labelled = mask[mask > 0]
    return len(torch.unique(labelled)), len(labelled)


def metrics_of(scores: Scores) -> dict[str, float]:
    """Return scores as the metrics of a step; MLflow draws names with one prefix together.

    Characters of label names that MLflow refuses become underscores.
    """
    named = {name: re.sub(r"[^\w. -]", "_", name) for name in scores.dice}
    return {
        "score": scores.mean_dice,
        "dice_mean": scores.mean_dice,
        "iou_mean": scores.mean_iou,
        **{f"dice/{named[name]}": value for name, value in scores.dice.items()},
        **{f"iou/{named[name]}": value for name, value in scores.iou.items()},
    }


def _masked_slice(
    batch: Batch, index: int, plane: int, title: str, mask: Int[Tensor, "h w"], predicted: Int[Tensor, "*s"]
) -> MaskedSlice:
    height, width = mask.shape
    channel = batch.voxels[index, 0].reshape(-1, *batch.voxels.shape[-2:])[plane, :height, :width]
    rows_mm, columns_mm = batch.spacing_mm[index, -2:].tolist()
    return MaskedSlice(
        title=title,
        image=channel.float().cpu().numpy(),
        truth=mask.cpu().numpy(),
        prediction=predicted.reshape(-1, height, width)[plane].cpu().numpy(),
        spacing_mm=(rows_mm, columns_mm),
        upright=batch.spatial_dims == 2 and batch.volumes[index] == batch.sample_ids[index],
    )


def _from_all_ranks(counts: Counts, world: World) -> Counts:
    """Add up what the ranks have counted."""
    if world.size == 1:
        return counts
    gathered: list[Counts] = [{} for _ in range(world.size)]
    dist.all_gather_object(gathered, counts)
    return merge_counts(gathered)
