"""Fitting: resize and cut whole samples of any size to the one size that a network takes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from data.views.batch import Batch
from data.views.boxes import boxes_at
from data.views.rng import SampleRng
from methods.parts.sizes import per_axis


@dataclass(frozen=True)
class Fitting:
    """How samples are brought to ``size``: resized to ``resize_to`` (None keeps an axis as it is), then cut."""

    size: tuple[int, ...]
    resize_to: tuple[int | None, ...]

    @classmethod
    def of(
        cls,
        size: int | tuple[int, ...],
        resize_to: int | tuple[int | None, ...] | None,
        spatial_dims: int,
        field: str,
    ) -> "Fitting":
        """Build it from a config's fields ``size`` and ``resize_to`` (None: to ``size``) of ``field``.

        Raises ValueError where these have another number of axes, or ``resize_to`` is smaller than ``size``.
        """
        sizes = per_axis(size, spatial_dims, f"{field}.size")
        lengths = resize_to if isinstance(resize_to, tuple) else (resize_to,) * spatial_dims
        per_axis(tuple(length or 0 for length in lengths), spatial_dims, f"{field}.resize_to")
        if resize_to is None:
            lengths = sizes
        for length, cut in zip(lengths, sizes, strict=True):
            if length is not None and length < cut:
                raise ValueError(
                    f"{field}.resize_to {lengths}: {length} is less than the {cut} voxels of size that are cut out "
                    f"of it; resize to at least {cut}"
                )
        return cls(sizes, lengths)

    def apply(self, batch: Batch, rng: SampleRng | None) -> tuple[Float[Tensor, "b c *s"], Int[np.ndarray, "b 2 n"]]:
        """Return the samples as float32 intensities of one size, and the boxes of stored voxels that they show.

        The cut lies anywhere in the resized sample; without ``rng``, in its middle. Along an axis on which the sample
        is shorter than ``size``, it is centred and padded with 0.
        """
        fixed = np.array([length is not None for length in self.resize_to])
        lengths = np.where(fixed, [length or 0 for length in self.resize_to], batch.extents)
        room = lengths - np.array(self.size)
        low = room // 2
        if rng is not None:
            low = np.where(room > 0, (rng.uniform(len(self.size)) * (room + 1)).astype(np.int64), low)
        windows = boxes_at(low, self.size)
        images = torch.zeros((*batch.voxels.shape[:2], *self.size), device=batch.voxels.device)
        for index, image in enumerate(images):
            _paste(image, resize(batch.sample(index), tuple(lengths[index].tolist())), low[index].tolist())
        shown = np.clip(windows, 0, lengths[:, None]) * (batch.extents / lengths)[:, None]
        return images, np.stack([np.floor(shown[:, 0]), np.ceil(shown[:, 1])], axis=1).astype(np.int64)


def resize(sample: Float[Tensor, "c *s"], size: tuple[int, ...]) -> Float[Tensor, "c *t"]:
    """Resize linearly along each axis; when shrinking, a voxel is the mean of the voxels that it replaces."""
    if tuple(sample.shape[1:]) == size:
        return sample
    if len(size) == 2:
        return _interpolate(sample[None], size)[0]
    # torch does this for planes only: first resize H and W, then D with H and W merged into one axis.
    planes = _interpolate(sample, size[1:])
    return _interpolate(planes.flatten(2)[:, None], (size[0], size[1] * size[2]))[:, 0].unflatten(2, size[1:])


def _interpolate(images: Float[Tensor, "b c h w"], size: tuple[int, ...]) -> Float[Tensor, "b c y x"]:
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _paste(image: Float[Tensor, "c *s"], whole: Float[Tensor, "c *t"], low: list[int]) -> None:
    """Fill an image with the part of ``whole`` that begins at ``low``."""
    pairs = list(zip(low, image.shape[1:], whole.shape[1:], strict=True))
    source = (..., *(slice(max(a, 0), min(a + size, length)) for a, size, length in pairs))
    target = (..., *(slice(max(-a, 0), min(length - a, size)) for a, size, length in pairs))
    image[target] = whole[source]
