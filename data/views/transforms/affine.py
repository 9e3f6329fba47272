"""Affine: turn, scale and shift views by one linear resampling.

Reference: torchio 0.18.92, RandomAffine, and ITK's ResampleImageFilter, by which it
           resamples. A point first turns about the image's centre, about the second axis, then the first, then the
           third; it is shifted; then its distance from the centre is scaled along each axis, each by a factor of its
           own (``isotropic`` is False). Factors lie in [0.9, 1.1], angles in [-10, 10] degrees, shifts are 0. An
           image turns in its plane only. A voxel that comes from beyond the image gets the lowest value of its
           channel; the image reaches half a voxel beyond the outermost centres, where their value is repeated.
           torchio measures in mm; JSSL hands it bare tensors, whose voxels measure 1 mm, so that here voxels count.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from data.views.intervals import Factors, Interval
from data.views.rng import SampleRng
from data.views.transforms.base import MovingTransform


class Affine(MovingTransform):
    """Moves voxels linearly about the view's centre.

    scales        factor along each axis; above 1 things grow
    degrees       angle about each axis of a volume; an image has one
    translation   shift along each axis in voxels
    padding       value beyond the image, or its lowest one
    numbers       factors, angles and shifts, in the order of the axes
    """

    name: Literal["affine"] = "affine"
    scales: Factors = (0.9, 1.1)
    degrees: Interval = (-10.0, 10.0)
    translation: Interval = (0.0, 0.0)
    padding: Literal["minimum"] | float = "minimum"

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b k"]:
        """Draw factors, angles and shifts."""
        n = len(size)
        drawn = {
            "scales": (n, self.scales),
            "degrees": (2 * n - 3, self.degrees),
            "translation": (n, self.translation),
        }
        parts = [rng.fold(part).uniform(count, low=low, high=high) for part, (count, (low, high)) in drawn.items()]
        return np.concatenate(parts, axis=1)

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b k"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Resample each image linearly."""
        grid, inside = self._sources(images, numbers)
        sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.padding == "minimum":
            beyond = images.amin(tuple(range(2, images.ndim)), keepdim=True)
        else:
            beyond = images.new_tensor(self.padding)
        return torch.where(inside, sampled, beyond)

    def move_labels(self, labels: Int[Tensor, "b *s"], numbers: Float[np.ndarray, "b k"]) -> Int[Tensor, "b *s"]:
        """Resample label maps, each voxel taking the value of the nearest one (values below 2**24 are kept)."""
        grid, inside = self._sources(labels[:, None].float(), numbers)
        sampled = F.grid_sample(
            labels[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
        )
        return (sampled * inside)[:, 0].to(labels.dtype)

    def to_moved(self, numbers: Float[np.ndarray, "b k"], size: tuple[int, ...]) -> Float[np.ndarray, "b m m"]:
        """Return the matrices by which points turn, are shifted, and are scaled, about the middle of ``size``."""
        n = len(size)
        scales, degrees, translation = np.split(numbers, [n, 3 * n - 3], axis=1)
        centre = (np.array(size) - 1) / 2
        matrices = np.tile(np.eye(n + 1), (len(numbers), 1, 1))
        matrices[:, :n, :n] = scales[:, :, None] * _rotations(np.radians(degrees))
        matrices[:, :n, n] = centre - matrices[:, :n, :n] @ centre + scales * translation
        return matrices

    def _sources(self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b k"]) -> tuple[Tensor, Tensor]:
        """Return where each voxel comes from, in grid_sample's coordinates, and whether that is inside the image."""
        size = tuple(images.shape[2:])
        n, lengths = len(size), np.array(size)
        to_source = np.linalg.inv(self.to_moved(numbers, size))
        # From [-1, 1], the outer faces of the outermost voxels, to indices, to indices of the source, and back.
        turned = to_source[:, :n, :n] * lengths / lengths[:, None]
        middle = (to_source[:, :n, :n] @ ((lengths - 1) / 2) + to_source[:, :n, n] + 0.5) * 2 / lengths - 1
        matrix, offset = torch.from_numpy(turned).to(images), torch.from_numpy(middle).to(images)
        grid = images.new_empty((len(images), *size, n))
        inside = torch.ones((len(images), 1, *size), dtype=torch.bool, device=images.device)
        ones = [1] * n
        for axis in range(n):
            source = offset[:, axis].view(-1, *ones)
            for along, length in enumerate(size):
                position = (2 * torch.arange(length, device=images.device, dtype=images.dtype) + 1) / length - 1
                shape = [length if k == along else 1 for k in range(n)]
                source = source + matrix[:, axis, along].view(-1, *ones) * position.view(shape)
            grid[..., n - 1 - axis] = source
            inside &= ((source >= -1) & (source < 1))[:, None]
        return grid, inside


def _rotations(angles: Float[np.ndarray, "b a"]) -> Float[np.ndarray, "b n n"]:
    """Return rotations by angles about each axis of a volume, or in the plane of an image."""
    if angles.shape[1] == 1:
        return _about(2, angles[:, 0])[:, :2, :2]
    first, second, third = angles.T
    return _about(2, third) @ _about(0, first) @ _about(1, second)


def _about(axis: int, angle: Float[np.ndarray, " b"]) -> Float[np.ndarray, "b 3 3"]:
    matrices = np.tile(np.eye(3), (len(angle), 1, 1))
    after, last = (axis + 1) % 3, (axis + 2) % 3
    matrices[:, after, after] = matrices[:, last, last] = np.cos(angle)
    matrices[:, last, after] = np.sin(angle)
    matrices[:, after, last] = -np.sin(angle)
    return matrices
