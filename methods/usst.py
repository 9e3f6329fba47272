"""USST: volumes and images, through one transformer, each predict what a teacher says of another crop of their own.

Paper:     Xie et al., "Unified 2D and 3D Pre-training for Medical Image Classification and Segmentation", 2021
           (arXiv 2112.09356, first version); a rival of JSSL in seed 000, Tables 6 and 8.
Reference: none was released; the second version became UniMiSS, whose code is YtongXie/UniMiSS-code @ 68be0a4.
Variants:  none. The paper's text was not at hand beyond its abstract, which tells of student and teacher, of images
           and volumes, and of embeddings that switch. What it leaves open is as in ``methods/unimiss.py``, of which
           this lacks the terms between a volume and its slices. A training here is fed samples of one dimension:
           beside crops of a volume it sees crops of one axial slice of it, drawn anew each time, which take the place
           of the paper's radiographs, and both losses are added. On images (2D) there are the images alone.
Shapes:    B samples, A large crops, V crops, C channels, *s spatial axes, K outputs.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import field_validator

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng, scale_words
from methods.base import Facts, Losses, Views
from methods.encoders import Encoder
from methods.parts.class_tokens import (
    AUGMENTATION,
    DEFAULTS,
    LARGE,
    LARGE_CROPS,
    learning_both,
    token_scores,
    with_size,
)
from methods.parts.cluster_health import code_parts
from methods.parts.distillation import entropy_of_mean
from methods.parts.multi_crop import AreaCrops, MultiCrop, SmallCrops
from methods.parts.ranks import number_of_ranks
from methods.parts.sizes import check_stride
from methods.parts.swapped_codes import swapped_loss
from methods.parts.variants import completed_by
from methods.self_distillation import DistillationConfig, SelfDistillation

SLICES: dict[str, Any] = {**DEFAULTS, "slice_crops": LARGE}


def one_slice(batch: Batch, rng: SampleRng) -> tuple[Batch, Int64[np.ndarray, " b"]]:
    """Return an axial slice of each volume, all equally likely, as samples of two dimensions, and where it lies."""
    depths = scale_words(rng.words(1), batch.extents[:, :1])[:, 0]
    rows = torch.arange(len(batch))
    voxels = batch.voxels[rows, :, torch.from_numpy(depths)]
    unlabelled = {"labels": None, "classes": None, "boxes": None}
    extents, spacing = batch.extents[:, 1:], batch.spacing_mm[:, 1:]
    return replace(batch, voxels=voxels, extents=extents, spacing_mm=spacing, **unlabelled), depths


class USST(SelfDistillation):
    """A pyramid transformer, of whose class token a head makes scores; a teacher has both, too."""

    encoders: ClassVar[tuple[str, ...]] = ("pyramid_transformer",)

    class Config(DistillationConfig):
        """Crops of volumes measure 16 x 96 x 96 voxels by default; DINO's settings as released.

        slice_crops   of one slice of each volume; of images there are none
        """

        name: Literal["usst"] = "usst"
        large_crops: AreaCrops = LARGE_CROPS
        slice_crops: AreaCrops = LARGE_CROPS
        augment: Augmentation = AUGMENTATION

        _completed = completed_by({"paper": SLICES})

        @field_validator("slice_crops")
        @classmethod
        def _has_two(cls, crops: AreaCrops) -> AreaCrops:
            if crops.num < 2:
                raise ValueError(
                    f"num {crops.num}: expected at least 2 crops, one of which predicts the other's code"
                )
            return crops

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        network, dims = learning_both(encoder, config.name), encoder.spatial_dims
        sizes = {field: with_size(getattr(config, field), dims) for field in ("large_crops", "small_crops")}
        super().__init__(config.model_copy(update=sizes), network, facts)
        self.slice_crops = MultiCrop(config.slice_crops, SmallCrops(), config.augment, 2)
        self.num_own = config.large_crops.num + config.small_crops.num
        self.num_large = config.large_crops.num
        if dims == 3:
            ((_, _, size),) = self.slice_crops.kinds()
            check_stride(size, network.strides[1:], "method.slice_crops.size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut crops of each sample and, of a volume, of one of its slices."""
        own = super().views(batch, rng)
        if batch.spatial_dims == 2:
            return own
        slices, depths = one_slice(batch, rng.fold("slice"))
        cut = self.slice_crops.views(slices, rng.fold("slice crops"))
        along = np.stack([depths, depths + 1], axis=1)[:, :, None]
        return Views((*own.images, *cut.images), (*own.boxes, *(np.concatenate([along, b], 2) for b in cut.boxes)))

    def loss(self, views: Views) -> Losses:
        """Compute the cross-entropy of each large crop's code with what each other crop of its kind predicts."""
        kinds = [views.images[: self.num_own], views.images[self.num_own :]]
        taught = [kinds[0][: self.num_large], kinds[1]]
        kinds, taught = [kind for kind in kinds if kind], [kind for kind in taught if kind]
        with torch.no_grad():
            told = [token_scores(self.teacher.encoder, self.teacher.head, kind) for kind in taught]
        together = self.codes(torch.cat(told))
        codes = together.split([len(kind) for kind in told])
        terms = [
            swapped_loss(token_scores(self.encoder, self.head, kind), code, self.config.temperature, "mean")
            for kind, code in zip(kinds, codes, strict=True)
        ]
        parts = code_parts(together, together.shape[0] * together.shape[1] * number_of_ranks())
        return Losses(torch.stack(terms).sum(), parts, torch.stack([entropy_of_mean(code) for code in codes]).sum())
