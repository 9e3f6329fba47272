"""Scan: one acquisition in memory. This file defines the axis order and units of the whole project.

Arrays are (C, D, H, W) for a volume and (C, H, W) for an image. ``spacing_mm`` and every size, box or offset
list the spatial axes in the same order: (D, H, W) or (H, W). ``affine`` takes a voxel index (d, h, w, 1) to
world millimetres in RAS+ (x to the patient's right, y to anterior, z to superior).
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64, Integer, Num

from data.boxes import Boxes


@dataclass(frozen=True)
class Scan:
    """A volume or an image with its geometry and, where known, its label map and the boxes of its findings.

    A stored intensity ``v`` means ``v * scale + offset`` (HU for CT as read; [0, 1] after a recipe's window).
    ``affine`` is None for pictures, whose ``spacing_mm`` is then all ones and means pixels.
    ``slice_index`` is the position of an axial slice along D in the preprocessed volume that it was cut from.
    """

    voxels: Num[np.ndarray, "C *S"]
    spacing_mm: tuple[float, ...]
    modality: str
    affine: Float[np.ndarray, "4 4"] | None = None
    label: Integer[np.ndarray, "*S"] | None = None
    scale: float = 1.0
    offset: float = 0.0
    slice_index: int | None = None
    boxes: Boxes | None = None

    def __post_init__(self) -> None:
        if self.voxels.ndim not in (3, 4):
            raise ValueError(
                f"scan: voxels of shape {self.voxels.shape} have {self.voxels.ndim} axes; "
                "expected (C, D, H, W) or (C, H, W)"
            )
        if len(self.spacing_mm) != self.spatial_dims:
            raise ValueError(
                f"scan: {len(self.spacing_mm)} spacings {self.spacing_mm} for {self.spatial_dims} spatial axes"
            )
        if self.label is not None and self.label.shape != self.size:
            raise ValueError(f"scan: label shape {self.label.shape} differs from image shape {self.size}")
        if self.boxes is not None:
            self._check_boxes(self.boxes)

    @property
    def spatial_dims(self) -> int:
        return self.voxels.ndim - 1

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial shape: (D, H, W) or (H, W)."""
        return self.voxels.shape[1:]

    def _check_boxes(self, boxes: Boxes) -> None:
        if boxes.spatial_dims != self.spatial_dims:
            raise ValueError(f"scan: boxes with {boxes.spatial_dims} axes for {self.spatial_dims} spatial axes")
        outside = ((boxes.corners < 0) | (boxes.corners > self.size)).any(axis=(1, 2))
        if outside.any():
            low, high = boxes.corners[outside.argmax()].tolist()
            raise ValueError(
                f"scan: box {outside.argmax()} from {low} to {high} (exclusive) leaves the image of size "
                f"{self.size}; expected corners in its voxels, in the order of its axes; clip the box, or correct "
                "its axes"
            )

    def with_(self, **changes: object) -> "Scan":
        """Return a copy with some fields replaced."""
        return replace(self, **changes)  # checked by __post_init__


def spacing_of(affine: Float64[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Return the voxel size along D, H and W in mm."""
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged header may hold any number; see check_affine
        d, h, w = np.linalg.norm(affine[:3, :3], axis=0)
    return float(d), float(h), float(w)


def is_sheared(affine: Float64[np.ndarray, "4 4"], tolerance: float = 1e-3) -> bool:
    """Tell whether the axes are not at right angles (a gantry tilt); ``tolerance`` is the largest cosine allowed."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = directions.T @ directions
    return bool(np.abs(cosines - np.diag(np.diag(cosines))).max() > tolerance)
