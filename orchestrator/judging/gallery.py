"""Gallery: pictures of a validation: the same few samples each time, with truth and prediction."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.labels import CLASSES, LABEL_MAP, Labels
from data.views.batch import Batch
from orchestrator.judging.pictures import JudgedImage, MaskedSlice, draw_judged, draw_masks

PICTURED_VOLUMES = 4
PICTURED_PER_CLASS, PICTURED_SAMPLES = 3, 16


@dataclass
class MaskGallery:
    """Keeps, for every volume, the slice with the most labels (then the most labelled voxels)."""

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
        """Draw a few volumes, always the same ones; None if there is none."""
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


@dataclass
class ClassGallery:
    """Keeps the few samples of each class whose ids come first (a sample's first class counts)."""

    kept: dict[int, dict[str, JudgedImage]] = field(default_factory=dict)

    def offer(
        self, batch: Batch, index: int, true: Bool[Tensor, " k"], predicted: Float[Tensor, "told_and_probable k"]
    ) -> None:
        """Look at one judged sample: its true classes, its predicted classes, and their probabilities."""
        truth = tuple(true.nonzero().flatten().tolist())
        alike = self.kept.setdefault(truth[0] if truth else -1, {})
        name = batch.sample_ids[index]
        if len(alike) == PICTURED_PER_CLASS and name > max(alike):
            return
        alike[name] = _judged_image(batch, index, truth, predicted)
        if len(alike) > PICTURED_PER_CLASS:
            del alike[max(alike)]

    def draw(self, class_names: tuple[str, ...]) -> bytes | None:
        """Draw the chosen samples; None if there are none."""
        chosen = self.chosen()
        return draw_judged(chosen, class_names) if chosen else None

    def chosen(self) -> list[JudgedImage]:
        """Return one sample of each class, then another of each, as many as there is room for."""
        places = [
            (place, number, name) for number in self.kept for place, name in enumerate(sorted(self.kept[number]))
        ]
        return [self.kept[number][name] for _, number, name in sorted(places)[:PICTURED_SAMPLES]]


def _judged_image(
    batch: Batch, index: int, truth: tuple[int, ...], predicted: Float[Tensor, "told_and_probable k"]
) -> JudgedImage:
    """Return a picture, or the middle axial plane of a volume."""
    inside = (slice(None), *(slice(0, extent) for extent in batch.extents[index].tolist()))
    voxels = batch.voxels[index][inside]
    told, probabilities = predicted.cpu()
    rows_mm, columns_mm = batch.spacing_mm[index, -2:].tolist()
    return JudgedImage(
        title=batch.sample_ids[index],
        image=(voxels if batch.spatial_dims == 2 else voxels[:, voxels.shape[1] // 2]).float().cpu().numpy(),
        truth=truth,
        predicted=tuple(told.nonzero().flatten().tolist()),
        probabilities=probabilities.numpy(),
        spacing_mm=(rows_mm, columns_mm),
        upright=batch.spatial_dims == 2 and batch.volumes[index] == batch.sample_ids[index],
    )


Gallery = MaskGallery | ClassGallery
"""Looks at every judged sample, and draws some."""
GALLERIES: dict[Labels, type[Gallery]] = {LABEL_MAP: MaskGallery, CLASSES: ClassGallery}
