"""Recipe: how a scan is preprocessed before it is stored. Frozen, checked, and hashed: shards name their recipe."""

import hashlib
import json
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Recipe(BaseModel):
    """Preprocessing of one kind of scan; lists follow (D, H, W), for images (H, W).

    kind             ``volume``: one 3D sample; ``slices``: its axial planes, one sample each; ``image``: a picture
    modality         modality of scans whose files do not state it; a scan of another modality is refused
    spacing_mm       voxel size after resampling; None keeps the scan's own
    window           lowest and highest intensity, mapped to 0 and 1; values outside are clipped
    window_kind      ``hu``: window is in HU and a CT without negative values is refused as not HU;
                     ``value``: in the scan's own intensities; ``percentile``: in percentiles of each channel's
                     voxels above its background (the lowest common value, or else the lowest)
    crop_above       cut to the smallest box of voxels above this intensity after the window; None keeps all
    resize_to        size per axis to which every scan is resized, whatever its proportions; a box cut out by
                     crop_above is stretched. For slices, (D, H, W) of the volume before it is sliced
    pad_to           smallest size per axis; shorter axes are padded with 0 on both sides alike
    short_side       images only: a shorter side above this number of pixels is reduced to it
    num_channels     images only: 1 (grey) or 3 (RGB)
    min_slices       scans with fewer voxels along an axis are refused as too thin
    stored           integers that span [0, 1], or float16
    rounding         ``nearest``, or ``truncate`` as in released code that casts to uint8
    version          raised when the meaning of the fields changes
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    kind: Literal["volume", "slices", "image"]
    modality: str | None = None
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    window: tuple[float, float]
    window_kind: Literal["hu", "value", "percentile"]
    crop_above: Annotated[float, Field(ge=0, lt=1)] | None = None
    resize_to: tuple[PositiveInt, ...] = ()
    pad_to: tuple[PositiveInt, ...] = ()
    short_side: PositiveInt | None = None
    num_channels: Literal[1, 3] | None = None
    min_slices: PositiveInt = 1
    stored: Literal["uint8", "uint16", "float16"] = "uint16"
    rounding: Literal["nearest", "truncate"] = "nearest"
    version: Literal[2] = 2

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        low, high = self.window
        if not low < high:
            raise ValueError(f"window {self.window}: expected the lower value first; swap them")
        if self.window_kind == "percentile" and not 0 <= low < high <= 100:
            raise ValueError(f"window {self.window}: percentiles are from 0 to 100; set window or window_kind")
        for name, sizes in (("pad_to", self.pad_to), ("resize_to", self.resize_to)):
            if sizes and len(sizes) != self.native_dims:
                raise ValueError(f"{name} {sizes}: {len(sizes)} sizes; expected {self.native_dims}")
        if self.resize_to and (self.pad_to or self.short_side):
            raise ValueError(
                f"resize_to {self.resize_to} beside {'pad_to' if self.pad_to else 'short_side'}: it alone decides "
                "the size; give one of the two"
            )
        if self.kind == "image" and (self.spacing_mm or self.num_channels is None):
            raise ValueError("kind image: expected num_channels 1 or 3 and no spacing_mm; pictures are in pixels")
        if self.kind != "image" and (self.short_side or self.num_channels):
            raise ValueError(f"kind {self.kind}: short_side and num_channels are for pictures; use spacing_mm")
        return self

    @property
    def native_dims(self) -> int:
        """Spatial axes of what is read: 3 for volumes and their slices, 2 for pictures."""
        return 2 if self.kind == "image" else 3

    @property
    def spatial_dims(self) -> int:
        """Spatial axes of a sample."""
        return 3 if self.kind == "volume" else 2

    @property
    def levels(self) -> int | None:
        """The stored integer that means 1; None for float16."""
        return None if self.stored == "float16" else int(np.iinfo(self.stored).max)

    @property
    def digest(self) -> str:
        """64 hex digits that change with any field."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def with_fields(self, **changes: object) -> "Recipe":
        """Return the recipe with some fields replaced, checked like a new one."""
        return Recipe.model_validate({**self.model_dump(), **changes})
