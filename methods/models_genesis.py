"""Models Genesis: an encoder and a decoder restore crops that were bent in intensity, shuffled, and painted over.

Paper:     Zhou et al., "Models Genesis: Generic Autodidactic Models for 3D Medical Image Analysis", MICCAI 2019 and
           Medical Image Analysis 2021; a rival in the tables of JSSL, VoCo and SVD-Net (seeds 000, 002 and 003).
Reference: MrGiovanni/ModelsGenesis @ 32b7b5e, ``pytorch/``.
Variants:  each flag is a field of the config and can be set on its own.
                        paper                          released
           flip_depth   yes: crops are flipped         no: a third of the flips are of the axis of channels, which
                        along any axis                 there is one of, and none along the slices
           Everything else is as released, as the paper gives few numbers. Flips come first and are to be kept; then
           shuffling, intensities and painting happen each with its own probability.
           The network is the encoder that is given, with a U-Net's decoder, in place of a 3D U-Net of 64 to 512
           channels. Only the encoder is exported.
Shapes:    B samples, C channels, n spatial axes, *s their lengths.
"""

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.intervals import Probability
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.box_maps import first_successes
from methods.parts.constant_voxel import mean_voxel
from methods.parts.distortions import (
    bend,
    change_some,
    draw_curves,
    draw_windows,
    paint_inside,
    paint_outside,
    shuffle,
)
from methods.parts.precision import at_least_float32, full_precision
from methods.parts.reconstruction import Reconstruction
from methods.parts.sizes import check_coarsest, check_stride, per_axis
from methods.parts.variants import completed_by

CROPS = {2: (64, 64), 3: (32, 64, 64)}
MOST_FLIPS = 3
VARIANTS: dict[str, dict[str, Any]] = {"paper": {"flip_depth": True}, "released": {"flip_depth": False}}


def draw_flips(spatial_dims: int, probability: float, depth: bool, rng: SampleRng) -> Bool[np.ndarray, "b n"]:
    """Draw the axes to flip: as long as chance has it, up to three times, one more axis, perhaps one a second time.

    Where ``depth`` is not flipped, its share of the draws changes nothing, also for images.
    """
    axes = 3 if not depth else spatial_dims
    counts = first_successes(MOST_FLIPS, probability, rng.fold("count"))
    chosen = np.floor(rng.fold("axis").uniform(MOST_FLIPS) * axes)
    used = np.arange(MOST_FLIPS) < counts[:, None]
    flips = np.stack([((chosen == axis) & used).sum(axis=1) % 2 == 1 for axis in range(axes)], axis=1)
    flips[:, 0] &= depth
    return flips[:, axes - spatial_dims :]


def flip(images: Float[Tensor, "b c *s"], flips: Bool[np.ndarray, "b n"]) -> Float[Tensor, "b c *s"]:
    """Flip each sample along its own axes."""
    for axis, rows in enumerate(flips.T):
        chosen = torch.from_numpy(rows).to(images.device).view(-1, *[1] * (images.ndim - 1))
        images = torch.where(chosen, images.flip(2 + axis), images)
    return images


@full_precision()
def restoration_error(restored: Float[Tensor, "b c *s"], whole: Float[Tensor, "b c *s"]) -> Float[Tensor, ""]:
    """Return the mean squared error over all voxels."""
    return F.mse_loss(restored, whole)


class ModelsGenesis(Method):
    """An encoder and a decoder of all of its maps."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        crop_size      by default 64 x 64 pixels of images, and 32 x 64 x 64 voxels of volumes
        curve_prob     probability that intensities are bent by a curve, rising or falling
        shuffle_prob   probability that voxels change places inside small windows
        paint_prob     probability that a part is painted over
        outer_prob     probability that this part is all but some boxes, and not the boxes
        flip_prob      probability of a flip, and then of another one
        num_windows    how many windows are shuffled
        bounded        a sigmoid keeps what is restored in [0, 1], as released
        """

        name: Literal["models_genesis"] = "models_genesis"
        variant: Literal["paper", "released"] = "paper"
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        curve_prob: Probability = 0.9
        shuffle_prob: Probability = 0.5
        paint_prob: Probability = 0.9
        outer_prob: Probability = 0.8
        flip_prob: Probability = 0.4
        flip_depth: bool = True
        num_windows: int = Field(default=10_000, ge=1)
        bounded: bool = True

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        size = config.crop_size or CROPS[encoder.spatial_dims]
        self.size = per_axis(size, encoder.spatial_dims, "method.crop_size")
        check_stride(self.size, encoder.strides, "method.crop_size")
        check_coarsest(self.size, encoder.strides, "method.crop_size")
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and flip one crop per sample; return it distorted, and as it was."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        flips = draw_flips(len(self.size), self.config.flip_prob, self.config.flip_depth, rng.fold("flip"))
        whole = flip(cut(batch, boxes), flips)
        return Views((self._distorted(whole, rng.fold("distortion")), whole), (boxes, boxes))

    def loss(self, views: Views) -> Losses:
        """Compute the squared error of what is restored."""
        distorted, whole = views.images
        restored = at_least_float32(self.decoder(self.encoder.features(distorted)))
        restored = restored.sigmoid() if self.config.bounded else restored
        constant = mean_voxel(whole).expand_as(whole)
        return Losses(restoration_error(restored, whole), of_constant=restoration_error(constant, whole))

    def _distorted(self, whole: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
        """Distort each sample in the ways that were drawn for it."""
        config = self.config
        images = whole
        painted, outside = (
            rng.fold("painted").chance(config.paint_prob),
            rng.fold("outside").chance(config.outer_prob),
        )
        for name, rows in (
            ("shuffle", rng.fold("shuffled").chance(config.shuffle_prob)),
            ("bend", rng.fold("bent").chance(config.curve_prob)),
            ("paint inside", painted & ~outside),
            ("paint outside", painted & outside),
        ):
            images = change_some(images, rows, partial(self._changed, name), rng.fold(name))
        return images

    def _changed(self, name: str, images: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
        match name:
            case "shuffle":
                low, lengths = draw_windows(self.size, self.config.num_windows, rng.fold("windows"))
                return shuffle(images, low, lengths, rng.fold("order"))
            case "bend":
                return bend(images, draw_curves(rng))
            case "paint inside":
                return paint_inside(images, rng)
            case _:
                return paint_outside(images, rng)
