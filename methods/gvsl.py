"""GVSL: one sample's image is laid on another's by features of both, and a damaged image is restored.

Paper:     He et al., "Geometric Visual Similarity Learning in 3D Medical Image Self-supervised Pre-training", CVPR
           2023; a rival in the tables of VoCo (seed 002).
Reference: YutingHe-list/GVSL @ 77c89ba, ``PyTorch/``.
Variants:  each flag is a field of the config and can be set on its own.
                           paper                           released
           moved           damaged: the sample whose       other: the other sample is laid on it
                           image is damaged is laid on
                           the other
           learn_affine    yes                             no: affine maps are rebuilt from plain numbers, and no
                                                           gradient reaches their head
           The two are a sample and the next one of the batch over all ranks, the first after the last, whose image
           comes to it whole and without gradients: so views depend on their own sample alone. Both see their whole
           sample, resized, as the release takes cropped hearts whole: at random places there would be nothing to
           match. The release also bends both images in one random way, which the paper does not have; ``augment``
           changes each image in its own.
           Only the flow has to be smooth, as released; in the paper flow and affine map together, joined as its
           supplement says. Equation 1 lacks the sign by which a higher correlation is a smaller loss.
           Damage is that of the release, which the paper names and does not number: it always paints boxes, and
           curves only rise. Windows measure up to a tenth of the image, as for ``models_genesis``; there a twentieth,
           and all are shuffled in one order.
           Here a flow of 0 moves nothing. In the release it shrinks an image by a voxel, since grid and sampling
           disagree about where corners are; and its affine maps shift by half voxels, scaled by another axis' length.
           The network is the encoder that is given, with a U-Net's decoder. Only the encoder is exported.
Shapes:    B samples, C channels, n spatial axes, *s their lengths, *g those of the last map, d its channels,
           l local features, k numbers of an affine map.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from data.views.augmentation import Augmentation, augment, draw
from data.views.batch import Batch
from data.views.intervals import Probability
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.models_genesis import restoration_error
from methods.parts.constant_voxel import mean_voxel
from methods.parts.distortions import bend, change_some, draw_curves, draw_windows, paint_inside, shuffle
from methods.parts.fitting import Fitting
from methods.parts.precision import Head, LinearHead, at_least_float32
from methods.parts.ranks import next_samples, number_of_ranks
from methods.parts.reconstruction import Reconstruction
from methods.parts.registration import (
    affine_maps,
    correlation_loss,
    count_numbers,
    move_affinely,
    move_by_flow,
    roughness,
)
from methods.parts.sizes import USUAL_SIDE, check_coarsest, check_stride, per_axis
from methods.parts.variants import completed_by

MOST_BOXES, PARTS = 30, (10, 5)  # painted boxes, and their shortest and longest lengths as parts of the image
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORM_CHANNELS = 8  # that are normalised together
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"moved": "damaged", "learn_affine": True},
    "released": {"moved": "other", "learn_affine": False},
}


def convolution(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a convolution, group norm and a leaky ReLU."""
    return nn.Sequential(
        CONVOLUTIONS[spatial_dims](in_channels, out_channels, 3, padding=1),
        nn.GroupNorm(out_channels // NORM_CHANNELS, out_channels),
        nn.LeakyReLU(0.2),
    )


def two_convolutions(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two of them."""
    return nn.Sequential(
        convolution(spatial_dims, in_channels, out_channels), convolution(spatial_dims, out_channels, out_channels)
    )


class ZMatchingHead(nn.Module):
    """Two convolutions and a linear layer for an affine map, and two and a last one for the flow after it."""

    def __init__(self, spatial_dims: int, channels: int, config: "GVSL.Config") -> None:
        super().__init__()
        self.spatial_dims, self.learn_affine = spatial_dims, config.learn_affine
        self.pair = Head(*two_convolutions(spatial_dims, 2 * channels, config.affine_dim))
        self.numbers = LinearHead(config.affine_dim, count_numbers(spatial_dims))
        self.flow = Head(
            *two_convolutions(spatial_dims, 2 * config.local_dim, config.flow_dim),
            CONVOLUTIONS[spatial_dims](config.flow_dim, spatial_dims, 3, padding=1),
        )
        for layer in (self.pair, self.numbers):
            layer.requires_grad_(config.learn_affine)

    def forward(
        self, moving: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "b n m"], Float[Tensor, "b n *s"]]:
        """Return affine maps and flows, given the last map and the local features of each of two images."""
        paired = self.pair(torch.cat([moving[0], fixed[0]], dim=1))
        maps = affine_maps(self.numbers(paired.flatten(2).mean(2)), self.spatial_dims)
        maps = maps if self.learn_affine else maps.detach()
        near = move_affinely(moving[1], maps)
        return maps, self.flow(torch.cat([near, fixed[1]], dim=1))


class GVSL(Method):
    """An encoder, a decoder of all of its maps, and two heads: one matches two images, and one restores."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        size           that each sample is resized to: by default 224 x 224 pixels, or 96 x 96 x 96 voxels
        moved          which image is laid on the other: the one whose damaged version the network sees, or the other
        learn_affine   the head of affine maps is trained
        local_dim      features of each voxel, from the decoder
        affine_dim     width of the head of affine maps
        flow_dim       width of the heads of flows and of restored voxels
        curve_prob     probability that intensities are bent by a rising curve
        shuffle_prob   probability that voxels change places inside small windows
        num_windows    how many windows are shuffled
        """

        name: Literal["gvsl"] = "gvsl"
        variant: Literal["paper", "released"] = "paper"
        size: PositiveInt | tuple[PositiveInt, ...] | None = None
        moved: Literal["damaged", "other"] = "damaged"
        learn_affine: bool = True
        local_dim: PositiveInt = 32
        affine_dim: int = Field(default=256, gt=0, multiple_of=NORM_CHANNELS)
        flow_dim: int = Field(default=16, gt=0, multiple_of=NORM_CHANNELS)
        curve_prob: Probability = 0.9
        shuffle_prob: Probability = 0.8
        num_windows: int = Field(default=5000, ge=1)
        augment: Augmentation = Augmentation()

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, dims = config, encoder.spatial_dims
        self.size = per_axis(config.size or USUAL_SIDE[dims], dims, "method.size")
        check_stride(self.size, encoder.strides, "method.size")
        check_coarsest(self.size, encoder.strides, "method.size")
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, config.local_dim)
        self.matching = ZMatchingHead(dims, encoder.channels[-1], config)
        self.restoring = Head(
            convolution(dims, config.local_dim, config.flow_dim),
            CONVOLUTIONS[dims](config.flow_dim, encoder.in_channels, 1),
        )

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Resize and augment each whole sample; return it damaged, and as it was."""
        whole, boxes = Fitting(self.size, self.size).apply(batch, None)
        whole = augment(whole, draw(self.config.augment, self.size, rng.fold("augment")))
        return Views((self._damaged(whole, rng.fold("damage")), whole), (boxes, boxes))

    def loss(self, views: Views) -> Losses:
        """Add how ill the images match, how rough the flow is, and the squared error of what is restored."""
        damaged, whole = views.images
        if len(whole) * number_of_ranks() < 2:
            raise ValueError(
                "batch of 1 sample: it has no other sample to be matched with; raise budget.batch_size to 2"
            )
        other = next_samples(whole)
        maps = self.encoder.features(torch.cat([damaged, other]))
        local = at_least_float32(self.decoder(maps))
        seen, (local_seen, local_other) = at_least_float32(maps[-1]).chunk(2), local.chunk(2)
        pair = [(whole, (seen[0], local_seen)), (other, (seen[1], local_other))]
        (moving, of_moving), (fixed, of_fixed) = pair if self.config.moved == "damaged" else pair[::-1]
        affine, flow = self.matching(of_moving, of_fixed)
        unlike = correlation_loss(move_by_flow(move_affinely(moving, affine), flow), fixed)
        rough, error = roughness(flow), restoration_error(self.restoring(local_seen), whole)
        # Nothing is moved, and every voxel restored alike.
        constant = correlation_loss(moving, fixed) + restoration_error(mean_voxel(whole).expand_as(whole), whole)
        parts = {
            "correlation_loss": unlike.detach(),
            "smoothness_loss": rough.detach(),
            "restoration_error": error.detach(),
        }
        return Losses(unlike + rough + error, parts, constant)

    def _damaged(self, whole: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
        """Shuffle small windows of some samples, bend the intensities of some, and paint boxes over all."""
        config = self.config

        def shuffled(images: Float[Tensor, "b c *s"], stream: SampleRng) -> Float[Tensor, "b c *s"]:
            low, lengths = draw_windows(self.size, config.num_windows, stream.fold("windows"))
            return shuffle(images, low, lengths, stream.fold("order"))

        def bent(images: Float[Tensor, "b c *s"], stream: SampleRng) -> Float[Tensor, "b c *s"]:
            return bend(images, draw_curves(stream, fall_prob=0.0))

        images = change_some(whole, rng.fold("shuffled").chance(config.shuffle_prob), shuffled, rng.fold("shuffle"))
        images = change_some(images, rng.fold("bent").chance(config.curve_prob), bent, rng.fold("bend"))
        return paint_inside(images, rng.fold("paint"), MOST_BOXES, PARTS)
