"""Patches: boxes at random positions in the cells of a grid, cut out of a sample and resized to one size.

  cell     cell     cell       jitter: voxels by which a patch is shorter than its cell, and can move in the cell
[ ####  ][  #### ][####   ]    gap:    voxels that always stay free between one patch and the next
"""

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from data.views.batch import Batch
from data.views.rng import SampleRng, scale_words
from methods.base import FrozenConfig
from methods.encoders import Encoder
from methods.parts.resized_crops import cut_resized
from methods.parts.sizes import check_stride, per_axis
from methods.parts.standardise import standardise


class Patches(FrozenConfig):
    """A grid of equal cells at a random place of a sample, with a patch in each; sample sizes may differ.

    grid        cells per axis, or one number for all axes
    size        voxels per axis that every patch is resized to, or one number for all axes
    span        share of a sample's length that the grid takes along each axis
    overlap     share of a cell that the next one repeats
    normalise   bring each channel of each patch to mean 0 and deviation 1, so that brightness does not reveal where a
                patch was, as under a bias field or vignetting (Noroozi and Favaro, ECCV 2016, section 4.2)
    """

    grid: PositiveInt | tuple[PositiveInt, ...] = 3
    size: PositiveInt | tuple[PositiveInt, ...] = 32
    jitter: int = Field(default=3, ge=0)
    gap: int = Field(default=1, ge=0)
    span: float = Field(default=1.0, gt=0, le=1)
    overlap: float = Field(default=0.0, ge=0, lt=1)
    normalise: bool = False

    @model_validator(mode="after")
    def _agree(self) -> "Patches":
        if self.gap > self.jitter:
            raise ValueError(
                f"gap {self.gap} exceeds jitter {self.jitter}: a gap is part of the jitter; raise jitter"
            )
        return self

    def gridded(self, spatial_dims: int) -> tuple[int, ...]:
        """Return the cells per axis; raise ValueError where ``grid`` has another number of axes."""
        return per_axis(self.grid, spatial_dims, "method.patches.grid")

    def sized(self, encoder: Encoder) -> tuple[int, ...]:
        """Return a patch's size with one number per axis; raise ValueError where the encoder cannot take it."""
        size = per_axis(self.size, encoder.spatial_dims, "method.patches.size")
        check_stride(size, encoder.strides, "method.patches.size")
        return size

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the cells of samples of this size leave no patch of two voxels or more."""
        cells, _ = self._cells(np.array([extent]))
        for axis, cell, length in zip("DHW"[-len(extent) :], cells[0].tolist(), extent, strict=True):
            if cell - self.jitter < 2:
                raise ValueError(
                    f"method.patches.jitter {self.jitter}: the cells of samples of size {extent} are {cell} voxels "
                    f"long along {axis} ({length} voxels); lower method.patches.jitter or method.patches.grid"
                )

    def draw(self, extents: Int[np.ndarray, "b n"], rng: SampleRng) -> Int[np.ndarray, "b k 2 n"]:
        """Draw the boxes of all patches, the last axis fastest; ``check_extent`` must hold for every sample.

        The grid's corner is uniform over the positions where the grid fits, a patch's over the positions in its cell.
        """
        n = extents.shape[1]
        grid = self.gridded(n)
        cells, steps = self._cells(extents)
        room = extents - (steps * (np.array(grid) - 1) + cells)
        corner = scale_words(rng.fold("grid").words(n), room + 1)
        index = np.indices(grid).reshape(n, -1).T
        moves = scale_words(rng.fold("patches").words(len(index), n), np.array(self.jitter - self.gap + 1))
        low = corner[:, None] + index * steps[:, None] + moves
        return np.stack([low, low + (cells - self.jitter)[:, None]], axis=2)

    def cut(
        self, batch: Batch, boxes: Int[np.ndarray, "b v 2 n"], size: tuple[int, ...]
    ) -> Float[Tensor, "v b c *s"]:
        """Cut v patches out of each sample, resized to one size, on the batch's device."""
        patches = cut_resized(batch, boxes.swapaxes(0, 1), size)
        return standardise(patches.flatten(0, 1)).view_as(patches) if self.normalise else patches

    def _cells(self, extents: Int[np.ndarray, "b n"]) -> tuple[Int[np.ndarray, "b n"], Int[np.ndarray, "b n"]]:
        """Return the length of a cell, and how far the next one begins after it."""
        grid = np.array(self.gridded(extents.shape[1]))
        spanned = np.floor(extents * self.span + 1e-9)
        shift = 1 - self.overlap
        steps = np.floor(spanned * shift / ((grid - 1) * shift + 1) + 1e-9).astype(np.int64)
        return np.floor(steps / shift + 1e-9).astype(np.int64), steps
