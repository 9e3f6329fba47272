"""Boxes as labels: where findings lie in a scan, each with the number of its class.

A box is (2, n) integers: its low corner and its high corner (exclusive), in voxels of the array that it belongs to,
axes in the order of ``data/scan.py``. Voxel i spans [i - 1/2, i + 1/2), so a box's faces lie at low - 1/2 and
high - 1/2. Whatever moves voxels moves boxes with the same parameters; a box that leaves the array is cut at its
border, and one that lies outside is dropped.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

_TIE = 1e-4


@dataclass(frozen=True)
class Boxes:
    """The boxes of one sample; none at all means that findings were looked for and that there are none.

    corners   (N, 2, n) int64, low and high corner of each box
    classes   (N,) int64, the class of each box
    """

    corners: Int[np.ndarray, "N 2 n"]
    classes: Int[np.ndarray, " N"]

    def __post_init__(self) -> None:
        if (self.corners[:, 0] >= self.corners[:, 1]).any():
            empty = int((self.corners[:, 0] >= self.corners[:, 1]).any(axis=1).argmax())
            low, high = self.corners[empty].tolist()
            raise ValueError(
                f"boxes: box {empty} from {low} to {high} holds no voxel; expected each high corner (exclusive) "
                "above the low one"
            )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def spatial_dims(self) -> int:
        return self.corners.shape[2]

    def cropped(self, low: Int[np.ndarray, " n"], high: Int[np.ndarray, " n"]) -> "Boxes":
        """Return the boxes inside the array that spans ``low`` to ``high`` of this one, or exceeds it (padding)."""
        return _inside(self.corners - low, self.classes, np.subtract(high, low))

    def moved(self, to_new: Float64[np.ndarray, "m m"], size: tuple[int, ...]) -> "Boxes":
        """Return the boxes in an array of another grid; ``to_new`` takes voxel indices (.., 1) to those of that grid.

        Faces are rounded as by ``between``; where axes are turned, a box becomes the smallest that holds it.
        """
        n = self.spatial_dims
        middle = to_new[:n, :n] @ (self.corners.sum(axis=1) - 1).T / 2 + to_new[:n, n:]
        reach = np.abs(to_new[:n, :n]) @ (self.corners[:, 1] - self.corners[:, 0]).T / 2
        faces = np.stack([(middle - reach).T, (middle + reach).T], axis=1) + 0.5
        return Boxes.between(faces, self.classes, size)

    @classmethod
    def between(
        cls, faces: Float64[np.ndarray, "N 2 n"], classes: Int[np.ndarray, " N"], size: tuple[int, ...]
    ) -> "Boxes":
        """Return the boxes of an array whose faces lie anywhere: 0 is the border before the first voxel of an axis.

        A face goes to the nearest border between two voxels, and outwards half-way between two. A box that is thinner
        than a voxel keeps one. What lies outside of the array is cut off.
        """
        low = np.ceil(faces[:, 0] - 0.5 - _TIE).astype(np.int64)
        high = np.floor(faces[:, 1] + 0.5 + _TIE).astype(np.int64)
        thin = low >= high
        low = np.where(thin, np.floor(faces.mean(axis=1)), low).astype(np.int64)
        return _inside(np.stack([low, np.where(thin, low + 1, high)], axis=1), classes, np.array(size))

    def resized(self, size: tuple[int, ...], new_size: tuple[int, ...]) -> "Boxes":
        """Return the boxes after an array of ``size`` was resized to ``new_size``, which spans the same region."""
        return self.moved(resizing(size, new_size), new_size)

    def of_plane(self, index: int) -> "Boxes":
        """Return the boxes that one plane of the first axis cuts, without that axis."""
        cut = (self.corners[:, 0, 0] <= index) & (index < self.corners[:, 1, 0])
        return Boxes(self.corners[cut][:, :, 1:], self.classes[cut])


def resizing(size: tuple[int, ...], new_size: tuple[int, ...]) -> Float64[np.ndarray, "m m"]:
    """Return the matrix that takes voxel indices (.., 1) to those after the array was resized."""
    factor = np.array(new_size) / np.array(size)
    to_new = np.diag([*factor, 1.0])
    to_new[:-1, -1] = (factor - 1) / 2  # the outer borders meet, not the centres of the first voxels
    return to_new


def _inside(corners: Int[np.ndarray, "N 2 n"], classes: Int[np.ndarray, " N"], size: Int[np.ndarray, " n"]) -> Boxes:
    """Clip corners to an array, and drop the boxes of which nothing is left."""
    corners = np.clip(corners, 0, size)
    kept = (corners[:, 0] < corners[:, 1]).all(axis=1)
    return Boxes(corners[kept], classes[kept])
