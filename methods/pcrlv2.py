"""PCRLv2: a view is restored at every scale of a decoder without skips, and views are compared at every scale.

Paper:     Zhou et al., "A Unified Visual Information Preservation Framework for Self-Supervised Pre-Training in
           Medical Image Analysis", IEEE TPAMI 2023 (arXiv 2301.00772); a rival in the tables of VoCo (seed 002).
Reference: RL4M/PCRLv2 @ 6634bef.
Variants:  none: of the paper, its abstract alone was at hand, and the settings are those of the released code.
           Each comparison of a step draws one scale there, and one scale is restored; here all scales count, as their
           mean, which is what the draws amount to. The first view alone is restored, as released.
           In the release a crop has one of four sizes and is resized to 64 x 64 x 32; here ``crops`` has one size. A
           small crop lies inside the box that holds both crops ("sub-crop"); in images it lies anywhere, and the
           crops are shares: ``small_from: sample`` and ``crops: {size: 224, area: [0.3, 1]}``. Shares of small crops
           are those of images, for both. Blocks change places in images, too, where the release cuts holes.
           The network is the encoder that is given, with batch norm in its decoder. Only the encoder is exported.
Shapes:    B samples, V views: two, then the small crops; C channels, *s spatial axes, L scales, d dimensions of one.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt, Tag
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation, augment, draw
from data.views.batch import Batch
from data.views.rng import SampleRng, scale_words
from data.views.transforms import Affine, Blur, Gamma
from methods.base import Facts, FrozenConfig, Losses, Method, Progress, Views
from methods.crops import Crops
from methods.encoders import Encoder
from methods.models_genesis import restoration_error
from methods.parts.collapse import collapse_part
from methods.parts.constant_voxel import mean_voxel
from methods.parts.mlp import hidden_projector
from methods.parts.multi_crop import MultiCrop, SmallCrops
from methods.parts.precision import Head, at_least_float32
from methods.parts.reconstruction import Reconstruction
from methods.parts.sampled_crops import sample_crops
from methods.parts.schedule import BY_FORM, Ramp, value_at
from methods.simsiam import negative_cosine
from methods.two_views import TARGETS

Weight = Annotated[Annotated[float, Field(ge=0), Tag("number")] | Annotated[Ramp, Tag("ramp")], BY_FORM]
Compared = list[tuple[Tensor, Tensor]]

_MOVED: dict[str, Any] = {"flip_axes": ("W",), "flip_prob": 0.5, "transforms": (Affine(),)}
_DISTORTED: dict[str, Any] = {
    "noise_sigma": (0.0, 0.25),
    "noise_prob": 1.0,
    "transforms": (Blur(), Gamma()),
}


def swap_blocks(
    images: Float[Tensor, "b c *s"], size: tuple[int, ...], num: int, rng: SampleRng
) -> Float[Tensor, "b c *s"]:
    """Exchange two blocks of each image, ``num`` times, one after the other, as torchio's RandomSwap does."""
    whole = tuple(images.shape[2:])
    room = np.array([side - min(block, side) + 1 for block, side in zip(size, whole, strict=True)])
    inside = np.indices([min(block, side) for block, side in zip(size, whole, strict=True)]).reshape(len(whole), -1)
    steps = np.array([int(np.prod(whole[axis + 1 :])) for axis in range(len(whole))])
    low = scale_words(rng.words(num, 2, len(whole)), room)
    places = torch.from_numpy((low @ steps)[..., None] + steps @ inside).to(images.device)
    voxels = images.flatten(2).clone()
    for swap in range(num):
        one, other = (places[:, swap, end, None].expand(-1, voxels.shape[1], -1) for end in range(2))
        held, given = voxels.gather(2, one), voxels.gather(2, other)
        voxels = voxels.scatter(2, one, given).scatter(2, other, held)
    return voxels.view_as(images)


def comparison(first: Compared, second: Compared) -> Float[Tensor, ""]:
    """Return SimSiam's distance in both directions, as the mean over scales of features and predictions."""
    pairs = [
        (negative_cosine(p, other_z) + negative_cosine(other_p, z)) / 2
        for (z, p), (other_z, other_p) in zip(first, second, strict=True)
    ]
    return torch.stack(pairs).mean()


class ScaleHeads(nn.Module):
    """What a scale of the decoder is compared and restored by: a batch norm, a predictor, and a layer to voxels."""

    def __init__(self, width: int, out_channels: int, spatial_dims: int) -> None:
        super().__init__()
        kinds: Any = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[spatial_dims - 2]
        self.norm = Head(nn.BatchNorm1d(width))
        self.predictor = hidden_projector(width, 2 * width, width)
        self.out = Head(kinds[0](width, out_channels, 3, padding=1, bias=False), kinds[1](out_channels), nn.Sigmoid())

    def compared(self, decoded: Float[Tensor, "b d *s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Return the features of a map, and what is predicted from them."""
        z = self.norm(at_least_float32(decoded).flatten(2).mean(2))
        return z, self.predictor(z)


class PCRLv2(Method):
    """An encoder, a decoder of its last map, and heads for each block of the decoder."""

    positives: ClassVar[bool] = True

    class Config(FrozenConfig):
        """What is seen, and the weight of the scales.

        crops           where the two views are cut
        augment         moves a view, and leaves what is to be restored
        distort         changes what the encoder sees of it
        small_crops     further crops, each compared with both views
        small_from      where these lie: in the box that holds both crops, or anywhere in the sample
        num_swaps       how many times two blocks of a view change places; small crops stay as they are
        swap_size       voxels of a block along D, H and W
        lambda_scales   weight of the mean error of all scales, beside that of the last layer; a number, or its
                        schedule; see ``Ramp``
        """

        name: Literal["pcrlv2"] = "pcrlv2"
        crops: Crops = Crops(iou=(0.3, 1.0))
        augment: Augmentation = Augmentation(**_MOVED)
        distort: Augmentation = Augmentation(**_DISTORTED)
        small_crops: SmallCrops = SmallCrops(num=6, area=(0.05, 0.3))
        small_from: Literal["crops", "sample"] = "crops"
        num_swaps: NonNegativeInt = 100
        swap_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (4, 4, 8)
        lambda_scales: Weight = Ramp(start=1.0, end=0.0)

    scale_weight: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, dims = config, encoder.spatial_dims
        config.crops.check_encoder(dims, encoder.strides)
        self.small = MultiCrop(SmallCrops(), config.small_crops, config.augment, dims)
        self.small.check_encoder(encoder.strides)
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels, skips=False)
        if not self.decoder.widths:
            raise ValueError(
                f"encoder with maps {encoder.channels} and strides {encoder.strides}: its only map is as fine as the "
                "image, and a decoder of it has no scale to compare; give an encoder with a coarser map"
            )
        self.heads = nn.ModuleList(ScaleHeads(width, encoder.in_channels, dims) for width in self.decoder.widths)
        self.register_buffer("scale_weight", torch.tensor(value_at(config.lambda_scales, 0.0)))

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size hold no two crops whose IoU lies in the interval."""
        self.config.crops.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Return two distorted views and the distorted small crops, and last the first view undistorted."""
        config = self.config
        boxes = config.crops.draw(batch.extents, rng.fold("crops"))
        moved = [self._moved(config.crops.cut(batch, box), rng.fold(view)) for view, box in enumerate(boxes)]
        seen: list[Tensor] = []
        for view, image in enumerate(moved):
            size, stream = tuple(image.shape[2:]), rng.fold(f"seen {view}")
            distorted = self._distorted(image, stream)
            seen.append(
                swap_blocks(distorted, config.swap_size[-len(size) :], config.num_swaps, stream.fold("swaps"))
            )
        found: list[np.ndarray] = []
        for _, crops, size in self.small.kinds():
            streams = [rng.fold(f"small {number}") for number in range(crops.num)]
            found = [self._inside(batch, boxes, size, stream.fold("box")) for stream in streams]
            together = SampleRng(np.concatenate([stream.keys for stream in streams]))
            cut = sample_crops(batch, np.stack(found), size).flatten(0, 1)
            seen += self._distorted(self._moved(cut, together), together.fold("seen")).chunk(crops.num)
        return Views((*seen, moved[0]), (*boxes, *found, boxes[0]))

    def loss(self, views: Views) -> Losses:
        """Add the errors of what is restored, and the comparisons of the two views, and of small crops with both."""
        *seen, whole = views.images
        num_small = len(seen) - TARGETS
        decoded = [self._decoded(image) for image in seen[:TARGETS]]
        error = restoration_error(at_least_float32(self.decoder.out(decoded[0][-1])).sigmoid(), whole)
        by_scale = [self._scale_error(*scale, whole) for scale in zip(self._scales, decoded[0], strict=True)]
        first, second = (self._compared(each) for each in decoded)
        losses = [comparison(first, second)]
        if num_small:
            small = self._compared(self._decoded(torch.cat(seen[TARGETS:])))
            repeated = (
                [(z.repeat(num_small, 1), p.repeat(num_small, 1)) for z, p in each] for each in (first, second)
            )
            losses.append(torch.stack([comparison(each, small) for each in repeated]).mean())
        compared = torch.stack(losses).sum()
        total = error + self.scale_weight * torch.stack(by_scale).mean() + compared
        constant = restoration_error(mean_voxel(whole).expand_as(whole), whole)
        parts = {
            "restoration_error": error.detach(),
            "positive_cosine": F.cosine_similarity(first[0][0].detach(), second[0][0].detach()).mean(),
            **collapse_part(first[0][1]),
        }
        # Collapsed outputs are parallel: a constant reaches the least distance there is.
        return Losses(total, parts, ((1 + self.scale_weight) * constant - len(losses)).detach())

    def after_step(self, progress: Progress) -> None:
        """Set the weight of the scales."""
        self.scale_weight.fill_(value_at(self.config.lambda_scales, progress.share))

    def _decoded(self, images: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the maps of the decoder's blocks, coarsest first."""
        return self.decoder.decoded(self.encoder.features(images))[1:]

    @property
    def _scales(self) -> list[ScaleHeads]:
        return [head for head in self.heads if isinstance(head, ScaleHeads)]

    def _compared(self, decoded: Sequence[Tensor]) -> Compared:
        return [head.compared(x) for head, x in zip(self._scales, decoded, strict=True)]

    def _scale_error(self, head: ScaleHeads, decoded: Tensor, whole: Tensor) -> Float[Tensor, ""]:
        """Return the error of what is restored from one scale and resized to the view."""
        mode = "bilinear" if whole.ndim == 4 else "trilinear"
        restored = F.interpolate(head.out(decoded), size=tuple(whole.shape[2:]), mode=mode)
        return restoration_error(restored, whole)

    def _moved(self, images: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
        return augment(images, draw(self.config.augment, tuple(images.shape[2:]), rng.fold("moved")))

    def _distorted(self, images: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
        return augment(images, draw(self.config.distort, tuple(images.shape[2:]), rng.fold("distorted")))

    def _inside(
        self, batch: Batch, boxes: Sequence[np.ndarray], size: tuple[int, ...], rng: SampleRng
    ) -> Int[np.ndarray, "b 2 n"]:
        """Draw one small crop of each sample."""
        low, high = np.zeros_like(batch.extents), batch.extents
        if self.config.small_from == "crops":
            low = np.minimum(boxes[0][:, 0], boxes[1][:, 0])
            high = np.maximum(boxes[0][:, 1], boxes[1][:, 1])
        return self.config.small_crops.draw(high - low, size, rng) + low[:, None]
