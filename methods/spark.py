"""SparK: a convolutional encoder sees visible blocks of a crop only, and a light decoder predicts the hidden ones.

Paper:     Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling", ICLR
           2023.
Reference: keyu-tian/SparK @ 1468df8, ``pretrain/spark.py`` and ``decoder.py``.
Variants:  none: paper and code agree. A block is as large as a voxel of the encoder's last map, 32 pixels for a
           ResNet, and is predicted at mean 0 and deviation 1. A transposed convolution is twice as long as its step,
           which may differ between axes. The decoder begins with 768 channels, and halves them at each step.
           Crops keep the scale of the scan; the released code resizes 67 to 100 % of a photograph to one size.
Shapes:    B samples, C channels, *s spatial axes, *g blocks of a crop along each axis, *m those of a map.
"""

from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from data.exact import exact
from data.views.augmentation import Augmentation, augment, cut, draw
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.hidden_blocks import block_error, blocks_of, draw_hidden, enlarge, mean_of_visible, normalised
from methods.parts.precision import keep_in_float32
from methods.parts.sizes import USUAL_SIDE, check_stride, per_axis
from methods.parts.sparse import sparse


class Densifier(nn.Module):
    """Normalises a sparse map, fills hidden places with a learnt token, and brings it to the decoder's width."""

    def __init__(self, dims: int, channels: int, width: int, coarsest: bool) -> None:
        super().__init__()
        convolution: Any = (nn.Conv2d, nn.Conv3d)[dims - 2]
        side = 1 if coarsest else 3
        self.norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2](channels)
        self.token = nn.Parameter(0.02 * torch.randn(channels).clamp(-1, 1))
        same = coarsest and channels == width
        self.convolution = nn.Identity() if same else convolution(channels, width, side, padding=side // 2)

    def forward(self, values: Float[Tensor, "b c *m"], visible: Bool[Tensor, "b 1 *g"]) -> Float[Tensor, "b w *m"]:
        """Return the dense map."""
        with sparse(self.norm, visible):
            normal = self.norm(values)
        steps = tuple(of_map // of_grid for of_map, of_grid in zip(values.shape[2:], visible.shape[2:], strict=True))
        token = self.token.view(1, -1, *[1] * len(steps)).to(normal.dtype)
        return self.convolution(torch.where(enlarge(visible[:, 0], steps), normal, token))


class LightDecoder(nn.Module):
    """A step up from each map to the next: a transposed convolution and two convolutions with batch norm."""

    def __init__(self, dims: int, widths: list[int], steps: list[tuple[int, ...]], out_channels: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            _step_up(dims, below, above, step) for (below, above), step in zip(pairwise(widths), steps, strict=True)
        )
        self.voxels = (nn.Conv2d, nn.Conv3d)[dims - 2](widths[-1], out_channels, 1)
        keep_in_float32(self.voxels)

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "b c *s"]:
        """Return the voxels; ``maps`` are dense, coarsest first, and those beyond them are computed from these."""
        values = maps[0]
        for place, step in enumerate(self.steps, start=1):
            values = step(values)
            values = values + maps[place] if place < len(maps) else values
        return self.voxels(values)


def _step_up(dims: int, below: int, above: int, step: tuple[int, ...]) -> nn.Sequential:
    convolution: Any = (nn.Conv2d, nn.Conv3d)[dims - 2]
    transposed: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
    norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2]
    padding = tuple(length // 2 for length in step)
    kernel = tuple(length + 2 * (length // 2) for length in step)
    return nn.Sequential(
        transposed(below, below, kernel, stride=step, padding=padding),
        convolution(below, below, 3, padding=1, bias=False),
        norm(below),
        nn.ReLU6(),
        convolution(below, above, 3, padding=1, bias=False),
        norm(above),
    )


class SparK(Method):
    """A convolutional encoder that computes on visible places, and a decoder of all voxels."""

    encoders: ClassVar[tuple[str, ...]] = ("unet", "pooled_unet", "densenet", "resnet", "resnet3d", "vnet")

    class Config(FrozenConfig):
        """The size of the task and of the decoder.

        crop_size    voxels per axis of a crop at a random place, or one number for all axes; by default 224 pixels or
                     96 voxels
        mask_ratio   share of a crop's blocks that is hidden; as released, the number of visible ones is rounded
        num_maps     how many of the encoder's maps the decoder takes, the coarsest ones
        decoder_dim  channels of the decoder at the coarsest map
        """

        name: Literal["spark"] = "spark"
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        mask_ratio: float = Field(default=0.6, gt=0, lt=1)
        num_maps: PositiveInt = 4
        decoder_dim: PositiveInt = 768
        augment: Augmentation = Augmentation(flip_axes=("W",), flip_prob=0.5)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, dims = config, encoder.spatial_dims
        self.size = per_axis(config.crop_size or USUAL_SIDE[dims], dims, "method.crop_size")
        check_stride(self.size, encoder.strides, "method.crop_size")
        self.blocks = tuple(length // stride for length, stride in zip(self.size, encoder.strides, strict=True))
        total = prod(self.blocks)
        self.num_hidden = total - round((1 - exact(config.mask_ratio)) * total)
        if not 0 < self.num_hidden < total:
            raise ValueError(
                f"method.mask_ratio {config.mask_ratio:g} hides {self.num_hidden} of the {total} blocks of a crop of "
                f"{self.size} voxels; expected some and not all: change method.mask_ratio, or enlarge "
                "method.crop_size"
            )
        self.encoder: Encoder = encoder
        steps = [step for step in reversed(encoder.steps) if prod(step) > 1]
        widths = [max(1, config.decoder_dim // 2**level) for level in range(len(steps) + 1)]
        self.num_maps = min(config.num_maps, len(encoder.channels))
        taken = encoder.channels[: -self.num_maps - 1 : -1]
        self.densifiers = nn.ModuleList(
            Densifier(dims, channels, width, level == 0)
            for level, (channels, width) in enumerate(zip(taken, widths, strict=False))
        )
        self.decoder = LightDecoder(dims, widths, steps, encoder.in_channels)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut one crop per sample, and draw which of its blocks are hidden."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        crops = augment(cut(batch, boxes), draw(self.config.augment, self.size, rng.fold("augment")))
        hidden = draw_hidden(self.blocks, self.num_hidden, rng.fold("hidden"))
        return Views((crops,), (boxes,), {"hidden": torch.from_numpy(hidden).to(crops.device)})

    def loss(self, views: Views) -> Losses:
        """Compute the error of hidden blocks, and that of predicting the mean of what is seen."""
        (crops,), hidden = views.images, views.targets["hidden"]
        visible = ~hidden[:, None]
        maps = self._sparse_maps(crops, visible)[: -self.num_maps - 1 : -1]
        dense = [densify(values, visible) for densify, values in zip(self.densifiers, maps, strict=True)]
        predicted = blocks_of(self.decoder(dense), self.encoder.strides)
        targets = normalised(blocks_of(crops, self.encoder.strides))
        constant = block_error(mean_of_visible(targets, hidden), targets, hidden, "squared")
        return Losses(block_error(predicted, targets, hidden, "squared"), of_constant=constant.detach())

    def _sparse_maps(self, crops: Float[Tensor, "b c *s"], visible: Bool[Tensor, "b 1 *g"]) -> list[Tensor]:
        """Return the encoder's maps of what is visible, which passes in chunks with its images, as a channel."""
        strides = self.encoder.strides

        def maps_of(packed: Tensor) -> list[Tensor]:
            images, shown = (
                packed[:, :-1],
                packed[(slice(None), slice(-1, None), *(slice(None, None, s) for s in strides))],
            )
            with sparse(self.encoder, shown > 0):
                return self.encoder.maps(images)

        voxels = enlarge(visible[:, 0], strides).to(crops.dtype)
        return self.encoder.features(torch.cat([crops * voxels, voxels], dim=1), maps_of)
