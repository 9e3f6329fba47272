"""Segmentation: fine-tune an encoder with a decoder to label every voxel of slices or volumes.

Paper: the thesis on IoU-based positives (seed 001), sections 4.4 and 4.5 and Table 4.1.
Reference: dittohed/exploring-ssl-for-ct @ 3d345a6.
Variants: each is a field of ``augment`` and can be set on its own.
    flip_axes    paper: the X axis, which it says spans back to front (H here); released: every axis
    noise_sigma  paper: 0.01; released: drawn from [0, 0.01]
    Paper and released code augment in other orders than ``data/views.py``; this only changes the effect of the
    zeros beyond the border where a crop is both shifted and smoothed.
Shapes: B samples, n crops of each, C channels, *s spatial axes (D, H, W) or (H, W).
"""

import re
from collections.abc import Iterator
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from data.labels import LABEL_MAP
from data.views.augmentation import Augmentation, augment, choose_one_of, draw, move_labels
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import ADDED, Facts, FrozenConfig, Losses, Views
from methods.downstream.base import Cases, Evidence, Judgement, Task, TaskScores, merge
from methods.downstream.crops import Centre, cut_padded, draw_centred_boxes
from methods.downstream.metrics import CONVENTIONS, ConventionName, check_scored_class
from methods.downstream.names import label_in_metrics
from methods.downstream.networks import Decoder, SegmentationEncoder, segmentation_network
from methods.downstream.surfaces import surface_distance
from methods.downstream.targets import target_of
from methods.parts.chunks import in_chunks
from methods.parts.sizes import check_coarsest, check_stride, per_axis
from methods.parts.variants import completed_by

Overlap = Annotated[float, Field(ge=0, lt=1)]
STORED_LABEL_VALUES = 2**16  # shards hold labels as uint8 or uint16
_PAPER: dict[str, Any] = {
    "flip_axes": ("H",),
    "flip_prob": 0.25,
    "rotate_prob": 0.25,
    "scale_prob": 0.15,
    "shift_prob": 0.15,
    "smooth_prob": 0.15,
    "noise_sigma": (0.01, 0.01),
    "noise_prob": 0.15,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"augment": _PAPER},
    "released": {"augment": {**_PAPER, "flip_axes": ("D", "H", "W"), "noise_sigma": (0.0, 0.01)}},
}


class Segmentation(Task):
    """A network on an encoder, trained on crops of labelled samples and applied by a sliding window."""

    class Config(FrozenConfig):
        """Settings of fine-tuning; the defaults are the thesis'. ``variant`` fills in what ``augment`` does not say.

        decoder              the U-Net of each encoder; ``fcn.py`` on residual networks; or ``pyramid_unet.py`` on MiT
        crop_size            voxels per axis, or one number for all axes; also the sliding window's. Samples that are
                             smaller are padded with 0
        organ_prob           share of crops whose middle voxel is labelled; see ``crops.py`` for the choice of voxel
        background_in_loss   whether classes' loss includes the background; regions have no background
        labels               label values to learn as classes, the others count as background; None: all values that
                             the shards name
        regions              name -> label values: regions to learn instead of classes; they may overlap
        window_overlap       share of a window that the next one covers too, for all axes or for each
        convention           how Dice and IoU are averaged, see ``metrics.py``
        scored_class         under ``single_class``: name of the label or region that is scored, or a label's value
        dice_weight, cross_entropy_weight  factors of the two terms of the loss
        largest_component    of each predicted label or region, keep a whole sample's largest connected part
        surface_distance     whether cases have ``surface_distance_mm``, see ``surfaces.py``: null where truth or
                             prediction has no voxel, and where a case is not one sample, as a volume of many slices
        """

        name: Literal["segmentation"] = "segmentation"
        variant: Literal["paper", "released"] = "paper"
        decoder: Annotated[Decoder, ADDED] = "unet"
        crop_size: PositiveInt | tuple[PositiveInt, ...] = 96
        crops_per_sample: PositiveInt = 2
        organ_prob: float = Field(default=0.5, ge=0, le=1)
        centre: Centre = "voxel"
        augment: Augmentation = Augmentation(**_PAPER)
        background_in_loss: bool = True
        labels: tuple[NonNegativeInt, ...] | None = None
        regions: dict[str, tuple[NonNegativeInt, ...]] | None = Field(default=None, min_length=1)
        window_overlap: Overlap | tuple[Overlap, ...] = 0.25
        window_blend: Literal["constant", "gaussian"] = "constant"
        window_batch: PositiveInt = 16
        convention: ConventionName = "volume"
        scored_class: Annotated[NonNegativeInt | str | None, ADDED] = None
        dice_weight: Annotated[float, Field(ge=0), ADDED] = 1.0
        cross_entropy_weight: Annotated[float, Field(ge=0), ADDED] = 1.0
        largest_component: Annotated[bool, ADDED] = False
        surface_distance: Annotated[bool, ADDED] = False

        _completed = completed_by(VARIANTS)

        @model_validator(mode="after")
        def _learns_and_scores(self) -> "Segmentation.Config":
            if self.dice_weight == self.cross_entropy_weight == 0:
                raise ValueError("dice_weight and cross_entropy_weight are both 0: nothing is learnt; raise one")
            check_scored_class(self.convention, self.scored_class)
            return self

        @model_validator(mode="after")
        def _classes_or_regions(self) -> "Segmentation.Config":
            if self.regions is None:
                return self
            if self.labels is not None:
                raise ValueError(
                    f"labels {self.labels} beside regions {list(self.regions)}: labels are learnt as classes that "
                    "exclude each other; give one of the two"
                )
            if unfit := [name for name in self.regions if not re.fullmatch(r"[\w -]+", name)]:
                raise ValueError(
                    f"regions.{unfit[0]}: expected only letters, digits, spaces, - and _, which MLflow accepts; "
                    "rename it"
                )
            if empty := [name for name, values in self.regions.items() if not values]:
                raise ValueError(f"regions.{empty[0]} has 0 label values; give one or more, as [1, 2, 4]")
            if CONVENTIONS[self.convention].background:
                raise ValueError(
                    f"convention {self.convention} scores the background, which regions do not have; "
                    "set convention=volume or convention=brats"
                )
            return self

    needs = LABEL_MAP
    class_of: Tensor

    def __init__(self, config: Config, encoder: SegmentationEncoder, facts: Facts) -> None:
        super().__init__(encoder)
        self.config = config
        self.target = target_of(facts.names, config.labels, config.regions, config.background_in_loss)
        self.class_names = self.target.names
        self.scored = None if config.scored_class is None else self.target.named(config.scored_class)
        self.network = segmentation_network(encoder, self.target.num_outputs, config.decoder)
        self.crop_size = per_axis(config.crop_size, encoder.spatial_dims, "downstream.task.crop_size")
        check_stride(self.crop_size, encoder.strides, "downstream.task.crop_size")
        check_coarsest(self.crop_size, encoder.strides, "downstream.task.crop_size")
        self.overlap = per_axis(config.window_overlap, encoder.spatial_dims, "downstream.task.window_overlap")
        self._num_chunks = 1
        class_of = torch.zeros(STORED_LABEL_VALUES, dtype=torch.int32)  # gloo broadcasts no int16
        values = torch.tensor(self.target.values)
        class_of[values] = torch.arange(1, len(values) + 1, dtype=torch.int32)
        self.register_buffer("class_of", class_of, persistent=False)

    def pass_in_chunks(self, num_chunks: int) -> None:
        """Pass crops through the whole network in chunks: its decoder holds more memory than the encoder."""
        self._num_chunks = num_chunks

    def chunked(self) -> nn.Module:
        """Return the whole network."""
        return self.network

    def card(self) -> dict[str, Any]:
        """Describe the label values that each output stands for."""
        return self.target.card()

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples have another number of axes than the crop; smaller ones are padded."""
        if len(extent) != len(self.crop_size):
            raise ValueError(
                f"downstream.task.crop_size {self.crop_size} has {len(self.crop_size)} axes, samples "
                f"of size {extent} have {len(extent)}; give one number per spatial axis"
            )

    def check_volumes(self, sliced: bool) -> None:
        """Raise ValueError where a volume's largest parts are asked for, and samples are slices."""
        if sliced and self.config.largest_component and CONVENTIONS[self.config.convention].unit == "volume":
            raise ValueError(
                "downstream.task.largest_component: the samples are slices, so that a volume's largest part is not "
                "known; fine-tune on volumes, or set largest_component=false"
            )

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment ``crops_per_sample`` crops of every sample; ``targets["classes"]`` is (n, B, *crop)."""
        intensities, classes = self._decode(batch)
        config = self.config
        images, masks, boxes = [], [], []
        chosen = choose_one_of(config.augment, config.crops_per_sample, rng)
        for number in range(config.crops_per_sample):
            stream = rng.fold(number)
            box = draw_centred_boxes(
                classes, batch.extents, self.crop_size, config.organ_prob, config.centre, stream.fold("box")
            )
            drawn = draw(config.augment, self.crop_size, stream.fold("augmentation"), chosen[number])
            images.append(augment(cut_padded(intensities, box, batch.extents), drawn))
            masks.append(move_labels(cut_padded(classes, box, batch.extents).long(), drawn))
            boxes.append(box)
        return Views(tuple(images), tuple(boxes), {"classes": torch.stack(masks)})

    def loss(self, views: Views) -> Losses:
        """Compute the weighted sum of Dice loss and cross-entropy over all crops."""
        logits = in_chunks(self.network, self.network, torch.cat(views.images), self._num_chunks)
        weights = (self.config.dice_weight, self.config.cross_entropy_weight)
        return self.target.loss(logits, views.targets["classes"].flatten(0, 1), weights)

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "b c *s"]) -> Tensor:
        """Return the target's decision on every voxel of normalised images; all have one size, which may be any."""
        from monai.inferers.inferer import SlidingWindowInferer

        slide = SlidingWindowInferer(
            self.crop_size,
            sw_batch_size=self.config.window_batch,
            overlap=self.overlap,
            mode=self.config.window_blend,
        )
        logits = slide(images, self.network)
        assert isinstance(logits, Tensor), "the network has one output"
        return self.target.decide(logits)

    def judge(self, batch: Batch) -> Judgement:
        """Predict each sample and count its voxels; pictures hold indices of ``class_names``, without padding."""
        compared = list(self._compare(batch))
        paint = self.target.paint
        seen = [(index, paint(true), paint(predicted)) for index, true, predicted in compared]
        return Judgement(merge(self._count(batch, *one) for one in compared), seen)

    def scores(self, evidence: Evidence) -> TaskScores:
        """Return ``score`` (the mean Dice, or what the convention chooses), mean Dice and IoU, and both per label.

        Characters of label names that MLflow refuses become underscores. The cases have a row for each unit of the
        convention and each label or region: ``case``, ``label``, ``dice``, ``iou``, and perhaps
        ``surface_distance_mm``.
        """
        rows = np.stack([counts.ravel() for counts in evidence.values()])
        size = prod(self.target.shape)
        counts = rows[:, :size].astype(np.int64).reshape(-1, *self.target.shape)
        scores = self.target.score(counts, self.config.convention, self.scored)
        named = {name: label_in_metrics(name) for name in scores.dice}
        metrics = {
            "score": scores.score,
            "dice_mean": scores.mean_dice,
            "iou_mean": scores.mean_iou,
            **{f"dice/{named[name]}": value for name, value in scores.dice.items()},
            **{f"iou/{named[name]}": value for name, value in scores.iou.items()},
        }
        num_units, num_labels = scores.unit_dice.shape
        cases: Cases = {
            "case": [unit for unit in evidence for _ in range(num_labels)],
            "label": list(scores.labels) * num_units,
            "dice": scores.unit_dice.flatten(),
            "iou": scores.unit_iou.flatten(),
        }
        if self.config.surface_distance:
            distances = np.full(scores.unit_dice.shape, np.nan)  # the background, if it is scored, has none
            distances[:, num_labels - len(self.target.names) + 1 :] = rows[:, size:]
            cases["surface_distance_mm"] = distances.flatten()
        return TaskScores(metrics, scores.remarks, cases)

    def _compare(self, batch: Batch) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Predict each sample of a batch; yield its index, its truth and its prediction, without padding."""
        intensities, classes = self._decode(batch)
        sizes, group = np.unique(batch.extents, axis=0, return_inverse=True)
        for number, size in enumerate(sizes.tolist()):
            indices = np.flatnonzero(group.reshape(-1) == number)
            inside = (..., *(slice(0, length) for length in size))
            predictions = self.predict(intensities[indices][inside])
            if self.config.largest_component:
                predictions = torch.stack([self.target.keep_largest(one) for one in predictions])
            yield from zip(indices.tolist(), self.target.true(classes[indices][inside]), predictions, strict=True)

    def _count(self, batch: Batch, index: int, true: Tensor, predicted: Tensor) -> Evidence:
        """Count a sample's voxels under the id of its volume or of its slice, whichever the convention scores.

        If surface distances are asked for, counts are flat, and the distances follow them.
        """
        counts, sample = self.target.count(true, predicted), batch.sample_ids[index]
        if CONVENTIONS[self.config.convention].unit == "volume":
            units, whole = {batch.volumes[index]: counts.sum(0)}, batch.volumes[index] == sample
        elif whole := len(counts) == 1:
            units = {sample: counts[0]}
        else:
            units = {f"{sample}/{number:05d}": plane for number, plane in enumerate(counts)}
        if not self.config.surface_distance:
            return units
        distances = np.full(len(self.target.names) - 1, np.nan)
        if whole:
            pairs = zip(*(self.target.masks(one).cpu().numpy() for one in (true, predicted)), strict=True)
            distances[:] = [surface_distance(one, other, batch.spacing_mm[index]) for one, other in pairs]
        return {unit: np.concatenate([own.ravel(), distances]) for unit, own in units.items()}

    def _decode(self, batch: Batch) -> tuple[Float[Tensor, "b c *s"], Int[Tensor, "b *s"]]:
        """Return the intensities of a batch and the class indices of its labels."""
        if batch.labels is None:
            raise ValueError(
                f"segmentation: the {len(batch)} samples of a batch have no labels; expected a label map for each; "
                "ingest with labels, or select labelled samples only"
            )
        intensities = batch.intensities(batch.voxels.to(torch.float32, copy=True))
        return intensities, self.class_of[batch.labels.int()]
