"""Crops: where the two views of a two-view method are cut; any such method can set the interval of their IoU."""

import numpy as np
from jaxtyping import Int
from pydantic import PositiveInt, field_validator

from data.views.boxes import BoxPairs
from data.views.rng import SampleRng
from methods.base import FrozenConfig
from methods.parts.sizes import check_stride, per_axis


class Crops(FrozenConfig):
    """Two crops per sample, of one size, whose IoU lies in a closed interval; [0, 1] is plain random cropping.

    size   voxels per spatial axis, or one number for all axes
    """

    size: PositiveInt | tuple[PositiveInt, ...] = 96
    iou: tuple[float, float] = (0.0, 1.0)

    @field_validator("iou")
    @classmethod
    def _in_range(cls, iou: tuple[float, float]) -> tuple[float, float]:
        return BoxPairs((1, 1), iou).iou

    def sized(self, spatial_dims: int) -> tuple[int, ...]:
        """Return a crop's size with one number per axis; raise ValueError where ``size`` has other axes."""
        return per_axis(self.size, spatial_dims, "method.crops.size")

    def check_encoder(self, spatial_dims: int, strides: tuple[int, ...]) -> None:
        """Raise ValueError where an encoder cannot take crops of this size."""
        check_stride(self.sized(spatial_dims), strides, "method.crops.size")

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size hold no pair of crops in the interval."""
        BoxPairs(self.sized(len(extent)), self.iou).check(extent)

    def draw(
        self, extents: Int[np.ndarray, "b n"], rng: SampleRng
    ) -> tuple[Int[np.ndarray, "b 2 n"], Int[np.ndarray, "b 2 n"]]:
        """Draw the two boxes of each sample; ``check_extent`` must hold for every one."""
        return BoxPairs(self.sized(extents.shape[1]), self.iou).draw(extents, rng)
