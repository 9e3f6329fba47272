"""CropMove: where the voxels of a view lie in its sample, after everything that the view went through.

Places are in voxels: the centre of the first voxel is 0.

Shapes:    B samples, P places, n spatial axes.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from data.views.augmentation import ViewParams, whole_move


@dataclass(frozen=True)
class CropMove:
    """A crop of each sample that became a view of one size.

    cut     matrices that take places (.., 1) of samples to places of their crops, resized to the view's size
    moved   matrices that take these to places of the augmented views
    """

    cut: Float[np.ndarray, "b m m"]
    moved: Float[np.ndarray, "b m m"]
    size: tuple[int, ...]

    @classmethod
    def of(cls, boxes: Int[np.ndarray, "b 2 n"], drawn: ViewParams, size: tuple[int, ...]) -> "CropMove":
        """Return the move of boxes that are cut, resized to one size and augmented."""
        n = len(size)
        cut = np.tile(np.eye(n + 1), (len(boxes), 1, 1))
        factors, axes = np.array(size) / (boxes[:, 1] - boxes[:, 0]), np.arange(n)
        cut[:, axes, axes] = factors
        cut[:, axes, n] = (0.5 - boxes[:, 0]) * factors - 0.5
        return cls(cut, whole_move(drawn, size), size)

    @property
    def matrices(self) -> Float[np.ndarray, "b m m"]:
        """Matrices from places of samples to places of the augmented views."""
        return self.moved @ self.cut

    def as_cut(self) -> "CropMove":
        """Return the move of the same crops without their augmentation."""
        return replace(self, moved=np.broadcast_to(np.eye(self.moved.shape[1]), self.moved.shape))

    def cells(self, map_size: tuple[int, ...]) -> Float[np.ndarray, "p n"]:
        """Return the centres of a map's cells in the view, in raster order."""
        centres = [
            (np.arange(cells) + 0.5) * side / cells - 0.5 for cells, side in zip(map_size, self.size, strict=True)
        ]
        return np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, len(map_size))

    def in_samples(self, places: Float[np.ndarray, "p n"]) -> Float[np.ndarray, "b p n"]:
        """Return where places of the views lie in the samples."""
        return _moved(np.linalg.inv(self.matrices), places[None])

    def in_views(self, places: Float[np.ndarray, "b p n"]) -> Float[np.ndarray, "b p n"]:
        """Return where places of the samples lie in the views."""
        return _moved(self.matrices, places)


def _moved(matrices: Float[np.ndarray, "b m m"], places: Float[np.ndarray, "k p n"]) -> Float[np.ndarray, "b p n"]:
    n = places.shape[-1]
    return places @ matrices[:, :n, :n].transpose(0, 2, 1) + matrices[:, None, :n, n]
