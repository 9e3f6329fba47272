"""Rubik's cube++: crops whose layers were twisted like a Rubik's cube are restored, against a discriminator.

Paper:     Tao et al., "Revisiting Rubik's Cube: Self-supervised Learning with Volume-wise Transformation for 3D
           Medical Image Segmentation", MICCAI 2020; Rubik++ in the tables of VoCo (seed 002).
Reference: none was released.
Variants:  there are none. Where the paper gives no number that could be read, here: four layers along each axis, each
           twisted with probability 1/2 by one to three right angles, along D, then H, then W; the squared error; and
           a discriminator of whether crops are real, beside the twisted crop, by patches, as in Isola et al.,
           "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, whose ratio of the two
           weights, 100 to 1, is the default.
           An image is a cube of one slice: a layer of it, a row or a column of pixels, can only be turned over.
           There is one optimiser and one loss, the sum of what each network minimises. The discriminator judges what
           is restored twice: without a gradient to the restoring network, and without one to itself. The restoring
           network minimises the cross-entropy of passing for real (Goodfellow et al., NIPS 2014, section 3).
           The discriminator has instance norm, so that no statistic passes between real and restored crops.
           The restoring network is the encoder that is given, with a U-Net's decoder. Only the encoder is exported.
Shapes:    B samples, L layers along each of n spatial axes, C channels, *s spatial axes of a cube.
"""

from math import log
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.constant_voxel import mean_voxel
from methods.parts.precision import at_least_float32, full_precision, keep_in_float32
from methods.parts.reconstruction import Reconstruction
from methods.parts.sizes import check_stride


def draw_twists(spatial_dims: int, num_slabs: int, probability: float, rng: SampleRng) -> Int[np.ndarray, "b n l"]:
    """Draw by how many right angles each layer along each axis is turned; those of an image are turned over."""
    happens = rng.fold("happens").uniform(spatial_dims, num_slabs) < probability
    angles = 1 + np.floor(3 * rng.fold("angles").uniform(spatial_dims, num_slabs)).astype(np.int64)
    return np.where(happens, angles if spatial_dims == 3 else 2, 0)


def twist(images: Float[Tensor, "b c *s"], twists: Int[np.ndarray, "b n l"]) -> Float[Tensor, "b c *s"]:
    """Turn layers about their axis, axis by axis; all axes have one length, which the layers share out."""
    twisted = images.clone()
    borders = np.linspace(0, images.shape[-1], twists.shape[2] + 1).round().astype(int).tolist()
    for sample, own in zip(twisted, twists.tolist(), strict=True):
        for axis, counts in enumerate(own, start=1):
            others = [other for other in range(1, sample.ndim) if other != axis]
            for start, end, count in zip(borders, borders[1:], counts, strict=False):
                layer = sample.narrow(axis, start, end - start)
                turned = torch.rot90(layer, count, others) if len(others) == 2 else layer.flip(others)
                if count:
                    layer.copy_(turned.clone())
    return twisted


class Discriminator(nn.Sequential):
    """Convolutions that halve a crop, each with instance norm and a leaky ReLU, and a logit for each patch."""

    def __init__(self, spatial_dims: int, in_channels: int, width: int, num_halvings: int) -> None:
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[spatial_dims - 2]
        layers: list[nn.Module] = []
        for halving in range(num_halvings):
            wide = width * 2**halving
            layers += [
                convolution(in_channels, wide, 4, 2, 1, bias=False),
                norm(wide, affine=True),
                nn.LeakyReLU(0.2),
            ]
            in_channels = wide
        last = convolution(in_channels, 1, 1)
        keep_in_float32(last)
        super().__init__(*layers, last)


@full_precision()
def restoration_error(restored: Float[Tensor, "b c *s"], whole: Float[Tensor, "b c *s"]) -> Float[Tensor, ""]:
    """Return the mean squared error over all voxels."""
    return F.mse_loss(restored, whole)


@full_precision()
def discrimination_loss(real: Float[Tensor, "b 1 *p"], restored: Float[Tensor, "b 1 *p"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of telling real patches from restored ones, the sum of both."""
    return F.softplus(-real).mean() + F.softplus(restored).mean()


@full_precision()
def deception_loss(restored: Float[Tensor, "b 1 *p"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of restored patches that should pass for real."""
    return F.softplus(-restored).mean()


class RubiksCubePlus(Method):
    """An encoder and a decoder of all of its maps, and a discriminator."""

    class Config(FrozenConfig):
        """The twisted cube, and the weights of the restoring network's two losses.

        side                 voxels per axis of the cube, or the square, that is twisted, at a random place
        num_slabs            layers along each axis
        twist_prob           probability that a layer is twisted
        lambda_restoration   weight of the squared error
        lambda_adversarial   weight of the loss of passing for real
        hidden_dim           channels of the discriminator's first layer; each next one has twice as many
        num_halvings         layers of the discriminator before its last
        """

        name: Literal["rubiks_cube_plus"] = "rubiks_cube_plus"
        side: PositiveInt = 96
        num_slabs: int = Field(default=4, ge=2)
        twist_prob: float = Field(default=0.5, gt=0, le=1)
        lambda_restoration: float = Field(default=10.0, gt=0)
        lambda_adversarial: float = Field(default=0.1, ge=0)
        hidden_dim: PositiveInt = 32
        num_halvings: NonNegativeInt = 4

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = (config.side,) * encoder.spatial_dims
        check_stride(self.size, encoder.strides, "method.side")
        if self.size[0] < max(2 ** (config.num_halvings + 1), config.num_slabs):
            raise ValueError(
                f"method.side {self.size[0]}: {config.num_halvings} halvings or {config.num_slabs} layers are too "
                "many for so few voxels; raise method.side, or lower method.num_halvings or method.num_slabs"
            )
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels)
        self.discriminator = Discriminator(
            encoder.spatial_dims, 2 * encoder.in_channels, config.hidden_dim, config.num_halvings
        )

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the cube does not fit into samples of this size."""
        check_fits(self.size, extent, "method.side")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut one cube per sample; return it twisted, and as it was."""
        config = self.config
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        whole = cut(batch, boxes)
        twists = draw_twists(batch.spatial_dims, config.num_slabs, config.twist_prob, rng.fold("twists"))
        return Views((twist(whole, twists), whole), (boxes, boxes))

    def loss(self, views: Views) -> Losses:
        """Compute the sum of what the restoring network and the discriminator minimise."""
        config, (twisted, whole) = self.config, views.images
        restored = at_least_float32(self.decoder(self.encoder.features(twisted)))
        error = restoration_error(restored, whole)
        shown = torch.cat([torch.cat([whole, twisted], dim=1), torch.cat([restored.detach(), twisted], dim=1)])
        real, fake = self.discriminator(shown).chunk(2)
        discrimination = discrimination_loss(real, fake)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        opposed = functional_call(self.discriminator, frozen, torch.cat([restored, twisted], dim=1))
        deception = deception_loss(opposed)
        parts = {
            "restoration_error": error.detach(),
            "deception_loss": deception.detach(),
            "discrimination_loss": discrimination.detach(),
        }
        constant = restoration_error(mean_voxel(whole).expand_as(whole), whole)
        of_constant = config.lambda_restoration * constant + (config.lambda_adversarial + 2) * log(2)
        weighted = config.lambda_restoration * error + config.lambda_adversarial * deception
        return Losses(weighted + discrimination, parts, of_constant)
