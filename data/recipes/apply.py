"""apply: preprocess one scan by one recipe into the samples to store, with intensities in [0, 1] as integers."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Integer
from torch import Tensor

from data.box_rule import LabelBoxes
from data.boxes import Boxes
from data.label_boxes import label_boxes
from data.quarantine import BadStudy
from data.recipes.geometry import orient, resample, resize
from data.recipes.nearest import resample_label
from data.recipes.recipe import Recipe
from data.recipes.window import window
from data.scan import Scan, spacing_of

_LUMA = (0.299, 0.587, 0.114)


def apply(recipe: Recipe, scan: Scan, rule: LabelBoxes | None = None) -> list[Scan]:
    """Preprocess a scan: orient, resample, window, crop, resize, pad, store; slices of a volume come in order of D.

    Voxels are stored so that ``voxel * scale + offset`` is the intensity in [0, 1]. Labels keep their values,
    boxes go where their voxels go, and a slice has those that cut it. A slice's ``affine`` is its volume's: it takes
    (slice_index, h, w, 1). With a ``rule``, a scan's boxes are those of its label map as it is stored. Raises
    BadStudy for a scan that does not fit the recipe.
    """
    _check_fit(recipe, scan)
    if recipe.kind == "image":
        return [_image(recipe, scan)]
    volume = _volume(recipe, scan)
    if rule is not None and volume.label is not None:
        volume = volume.with_(boxes=label_boxes(volume.label, rule))
    return _slices(volume) if recipe.kind == "slices" else [volume]


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
            f"choose another recipe, or set its modality (--set modality={scan.modality})",
        )
    if min(scan.size) < recipe.min_slices:
        raise BadStudy(
            f"a volume only {min(scan.size)} voxels thick {scan.size}",
            f"at least {recipe.min_slices} for recipe {recipe.name}",
            "use a recipe for slices, or lower the recipe's min_slices (--set min_slices=1)",
        )
    ends = float(scan.voxels.min()), float(scan.voxels.max())  # a slope may be negative
    lowest = min(ends[0] * scan.scale, ends[1] * scan.scale) + scan.offset
    if recipe.window_kind == "hu" and lowest >= 0:
        raise BadStudy(
            f"CT intensities from {lowest:g} up, none below 0",
            "HU, in which fat and air are negative",
            "set option rescale to the slope and the intercept of the source, or the recipe's window and window_kind",
        )


def _intensities(scan: Scan) -> Float[Tensor, "C *S"]:
    """Return a float32 copy in the scan's units."""
    return torch.from_numpy(scan.voxels.astype(np.float32)).mul_(scan.scale).add_(scan.offset)


def _image(recipe: Recipe, scan: Scan) -> Scan:
    values = window(recipe, _channels(_intensities(scan), recipe.num_channels or 1))
    box = _box(recipe, values.numpy())
    _check_contrast(recipe, values)
    values = values[(slice(None), *box)]
    cropped = tuple(values.shape[1:])
    size = _picture_size(recipe, cropped)
    if size != cropped:
        values = F.interpolate(values[None], size, mode="bilinear", antialias=True)[0].clamp_(0, 1)
    before, after = _padding(recipe, tuple(values.shape[1:]))
    stored, scale = _store(recipe, values.numpy())
    padded = np.pad(stored, [(0, 0), *zip(before, after, strict=True)])
    boxes = None
    if scan.boxes is not None:
        low, high = ([part.start for part in box], [part.stop for part in box])
        boxes = _padded(scan.boxes.cropped(np.array(low), np.array(high)).resized(cropped, size), size, before, after)
    return Scan(padded, (1.0, 1.0), scan.modality or recipe.modality or "", scale=scale, boxes=boxes)


def _picture_size(recipe: Recipe, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size at which a picture is stored."""
    if recipe.resize_to:
        return recipe.resize_to
    if recipe.short_side and min(size) > recipe.short_side:
        return tuple(round(extent * recipe.short_side / min(size)) for extent in size)
    return size


def _channels(values: Float[Tensor, "C H W"], wanted: int) -> Float[Tensor, "C2 H W"]:
    """Return one grey channel (luma of ITU-R BT.601, as in JPEG) or three."""
    if len(values) == wanted:
        return values
    return torch.einsum("chw,c->hw", values, torch.tensor(_LUMA))[None] if wanted == 1 else values.expand(3, -1, -1)


def _volume(recipe: Recipe, scan: Scan) -> Scan:
    assert scan.affine is not None, "a volume has an affine"
    voxels, affine = orient(_intensities(scan), scan.affine)
    voxels, affine = resample(voxels, affine, recipe.spacing_mm)
    voxels = window(recipe, voxels)
    box = _box(recipe, voxels.numpy())
    _check_contrast(recipe, voxels)
    voxels, affine = voxels[(slice(None), *box)], _moved(affine, [part.start for part in box])
    if recipe.resize_to:
        voxels, affine = resize(voxels, affine, recipe.resize_to)
    size = tuple(voxels.shape[1:])
    label = None if scan.label is None else _label_on(scan, affine, size)
    before, after = _padding(recipe, size)
    boxes = None
    if scan.boxes is not None:
        boxes = _padded(scan.boxes.moved(np.linalg.inv(affine) @ scan.affine, size), size, before, after)
    affine = _moved(affine, [-pad for pad in before])
    widths = list(zip(before, after, strict=True))
    stored, scale = _store(recipe, voxels.numpy())
    return Scan(
        voxels=np.pad(stored, [(0, 0), *widths]),
        spacing_mm=spacing_of(affine),
        modality=scan.modality or recipe.modality or "",
        affine=affine,
        label=None if label is None else np.pad(label, widths),
        scale=scale,
        boxes=boxes,
    )


def _moved(affine: Float64[np.ndarray, "4 4"], voxels: list[int]) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of an array that begins ``voxels`` further along each axis."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(voxels)
    return moved


def _label_on(scan: Scan, affine: Float64[np.ndarray, "4 4"], size: tuple[int, ...]) -> Integer[np.ndarray, "D H W"]:
    """Return the scan's label on a new grid, its values unchanged."""
    assert scan.label is not None
    assert scan.affine is not None
    ids, old_affine = orient(torch.from_numpy(scan.label.astype(np.int32))[None], scan.affine)
    return resample_label(ids[0].numpy(), old_affine, affine, size).astype(scan.label.dtype)


def _box(recipe: Recipe, voxels: Float[np.ndarray, "C *S"]) -> tuple[slice, ...]:
    """Return the smallest box of voxels above ``crop_above`` in any channel, or the whole."""
    if recipe.crop_above is None:
        return tuple(slice(0, size) for size in voxels.shape[1:])
    mask = voxels.max(axis=0) > recipe.crop_above
    lines = [np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1) for axis in range(mask.ndim)]
    inside = [np.flatnonzero(line.any(axis=1)) for line in lines]
    if not mask.any():
        raise BadStudy(
            f"no voxel above {recipe.crop_above:g} after the window {recipe.window}",
            "some foreground",
            "check the intensities, the window and its kind",
        )
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in inside)


def _check_contrast(recipe: Recipe, voxels: Float[Tensor, "C *S"]) -> None:
    """Raise BadStudy where the window leaves nothing of a scan: studies that are all 0 or all 1 look like copies."""
    low, high = map(float, torch.aminmax(voxels))
    if low == high and low in (0, 1):
        raise BadStudy(
            f"every voxel {'at or below' if low == 0 else 'at or above'} the window {recipe.window}",
            "intensities inside the window",
            "set the recipe's window to the scan's intensities (--set window='[LOW,HIGH]'), or option rescale",
        )


def _padding(recipe: Recipe, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return voxels to add before and after each axis; an odd voxel goes after."""
    least = recipe.pad_to or (1,) * len(size)
    missing = [max(0, want - have) for want, have in zip(least, size, strict=True)]
    return tuple(gap // 2 for gap in missing), tuple(gap - gap // 2 for gap in missing)


def _padded(boxes: Boxes, size: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Boxes:
    """Return the boxes of an array that gets voxels before and after each axis."""
    return boxes.cropped(-np.array(before), np.add(size, after))


def _store(recipe: Recipe, values: Float[np.ndarray, "C *S"]) -> tuple[np.ndarray, float]:
    """Return intensities in [0, 1] as the recipe stores them, and the scale that restores them."""
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
            boxes=None if volume.boxes is None else volume.boxes.of_plane(d),
        )
        for d in range(volume.size[0])
    ]
