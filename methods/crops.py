"""Crops: where the two views of a two-view method are cut; any such method can set the interval of their IoU."""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from pydantic import PositiveInt, field_validator, model_validator
from torch import Tensor

from data.additions import ADDED
from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import BoxPairs
from data.views.intervals import Factors
from data.views.rng import SampleRng
from methods.base import FrozenConfig
from methods.parts.multi_crop import AreaCrops, AreaShares
from methods.parts.sampled_crops import sample_crops
from methods.parts.sizes import check_stride, per_axis


class Crops(FrozenConfig):
    """Two crops per sample, of one size, whose IoU lies in a closed interval; [0, 1] is plain random cropping.

    size     voxels per spatial axis, or one number for all axes
    area     the share of a sample that a crop shows before it is resized to ``size``, as papers on photographs have
             it: [0.08, 1]; none: a crop is cut as it is stored
    aspect   with ``area``: how far a crop's shape may differ from a view's
    """

    size: PositiveInt | tuple[PositiveInt, ...] = 96
    iou: tuple[float, float] = (0.0, 1.0)
    area: Annotated[AreaShares | None, ADDED] = None
    aspect: Annotated[Factors, ADDED] = (3 / 4, 4 / 3)

    @field_validator("iou")
    @classmethod
    def _in_range(cls, iou: tuple[float, float]) -> tuple[float, float]:
        return BoxPairs((1, 1), iou).iou

    @model_validator(mode="after")
    def _of_one_size(self) -> "Crops":
        if self.area is not None and self.iou != (0.0, 1.0):
            raise ValueError(
                f"iou {list(self.iou)} with area {list(self.area)}: only two crops of one size "
                "keep to an interval; remove crops.area, or leave crops.iou at [0, 1]"
            )
        return self

    def sized(self, spatial_dims: int) -> tuple[int, ...]:
        """Return a crop's size with one number per axis; raise ValueError where ``size`` has other axes."""
        return per_axis(self.size, spatial_dims, "method.crops.size")

    def check_encoder(self, spatial_dims: int, strides: tuple[int, ...]) -> None:
        """Raise ValueError where an encoder cannot take crops of this size."""
        check_stride(self.sized(spatial_dims), strides, "method.crops.size")

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size hold no pair of crops in the interval."""
        if self.area is None:
            BoxPairs(self.sized(len(extent)), self.iou).check(extent)

    def draw(
        self, extents: Int[np.ndarray, "b n"], rng: SampleRng
    ) -> tuple[Int[np.ndarray, "b 2 n"], Int[np.ndarray, "b 2 n"]]:
        """Draw the two boxes of each sample; ``check_extent`` must hold for every one."""
        size = self.sized(extents.shape[1])
        if self.area is None:
            return BoxPairs(size, self.iou).draw(extents, rng)
        each = AreaCrops(num=2, area=self.area, aspect=self.aspect)
        first, second = (each.draw(extents, size, rng.fold(view)) for view in range(each.num))
        return first, second

    def cut(self, batch: Batch, boxes: Int[np.ndarray, "b 2 n"]) -> Float[Tensor, "b c *s"]:
        """Cut one box that was drawn out of each sample; of a share of the sample, resized."""
        if self.area is None:
            return cut(batch, boxes)
        return sample_crops(batch, boxes[None], self.sized(batch.spatial_dims))[0]
