"""Multi-crop: crops by the share of a sample that they show, some large and some small.

Paper:     Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
           section 3.2.
Reference: facebookresearch/swav @ 04b8f43, ``multicropdataset.py``: torchvision's RandomResizedCrop. It draws a shape
           up to ten times until it fits, and then takes the middle. Here a shape that does not fit is cut off at the
           sample's borders and made longer along the other axes, so that it shows the share that was drawn.
Shapes:    B samples, V crops of each, n spatial axes, C channels, *s the size of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation, Factors, augment, choose_one_of, draw
from data.views.batch import Batch
from data.views.rng import SampleRng, scale_words
from methods.base import FrozenConfig, Views
from methods.encoders import Encoder
from methods.parts.flat_map import mean_features
from methods.parts.precision import Head, full_precision
from methods.parts.sampled_crops import sample_crops
from methods.parts.sizes import check_stride, per_axis

# Voxels per axis by the number of axes, where a config gives none; the paper's are those of images.
LARGE, SMALL = {2: 224, 3: 96}, {2: 96, 3: 64}


def _are_shares(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area {list(area)}: expected shares of the sample, 0 < low <= high <= 1")
    return area


AreaShares = Annotated[tuple[float, float], AfterValidator(_are_shares)]


class AreaCrops(FrozenConfig):
    """Crops of one kind.

    num      of each sample
    area     the share of the sample's area, or volume, that a crop shows
    size     voxels per axis of a view, or one number for all axes; by default 224 pixels for large crops of images
             and 96 for small ones, 96 voxels for large crops of volumes and 64 for small ones
    aspect   how far a crop's shape may differ from a view's: W to H, and in volumes D to both
    """

    num: NonNegativeInt
    area: AreaShares
    size: PositiveInt | tuple[PositiveInt, ...] | None = None
    aspect: Factors = (3 / 4, 4 / 3)

    def draw(
        self, extents: Int[np.ndarray, "b n"], size: tuple[int, ...], rng: SampleRng
    ) -> Int[np.ndarray, "b 2 n"]:
        """Draw one box per sample, anywhere inside it."""
        n = len(size)
        area = rng.fold("area").uniform(low=self.area[0], high=self.area[1])
        wide, deep = np.exp(rng.fold("aspect").uniform(2, low=np.log(self.aspect[0]), high=np.log(self.aspect[1]))).T
        # The product of an image's factors, and of a volume's, is 1.
        flat = deep ** (-1 / 3) if n == 3 else 1.0
        factors = [deep ** (2 / 3), flat * wide**-0.5, flat * wide**0.5][-n:]
        sides = _fitted(np.stack(factors, axis=1) * size, extents, area)
        lengths = np.rint(sides).astype(np.int64).clip(1, extents)
        low = scale_words(rng.fold("place").words(n), extents - lengths + 1)
        return np.stack([low, low + lengths], axis=1)


class SmallCrops(AreaCrops):
    """Crops beside the views that a method compares; by default there are none, of the area that SwAV's show."""

    num: NonNegativeInt = 0
    area: AreaShares = (0.05, 0.14)


def _fitted(
    shape: Float[np.ndarray, "b n"], extents: Int[np.ndarray, "b n"], share: Float[np.ndarray, " b"]
) -> Float[np.ndarray, "b n"]:
    """Scale shapes until they fill a share of their samples; what would not fit is made up for along other axes."""
    full, sides = np.zeros(shape.shape, dtype=bool), shape
    for _ in range(shape.shape[1]):
        sides = np.where(full, extents, shape)
        missing = share * extents.prod(axis=1) / sides.prod(axis=1)
        factor = missing ** (1 / np.maximum((~full).sum(axis=1), 1))
        sides = np.where(full, extents, shape * factor[:, None])
        full |= sides >= extents
    return np.minimum(sides, extents)


@dataclass(frozen=True)
class MultiCrop:
    """Draws the views of a sample: the large crops, then the small ones, each augmented on its own."""

    large: AreaCrops
    small: AreaCrops
    augment: Augmentation
    spatial_dims: int

    def kinds(self) -> list[tuple[str, AreaCrops, tuple[int, ...]]]:
        """Return each kind that there is with its name in the config and the size of its views."""
        sizes = (self.large.size or LARGE[self.spatial_dims], self.small.size or SMALL[self.spatial_dims])
        named = zip(("large_crops", "small_crops"), (self.large, self.small), sizes, strict=True)
        return [
            (name, crops, per_axis(size, self.spatial_dims, f"method.{name}.size"))
            for name, crops, size in named
            if crops.num
        ]

    def check_encoder(self, strides: tuple[int, ...]) -> None:
        """Raise ValueError where an encoder of these strides cannot take views of these sizes."""
        for name, _, size in self.kinds():
            check_stride(size, strides, f"method.{name}.size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut all crops of one kind by one resampling, and augment them."""
        images: list[Tensor] = []
        boxes: list[np.ndarray] = []
        chosen = choose_one_of(self.augment, sum(crops.num for _, crops, _ in self.kinds()), rng)
        for name, crops, size in self.kinds():
            streams = [rng.fold(f"{name} {number}") for number in range(crops.num)]
            drawn = np.stack([crops.draw(batch.extents, size, stream.fold("box")) for stream in streams])
            together = SampleRng(np.concatenate([stream.keys for stream in streams]))
            cut = sample_crops(batch, drawn, size).flatten(0, 1)
            own = chosen[len(images) :][: crops.num].flatten()
            images += augment(cut, draw(self.augment, size, together.fold("augment"), own)).chunk(crops.num)
            boxes += list(drawn)
        return Views(tuple(images), tuple(boxes))


def crop_features(encoder: Encoder, images: Sequence[Float[Tensor, "b c ..."]]) -> Float[Tensor, "vb d"]:
    """Return the averaged last map of each crop, the first crop's of all samples first.

    Crops of one size pass the encoder together. Batch norm takes its statistics from those, as in the released code.
    """
    groups = [torch.cat(list(group)) for _, group in groupby(images, key=lambda image: image.shape)]
    return torch.cat([mean_features(encoder, group) for group in groups])


def embed_crops(encoder: Encoder, head: Head, images: Sequence[Float[Tensor, "b c ..."]]) -> Float[Tensor, "v b d"]:
    """Return embeddings of length 1; all crops pass the head together."""
    features = crop_features(encoder, images)
    with full_precision():
        return F.normalize(head(features), dim=1).unflatten(0, (len(images), -1))
