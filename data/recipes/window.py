"""The window: which intensities become 0 and 1; percentiles are those of the voxels above the background."""

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from data.quarantine import BadStudy
from data.recipes.recipe import Recipe

_SHARE = 0.05
_FEW = 20
_SAME = 1e-6  # of the value: resampling equal voxels leaves float32's rounding


def window(recipe: Recipe, voxels: Float[Tensor, "C *S"]) -> Float[Tensor, "C *S"]:
    """Map the window to [0, 1]."""
    voxels = voxels.contiguous()
    for channel in voxels:
        low, high = _limits(recipe, channel)
        channel.sub_(low).div_(high - low).clamp_(0, 1)
    return voxels


def _limits(recipe: Recipe, channel: Float[Tensor, "*S"]) -> tuple[float, float]:
    if recipe.window_kind != "percentile":
        return recipe.window
    values = channel.numpy().ravel()
    values = values[values > background(values)]
    low, high = np.percentile(values, recipe.window, overwrite_input=True) if values.size else (0.0, 0.0)
    if not low < high:
        raise BadStudy(
            f"the same intensity {low:g} at percentiles {recipe.window[0]:g} and {recipe.window[1]:g}",
            "contrast between them",
            "remove the study from the source, or set the recipe's window (--set window='[0,100]')",
        )
    return float(low), float(high)


def background(values: Float32[np.ndarray, "n"]) -> float:
    """Return the intensity of the background: the lowest one, or the lowest that is common.

    A few voxels below it do not count: interpolation and bias correction leave some in the air around a brain. A
    value is common if 5 % of the voxels have it, and 20 times as many as lie below it. Scans in which air is noise
    have none: there it is the lowest value, whatever its number.
    """
    lowest = float(values.min())
    if _num_up_to(values, lowest) >= _SHARE * values.size:
        return _top_of(lowest)
    common = float(np.partition(values, int(_SHARE * values.size))[int(_SHARE * values.size)])
    num_below = int(np.count_nonzero(values < common - abs(common) * _SAME))
    num_common = _num_up_to(values, common) - num_below
    return _top_of(common) if num_common >= max(_SHARE * values.size, _FEW * num_below) else lowest


def _num_up_to(values: Float32[np.ndarray, "n"], value: float) -> int:
    return int(np.count_nonzero(values <= _top_of(value)))


def _top_of(value: float) -> float:
    return value + abs(value) * _SAME
