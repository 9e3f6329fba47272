"""Gallery: pictures of a validation: the same few samples each time, with truth and prediction."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from data.labels import BOXES, CLASSES, LABEL_MAP, Labels
from data.views.batch import Batch
from orchestrator.judging.images import BoxedImage, JudgedImage, MaskedSlice

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
        from orchestrator.judging.pictures import draw_masks

        chosen = self.chosen()
        return draw_masks(chosen, class_names) if chosen else None

    def chosen(self) -> list[MaskedSlice]:
        """Return a slice of each of the volumes whose ids come first."""
        return [self.best[volume][1] for volume in sorted(self.best)[:PICTURED_VOLUMES]]


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


Image = TypeVar("Image", JudgedImage, BoxedImage)


@dataclass
class FewOfEachClass(Generic[Image]):
    """Keeps the few samples of each class whose ids come first (a sample's first class counts)."""

    kept: dict[int, dict[str, Image]] = field(default_factory=dict)

    def wants(self, first_class: int, name: str) -> bool:
        """Tell whether a sample comes before another that is kept, or there is room."""
        alike = self.kept.get(first_class, {})
        return len(alike) < PICTURED_PER_CLASS or name <= max(alike)

    def keep(self, first_class: int, name: str, image: Image) -> None:
        """Keep a sample in place of the last one, if there is one too many; -1 is no class."""
        alike = self.kept.setdefault(first_class, {})
        alike[name] = image
        if len(alike) > PICTURED_PER_CLASS:
            del alike[max(alike)]

    def chosen(self) -> list[Image]:
        """Return one sample of each class, then another of each, as many as there is room for."""
        places = [
            (place, number, name) for number in self.kept for place, name in enumerate(sorted(self.kept[number]))
        ]
        return [self.kept[number][name] for _, number, name in sorted(places)[:PICTURED_SAMPLES]]


class ClassGallery(FewOfEachClass[JudgedImage]):
    """Shows samples with their true and their predicted classes."""

    def offer(
        self, batch: Batch, index: int, true: Bool[Tensor, " k"], predicted: Float[Tensor, "told_and_probable k"]
    ) -> None:
        """Look at one judged sample: its true classes, its predicted classes, and their probabilities."""
        truth = tuple(true.nonzero().flatten().tolist())
        first, name = truth[0] if truth else -1, batch.sample_ids[index]
        if self.wants(first, name):
            self.keep(first, name, _judged_image(batch, index, truth, predicted))

    def draw(self, class_names: tuple[str, ...]) -> bytes | None:
        """Draw the chosen samples; None if there are none."""
        from orchestrator.judging.pictures import draw_judged

        chosen = self.chosen()
        return draw_judged(chosen, class_names) if chosen else None


class BoxGallery(FewOfEachClass[BoxedImage]):
    """Shows samples with their true boxes and their detections; of a volume, the plane with the most true boxes.

    Of planes with as many, it is the one with the largest boxes.
    """

    def offer(
        self, batch: Batch, index: int, true: Float64[Tensor, "n 8"], predicted: Float64[Tensor, "m 8"]
    ) -> None:
        """Look at one judged sample: rows of plane, kind, class, score and box, of truth and of detections."""
        plane = _richest_plane(true.numpy())
        if plane is None and len(predicted):
            plane = int(predicted[0, 0])
        own, told = (rows[rows[:, 0] == (plane or 0)].numpy() for rows in (true, predicted))
        first, name = int(own[:, 2].min(initial=np.inf)) if len(own) else -1, batch.sample_ids[index]
        if self.wants(first, name):
            self.keep(first, name, _boxed_image(batch, index, plane, own, told))

    def draw(self, class_names: tuple[str, ...]) -> bytes | None:
        """Draw the chosen samples; None if there are none."""
        from orchestrator.judging.box_pictures import draw_boxes

        chosen = self.chosen()
        return draw_boxes(chosen, class_names) if chosen else None


def _richest_plane(true: Float64[np.ndarray, "n 8"]) -> int | None:
    """Return the plane with the most true boxes (then the largest area of them); None without true boxes."""
    if not len(true):
        return None
    planes, places = np.unique(true[:, 0], return_inverse=True)
    areas = np.bincount(places, (true[:, 6:] - true[:, 4:6]).prod(axis=1))
    return int(planes[np.lexsort((areas, np.bincount(places)))[-1]])


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


def _boxed_image(
    batch: Batch, index: int, plane: int | None, own: Float64[np.ndarray, "n 8"], told: Float64[np.ndarray, "m 8"]
) -> BoxedImage:
    """Return a picture, or a plane of a volume: by default the middle one."""
    inside = (slice(None), *(slice(0, extent) for extent in batch.extents[index].tolist()))
    voxels = batch.voxels[index][inside]
    is_volume = batch.spatial_dims == 3
    shown = voxels.shape[1] // 2 if plane is None else plane
    rows_mm, columns_mm = batch.spacing_mm[index, -2:].tolist()
    likeliest = told[np.argsort(-told[:, 3], kind="stable")]
    return BoxedImage(
        title=f"{batch.sample_ids[index]}, slice {shown}" if is_volume else batch.sample_ids[index],
        image=(voxels[:, shown] if is_volume else voxels).float().cpu().numpy(),
        true=own[:, 4:],
        true_classes=own[:, 2].astype(np.int64),
        detected=likeliest[:, 4:],
        detected_classes=likeliest[:, 2].astype(np.int64),
        scores=likeliest[:, 3],
        spacing_mm=(rows_mm, columns_mm),
        upright=not is_volume and batch.volumes[index] == batch.sample_ids[index],
    )


Gallery = MaskGallery | ClassGallery | BoxGallery
"""Looks at every judged sample, and draws some."""
GALLERIES: dict[Labels, type[Gallery]] = {LABEL_MAP: MaskGallery, CLASSES: ClassGallery, BOXES: BoxGallery}
