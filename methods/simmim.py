"""SimMIM: one linear layer on the last map predicts the voxels of random hidden blocks of a crop.

Paper:     Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022; for volumes as in VoCo's
           comparison (seed 002, Tables 1 and 4), whose numbers are from Chen et al., WACV 2023.
Reference: microsoft/SimMIM @ 0e71746.
Variants:  each flag is a field of the config and can be set on its own.
                        paper                          volumes
           mask_ratio   0.6                            0.75
           block        32 pixels                      16 voxels, a patch of UNETR's
           The paper's networks are ViT and Swin, and a learnt vector replaces a hidden patch's embedding. Encoders
           here may have no embedding: a learnt value per channel replaces hidden voxels.
           Crops keep the scale of the scan; the released code resizes 67 to 100 % of a photograph to one size.
Shapes:    B samples, C channels, *g blocks of a crop along each axis, *s spatial axes, *m those of the last map.
"""

from math import prod
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from data.views.augmentation import Augmentation, augment, cut, draw
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.hidden_blocks import blocks_along, count_hidden, draw_hidden, enlarge
from methods.parts.precision import LinearHead, full_precision
from methods.parts.sizes import check_coarsest, check_stride, per_axis
from methods.parts.variants import completed_by

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"mask_ratio": 0.6, "block": 32},
    "volumes": {"mask_ratio": 0.75, "block": 16},
}


@full_precision()
def hidden_error(
    predicted: Float[Tensor, "b c *s"], whole: Float[Tensor, "b c *s"], hidden: Bool[Tensor, "b 1 *s"]
) -> Float[Tensor, ""]:
    """Return the mean absolute error over hidden voxels; all samples must hide equally many, so that ranks agree."""
    return ((predicted - whole).abs() * hidden).sum() / (hidden.sum() * whole.shape[1])


class Pixels(nn.Module):
    """One linear layer from each voxel of the last map to all input voxels that it stands for."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.lengths = dict(zip("opq"[-encoder.spatial_dims :], encoder.strides, strict=True))
        cube = prod(encoder.strides)
        self.layer = LinearHead(encoder.channels[-1], cube * encoder.in_channels)

    def forward(self, last: Float[Tensor, "b d *m"]) -> Float[Tensor, "b c *s"]:
        """Predict the cube of each map voxel, and put it in its place."""
        cubes = self.layer(last.movedim(1, -1))
        if last.ndim == 4:
            return rearrange(cubes, "b h w (c p q) -> b c (h p) (w q)", **self.lengths)
        return rearrange(cubes, "b d h w (c o p q) -> b c (d o) (h p) (w q)", **self.lengths)


class SimMIM(Method):
    """An encoder, a learnt value that replaces hidden voxels, and a linear layer."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        crop_size    voxels per axis of a crop at a random place, or one number for all axes
        mask_ratio   share of a crop's blocks that is hidden, rounded up to whole blocks
        block        voxels per axis of a block, or one number for all axes
        """

        name: Literal["simmim"] = "simmim"
        variant: Literal["paper", "volumes"] = "paper"
        crop_size: PositiveInt | tuple[PositiveInt, ...] = 192
        mask_ratio: float = Field(default=0.6, gt=0, lt=1)
        block: PositiveInt | tuple[PositiveInt, ...] = 32
        augment: Augmentation = Augmentation(flip_axes=("W",), flip_prob=0.5)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = per_axis(config.crop_size, encoder.spatial_dims, "method.crop_size")
        self.block = per_axis(config.block, encoder.spatial_dims, "method.block")
        check_stride(self.size, encoder.strides, "method.crop_size")
        check_coarsest(self.size, encoder.strides, "method.crop_size")
        self.blocks = blocks_along(self.size, self.block, "method.crop_size")
        self.num_hidden = count_hidden(config.mask_ratio, self.blocks)
        self.encoder: Encoder = encoder
        self.token = nn.Parameter(torch.zeros(encoder.in_channels))
        self.pixels = Pixels(encoder)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut one crop per sample; return it with random blocks set to 0, and whole."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        whole = augment(cut(batch, boxes), draw(self.config.augment, self.size, rng.fold("augment")))
        drawn = draw_hidden(self.blocks, self.num_hidden, rng.fold("hidden"))
        hidden = torch.from_numpy(drawn).to(whole.device)
        seen = whole.masked_fill(enlarge(hidden, self.block), 0)
        return Views((seen, whole), (boxes, boxes), {"hidden": hidden})

    def loss(self, views: Views) -> Losses:
        """Compute the error of hidden voxels, and for comparison that of predicting the mean of seen voxels."""
        seen, whole = views.images
        hidden = enlarge(views.targets["hidden"], self.block)
        token = self.token.view(1, -1, *[1] * len(self.size)).to(seen)
        predicted = self.pixels(self.encoder.features(torch.where(hidden, token, seen))[-1])
        axes = tuple(range(2, whole.ndim))
        mean = (whole * ~hidden).sum(axes, keepdim=True) / (~hidden).sum(axes, keepdim=True)
        mean_error = hidden_error(mean.expand_as(whole), whole, hidden).detach()
        return Losses(hidden_error(predicted, whole, hidden), {"mean_error": mean_error}, mean_error)
