"""Gallery: what of a validation is pictured: the same few samples each time, with truth and prediction."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from data.batch import Batch
from orchestrator.report import MaskedSlice, draw_masks

PICTURED_VOLUMES = 4


class Gallery(Protocol):
    """Is offered every judged sample, and draws some."""

    def offer(self, batch: Batch, index: int, true: Tensor, predicted: Tensor) -> None: ...

    def draw(self, class_names: tuple[str, ...]) -> bytes | None: ...


@dataclass
class MaskGallery:
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


GALLERIES: dict[str, type[Gallery]] = {"label_map": MaskGallery}
