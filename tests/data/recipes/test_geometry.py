"""Geometry against independent answers: SimpleITK, intensities that are world coordinates, centroids of shapes."""

from fractions import Fraction

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from scipy.spatial.transform import Rotation

from data.quarantine import BadStudy
from data.recipes import RECIPES, Recipe
from data.recipes.apply import apply
from data.scan import Scan, is_sheared, spacing_of

NUM_VOLUMES = 200
PLAIN = Recipe(name="plain", kind="volume", window=(0, 1), window_kind="value")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def bare(name: str, window: tuple[float, float] = (0, 1)) -> Recipe:
    """A recipe's grid alone: no crop, no padding, and a small size where it resizes."""
    recipe = RECIPES[name]
    resized = {"resize_to": (6, 9, 8)} if recipe.resize_to else {}
    return recipe.with_fields(
        modality=None, crop_above=None, pad_to=(), min_slices=1, window_kind="value", stored="uint16",
        rounding="nearest", window=window, **resized,
    )  # fmt: skip


# Recipes that resample, and differ in their grid; the others have the grid of one of these, or keep the stored one.
RESAMPLING = [name for name, recipe in RECIPES.items() if recipe.kind != "image" and recipe.spacing_mm]
GRIDS = list({bare(name).with_fields(name="").digest: name for name in RESAMPLING}.values())


def random_affine(rng: np.random.Generator, near_mm: tuple[float, ...], size: tuple[int, ...]) -> np.ndarray:
    """Axes in any order and direction, oblique half of the time; voxels often a simple multiple of those wanted."""
    ratios = np.where(
        rng.random(3) < 0.5, rng.choice([1 / 3, 1 / 2, 2 / 3, 1, 4 / 3, 2, 3], 3), rng.uniform(0.4, 3, 3)
    )
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    if rng.random() < 0.5:
        axes = Rotation.from_rotvec(rng.uniform(-0.5, 0.5, 3)).as_matrix() @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(near_mm) * ratios * (1 + rng.uniform(-1e-7, 1e-7, 3))  # as float32 headers hold
    affine[:3, 3] = -affine[:3, :3] @ (np.array(size) - 1) / 2  # the world's origin is the volume's centre
    return affine


def ramps(affine: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Three channels that hold the world coordinates x, y, z of each voxel in mm."""
    index = np.indices(size).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *size).astype(np.float32)


def as_volume(scans: list[Scan]) -> Scan:
    """Join the slices of a volume."""
    if scans[0].spatial_dims == 3:
        return scans[0]
    label = None if scans[0].label is None else np.stack([scan.label for scan in scans if scan.label is not None])
    assert scans[0].affine is not None
    voxels = np.stack([scan.voxels for scan in scans], axis=1)
    return scans[0].with_(voxels=voxels, label=label, spacing_mm=spacing_of(scans[0].affine), slice_index=None)


def places(out: Scan, affine: np.ndarray) -> np.ndarray:
    """Return for each voxel its index in the volume that it was made of, (3, D, H, W)."""
    assert out.affine is not None
    to_old = np.linalg.inv(affine) @ out.affine
    index = np.indices(out.size).reshape(3, -1)
    return (to_old[:3, :3] @ index + to_old[:3, 3:]).reshape(3, *out.size)


def itk_image(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    columns = (_LPS_TO_RAS @ affine[:3, :3])[:, ::-1]
    spacing = np.linalg.norm(columns, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns / spacing).ravel().tolist())
    image.SetOrigin((_LPS_TO_RAS @ affine[:3, 3]).tolist())
    return image


def itk_resampled(voxels: np.ndarray, affine: np.ndarray, out: Scan) -> np.ndarray:
    """Interpolate linearly at the voxels of ``out``, by SimpleITK."""
    assert out.affine is not None
    target = itk_image(np.zeros(out.size, np.float32), out.affine)
    image = sitk.Resample(itk_image(voxels, affine), target, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(image)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_random_volumes_come_out_where_simpleitk_puts_them_and_no_plane_is_invented(name: str) -> None:
    rng = np.random.default_rng(GRIDS.index(name))
    spacing = RECIPES[name].spacing_mm
    assert spacing is not None
    for _ in range(NUM_VOLUMES):
        size = tuple(rng.integers(2, 7, 3).tolist())
        affine = random_affine(rng, spacing, size)
        world, noise = ramps(affine, size), rng.random(size, dtype=np.float32)
        reach = float(np.abs(world).max()) + 0.1
        recipe = bare(name, (-reach, reach))
        scan = Scan(np.concatenate([world, noise[None] * reach]), spacing_of(affine), "", affine)
        out = as_volume(apply(recipe, scan))
        assert out.affine is not None
        at = places(out, affine)
        beyond = np.maximum(-at, at - np.array(size).reshape(3, 1, 1, 1) + 1).max(axis=0)
        if (
            recipe.resize_to
        ):  # what is stretched to a size ends between the voxels of a volume that ends before the scan
            inside = beyond < -1.5 * max(np.array(spacing) / spacing_of(affine))
        else:
            inside = beyond < 1e-3
            assert inside.all()
        values = (out.voxels * 2.0 / 65535 - 1) * reach
        asked = (out.affine[:3, :3] @ np.indices(out.size).reshape(3, -1) + out.affine[:3, 3:]).reshape(3, *out.size)
        np.testing.assert_array_less(np.abs(values[:3] - asked)[:, inside], 1e-3)
        if not recipe.resize_to:  # there voxels are interpolated twice
            strictly = beyond < -1e-4
            expected = itk_resampled(noise, affine, out)
            np.testing.assert_allclose((values[3] / reach)[strictly], expected[strictly], atol=1e-3)


RATIOS = [Fraction(*pair) for pair in (
    (1, 2), (1, 3), (1, 4), (2, 3), (3, 4), (1, 1), (5, 6), (6, 5), (5, 4), (3, 2), (5, 3), (2, 1), (5, 2), (3, 1),
)]  # fmt: skip


def shape_in(rng: np.random.Generator, size: tuple[int, ...], is_box: bool, least: float = 2) -> np.ndarray:
    """A sphere or a box of any size, away from the borders."""
    index = np.moveaxis(np.indices(size), 0, -1)
    centre, radii = rng.uniform(6, np.array(size) - 7, 3), rng.uniform(least, 5, 3)
    if is_box:
        return (np.abs(index - centre) <= radii).all(axis=-1)
    return (((index - centre) / radii[0]) ** 2).sum(axis=-1) <= 1


def centroid(weights: np.ndarray) -> np.ndarray:
    index = np.indices(weights.shape).reshape(3, -1)
    return index @ weights.ravel() / weights.sum()


def shift_of_labels(ratio: Fraction, rng: np.random.Generator, resize: bool) -> np.ndarray:
    """Return how far the label of each of 20 shapes lies from its image, in new voxels along each axis."""
    size = (20, 20, 20)
    spacing = tuple((1 + rng.uniform(-1e-7, 1e-7, 3)).tolist())
    affine = np.diag([*spacing[::-1], 1.0])[:, [2, 1, 0, 3]]
    changes = {"resize_to": tuple(int(20 / ratio) for _ in size)} if resize else {"spacing_mm": (float(ratio),) * 3}
    recipe = PLAIN.with_fields(**changes)
    apart = []
    for number in range(20):
        shape = shape_in(rng, size, is_box=number % 2 == 0)
        scan = Scan(shape[None].astype(np.float32), spacing, "", affine, label=shape.astype(np.uint8))
        (out,) = apply(recipe, scan)
        assert out.label is not None
        apart.append(centroid(out.label) - centroid(out.voxels[0]))
    return np.array(apart)


@pytest.mark.slow
@pytest.mark.parametrize("resize", [False, True])
def test_labels_of_spheres_and_boxes_lie_on_their_images_at_every_ratio_of_voxel_sizes(resize: bool) -> None:
    rng = np.random.default_rng(7)
    ratios = [ratio for ratio in RATIOS if not resize or (20 / ratio).denominator == 1]
    shifts = {ratio: shift_of_labels(ratio, rng, resize) for ratio in ratios}
    assert sum(map(len, shifts.values())) >= 200
    for ratio, apart in shifts.items():
        error = 3 * apart.std() / apart.size**0.5
        assert abs(apart.mean()) < 0.05 + error, ratio
    together = np.concatenate(list(shifts.values()))
    assert np.abs(together.mean(axis=0)).max() < 0.05


def test_a_label_has_the_shape_of_its_image_where_the_voxel_size_is_halved() -> None:
    rng = np.random.default_rng(1)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])[:, [2, 1, 0, 3]]
    recipe = PLAIN.with_fields(spacing_mm=(2.5, 2.5, 2.5))
    for _ in range(10):
        shape = shape_in(rng, (20, 20, 20), is_box=False, least=4)
        scan = Scan(shape[None].astype(np.float32), (5.0, 5.0, 5.0), "", affine, label=shape.astype(np.uint8))
        (out,) = apply(recipe, scan)
        assert out.label is not None
        image, label = out.voxels[0] >= 32768, out.label == 1
        assert 2 * (image & label).sum() / (image.sum() + label.sum()) > 0.96
        np.testing.assert_allclose(centroid(label), centroid(image), atol=0.02)


@pytest.mark.parametrize("spacing", [(5.0, 0.7, 0.7), (1.0, 1.0, 1.0), (2.0, 1.5, 1.5)])
def test_an_oblique_volume_has_the_grid_of_a_straight_one_whatever_the_rounding(spacing: tuple[float, ...]) -> None:
    """Expected: first voxel on first voxel (or the known shift from ties), and as many planes as fit."""
    rng = np.random.default_rng(2)
    size = (12, 20, 16)
    straight = np.diag([*spacing[::-1], 1.0])[:, [2, 1, 0, 3]]
    recipe = PLAIN.with_fields(spacing_mm=(1.0, 1.0, 1.0))
    voxels = rng.random((1, *size), dtype=np.float32)
    (expected,) = apply(recipe, Scan(voxels, spacing, "", straight))
    for _ in range(30):
        affine = straight.copy()
        affine[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, 3)).as_matrix() @ straight[:3, :3]
        affine[:3, :3] += rng.uniform(-1e-7, 1e-7, (3, 3))
        affine[:3, 3] = rng.uniform(-200, 200, 3)
        (out,) = apply(recipe, Scan(voxels, spacing_of(affine), "", affine))
        assert out.size == expected.size
        np.testing.assert_allclose(places(out, affine), places(expected, straight), atol=1e-4)
        assert np.abs(out.voxels.astype(int) - expected.voxels).max() <= 20


@pytest.mark.parametrize("tilt", [-0.9, -0.3, 0.3, 0.9])
def test_every_plane_of_an_untilted_volume_has_scanned_voxels_and_only_tips_of_corners_are_lost(tilt: float) -> None:
    size, spacing = (8, 20, 10), (4.0, 1.5, 1.5)
    affine = np.diag([*spacing[::-1], 1.0])[:, [2, 1, 0, 3]]
    affine[1, 0] = tilt * 2  # each slice lies further to anterior, or to posterior
    assert is_sheared(affine)
    recipe = PLAIN.with_fields(spacing_mm=(2.0, 1.0, 1.0))
    (out,) = apply(recipe, Scan(np.random.default_rng(3).random((1, *size), dtype=np.float32), spacing, "", affine))
    at = places(out, affine)
    last = np.array(size).reshape(3, 1, 1, 1) - 1
    inside = np.logical_and(at >= -1e-3, at <= last + 1e-3).min(axis=0)
    for axis in range(3):
        assert np.moveaxis(inside, axis, 0).reshape(out.size[axis], -1).any(axis=1).all()
    assert out.affine is not None
    corners = np.array(np.meshgrid(*[(0, extent - 1) for extent in size], (1,), indexing="ij")).reshape(4, -1)
    index = (np.linalg.inv(out.affine) @ affine @ corners)[:3]
    assert index.min() > -2
    assert (index.max(axis=1) < np.array(out.size) + 1).all()


def test_a_header_whose_voxels_would_fill_the_memory_is_refused() -> None:
    affine = np.diag([150.0, 150.0, 150.0, 1.0])[:, [2, 1, 0, 3]]
    scan = Scan(np.random.default_rng(0).random((1, 20, 20, 20), dtype=np.float32), (150.0,) * 3, "", affine)
    with pytest.raises(BadStudy, match=r"20 x 20 x 20 voxels of 150 .*, or 2851 x .* of 1 x 1 x 1 mm; .*spacing"):
        apply(RECIPES["mri_volume"], scan)
