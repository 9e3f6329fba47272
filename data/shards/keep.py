"""Keep: a filter of samples by their data in the index. A sample is used if it meets every criterion."""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_serializer

Millimetres = Annotated[float, Field(gt=0)]
Each = int | float | tuple[int | float, ...]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Keep(BaseModel):
    """The criteria of the samples that are used; all others are left out.

    min_size         the least number of voxels along each axis, (D, H, W) or (H, W); one number stands for all axes
    max_spacing_mm   the greatest distance between voxels along each axis; one number stands for all axes
    modalities       the modalities that are used, by the names that ``raydiology shards show`` prints
    datasets         the datasets that are used, likewise
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_size: PositiveInt | tuple[PositiveInt, ...] | None = None
    max_spacing_mm: Millimetres | tuple[Millimetres, ...] | None = None
    modalities: Names | None = None
    datasets: Names | None = None

    @model_serializer(mode="wrap")
    def _criteria_alone(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out criteria that are not set: run keys then stay the same when new criteria are added."""
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def criteria(self) -> dict[str, Any]:
        """Return the criteria that are set, as JSON values."""
        return self.model_dump(mode="json")

    def describe(self, left_out: Mapping[str, int]) -> str:
        """Say how many samples each criterion leaves out."""
        return ", ".join(f"{name}={self.criteria[name]} leaves out {count:,}" for name, count in left_out.items())


def passing(keep: Keep, rows: pa.Table, sizes: Int64[np.ndarray, "n nd"]) -> dict[str, Bool[np.ndarray, " n"]]:
    """Tell for each criterion that is set which rows of an index meet it.

    Raises ValueError for a criterion whose axes differ from the samples', and for a name that no sample has.
    """
    met = {}
    if keep.min_size is not None:
        met["min_size"] = (sizes >= _per_axis("min_size", keep.min_size, sizes.shape[1])).all(axis=1)
    if keep.max_spacing_mm is not None:
        spacings_mm = rows["spacing_mm"].combine_chunks().flatten().to_numpy().reshape(sizes.shape)
        # Spacings are stored as float32: the same number in float64 may be a little less.
        limits = _per_axis("max_spacing_mm", keep.max_spacing_mm, sizes.shape[1]).astype(spacings_mm.dtype)
        met["max_spacing_mm"] = (spacings_mm <= limits).all(axis=1)
    for name, column, values in (
        ("modalities", "modality", keep.modalities),
        ("datasets", "dataset", keep.datasets),
    ):
        if values is not None:
            met[name] = _is_named(name, values, rows[column])
    return met


def _per_axis(name: str, value: Each, spatial_dims: int) -> np.ndarray:
    if isinstance(value, tuple) and len(value) != spatial_dims:
        raise ValueError(
            f"keep.{name} {list(value)} has {len(value)} axes, the samples have {spatial_dims}; give one number, or "
            "one for each axis"
        )
    return np.broadcast_to(np.array(value), (spatial_dims,))


def _is_named(name: str, values: tuple[str, ...], column: pa.ChunkedArray) -> Bool[np.ndarray, " n"]:
    there = sorted(column.cast(pa.string()).unique().to_pylist())
    unknown = [value for value in values if value not in there]
    if unknown:
        raise ValueError(
            f"keep.{name} names {', '.join(unknown)}, which no sample has; expected some of {', '.join(there)}; see "
            "`raydiology shards show`"
        )
    return is_any(column, values)


def is_any(column: pa.ChunkedArray, values: Collection[str]) -> Bool[np.ndarray, " n"]:
    """Tell which rows of a dictionary-encoded column hold one of some values."""
    array = column.combine_chunks()
    wanted = np.isin(array.dictionary.to_numpy(zero_copy_only=False).astype(str), sorted(values))
    return wanted[array.indices.to_numpy()]
