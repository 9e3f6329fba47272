"""apply: one scan through one recipe -> the samples that are stored. Intensities in [0, 1] as integers."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.quarantine import BadStudy
from data.readers.checks import spacing_of
from data.recipes.geometry import orient, resample
from data.recipes.recipe import Recipe
from data.scan import Scan


def apply(recipe: Recipe, scan: Scan) -> list[Scan]:
    """Preprocess a scan: orient, resample, window, crop, pad, store; slices of a volume come in order of D.

    Voxels are stored so that ``voxel * scale + offset`` is the intensity in [0, 1]. Labels keep their values. A
    slice's ``affine`` is its volume's: it takes (slice_index, h, w, 1). Raises BadStudy for a scan that the recipe
    does not fit.
    """
    _check_fit(recipe, scan)
    return _slices(_volume(recipe, scan)) if recipe.kind == "slices" else [_volume(recipe, scan)]


def _check_fit(recipe: Recipe, scan: Scan) -> None:
    if scan.spatial_dims != recipe.native_dims:
        raise BadStudy(
            f"{scan.spatial_dims} spatial axes {scan.size}",
            f"{recipe.native_dims} for recipe {recipe.name}",
            "choose a recipe for this kind of scan",
        )
    if recipe.modality and scan.modality not in ("", recipe.modality):
        raise BadStudy(
            f"a scan of modality {scan.modality}",
            f"{recipe.modality} for recipe {recipe.name}",
            "choose another recipe, or set its modality",
        )
    if min(scan.size) < recipe.min_slices:
        raise BadStudy(
            f"a volume only {min(scan.size)} voxels thick {scan.size}",
            f"at least {recipe.min_slices} for recipe {recipe.name}",
            "use a recipe for slices, or lower min_slices",
        )
    lowest = float(scan.voxels.min()) * scan.scale + scan.offset
    if recipe.window_kind == "hu" and lowest >= 0:
        raise BadStudy(
            f"CT intensities from {lowest:g} up, none below 0",
            "HU, in which fat and air are negative",
            "give the rescale slope and intercept of the source, or set window and window_kind",
        )


def _volume(recipe: Recipe, scan: Scan) -> Scan:
    assert scan.affine is not None, "a volume has an affine"
    voxels = torch.from_numpy(scan.voxels.astype(np.float32))
    voxels.mul_(scan.scale).add_(scan.offset)
    voxels, affine = orient(voxels, scan.affine)
    voxels, affine = resample(voxels, affine, recipe.spacing_mm, "bilinear")
    label = None if scan.label is None else _resample_label(recipe, scan, scan.label)
    out = _window(recipe, voxels).numpy()
    box = _foreground(out) if recipe.crop_foreground else tuple(slice(0, size) for size in out.shape[1:])
    before, after = _padding(recipe, tuple(part.stop - part.start for part in box))
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([part.start - pad for part, pad in zip(box, before, strict=True)])
    widths = list(zip(before, after, strict=True))
    stored, scale = _store(recipe, out[(slice(None), *box)])
    return Scan(
        voxels=np.pad(stored, [(0, 0), *widths]),
        spacing_mm=spacing_of(affine),
        modality=scan.modality or recipe.modality or "",
        affine=affine,
        label=None if label is None else np.pad(label[box], widths),
        scale=scale,
    )


def _resample_label(recipe: Recipe, scan: Scan, label: np.ndarray) -> np.ndarray:
    assert scan.affine is not None
    ids = torch.from_numpy(label.astype(np.float32))[None]
    ids, affine = orient(ids, scan.affine)
    ids, _ = resample(ids, affine, recipe.spacing_mm, "nearest")
    return ids[0].numpy().astype(label.dtype)


def _window(recipe: Recipe, voxels: Float[Tensor, "C *S"]) -> Float[Tensor, "C *S"]:
    """Take the window to [0, 1] in place."""
    for channel in voxels:
        low, high = _limits(recipe, channel)
        channel.sub_(low).div_(high - low).clamp_(0, 1)
    return voxels


def _limits(recipe: Recipe, channel: Float[Tensor, "*S"]) -> tuple[float, float]:
    if recipe.window_kind != "percentile":
        return recipe.window
    values = channel.numpy()
    values = values[values > values.min()]
    low, high = np.percentile(values, recipe.window) if values.size else (0.0, 0.0)
    if not low < high:
        raise BadStudy(
            f"the same intensity {low:g} at percentiles {recipe.window[0]:g} and {recipe.window[1]:g}",
            "contrast between them",
            "leave the study out, or set window",
        )
    return float(low), float(high)


def _foreground(voxels: Float[np.ndarray, "C *S"]) -> tuple[slice, ...]:
    """Return the smallest box of voxels above 0 in any channel."""
    mask = voxels.max(axis=0) > 0
    axes = range(mask.ndim)
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    if any(line.size == 0 for line in lines):
        raise BadStudy("no voxel above the window's lower end", "some foreground", "check intensities and window")
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)


def _padding(recipe: Recipe, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return voxels to add before and after each axis; an odd one goes after."""
    least = recipe.pad_to or (1,) * len(size)
    missing = [max(0, want - have) for want, have in zip(least, size, strict=True)]
    return tuple(gap // 2 for gap in missing), tuple(gap - gap // 2 for gap in missing)


def _store(recipe: Recipe, values: Float[np.ndarray, "C *S"]) -> tuple[np.ndarray, float]:
    """Return intensities in [0, 1] as the recipe stores them, and the scale that takes them back."""
    if recipe.levels is None:
        return values.astype(np.float16), 1.0
    scaled = values * np.float32(recipe.levels)
    if recipe.rounding == "nearest":
        np.rint(scaled, out=scaled)
    return scaled.astype(recipe.stored), 1.0 / recipe.levels


def _slices(volume: Scan) -> list[Scan]:
    return [
        Scan(
            voxels=np.ascontiguousarray(volume.voxels[:, d]),
            spacing_mm=volume.spacing_mm[1:],
            modality=volume.modality,
            affine=volume.affine,
            label=None if volume.label is None else np.ascontiguousarray(volume.label[d]),
            scale=volume.scale,
            offset=volume.offset,
            slice_index=d,
        )
        for d in range(volume.size[0])
    ]
