"""Recipes: geometry and labels survive, intensities land where the window says, misfits are refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from data.quarantine import BadStudy
from data.readers import read_study
from data.recipes import RECIPES, Recipe
from data.recipes.apply import apply
from data.recipes.window import background
from data.scan import Scan, is_sheared, spacing_of
from data.sources import SourceOptions, find_studies

PLAIN = Recipe(name="plain", kind="volume", window=(0, 1000), window_kind="value")
TURNS = [
    np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


UNIT = np.eye(4)[:, [2, 1, 0, 3]]  # voxels of 1 mm in RAS order


def volume_of(voxels: np.ndarray, affine: np.ndarray = UNIT, modality: str = "", offset: float = 0.0) -> Scan:
    return Scan(voxels, spacing_of(affine), modality, affine, offset=offset)


def ramp_scan(
    size: tuple[int, int, int] = (8, 12, 10), spacing: tuple[float, float, float] = (3.0, 2.0, 1.0)
) -> Scan:
    """A scan in RAS order whose intensity is linear in the world: 500 + x + 2 y + 3 z."""
    affine = np.array([[0, 0, spacing[2], -5], [0, spacing[1], 0, 7], [spacing[0], 0, 0, -11], [0, 0, 0, 1]], float)
    world = world_points(affine, size)
    voxels = (500 + world[0] + 2 * world[1] + 3 * world[2]).astype(np.float32)
    label = (np.indices(size).sum(axis=0) % 5).astype(np.uint8)
    return volume_of(voxels[None], affine).with_(label=label)


def world_points(affine: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    index = np.indices(size).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *size)


def turned(scan: Scan, turn: np.ndarray) -> Scan:
    """The same scan stored with other axes."""
    assert scan.affine is not None
    assert scan.label is not None
    affine = scan.affine @ inv_ornt_aff(turn, scan.size)
    voxels = np.ascontiguousarray(apply_orientation(scan.voxels[0], turn))
    label = np.ascontiguousarray(apply_orientation(scan.label, turn))
    return volume_of(voxels[None], affine).with_(label=label)


def values(scan: Scan) -> np.ndarray:
    return scan.voxels.astype(np.float64) * scan.scale + scan.offset


@pytest.mark.parametrize("turn", TURNS)
def test_any_axis_order_comes_out_as_the_same_volume_and_label(turn: np.ndarray) -> None:
    (straight,) = apply(PLAIN, ramp_scan())
    (other,) = apply(PLAIN, turned(ramp_scan(), turn))
    np.testing.assert_array_equal(other.voxels, straight.voxels)
    np.testing.assert_array_equal(other.label, straight.label)
    assert other.affine is not None
    assert straight.affine is not None
    np.testing.assert_allclose(other.affine, straight.affine, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    spacing=st.tuples(*[st.floats(0.8, 4.0)] * 3),
    angle=st.floats(-0.5, 0.5),
)
def test_a_world_point_keeps_its_intensity_through_resampling(
    turn: np.ndarray, spacing: tuple[float, float, float], angle: float
) -> None:
    scan = turned(ramp_scan(), turn)
    assert scan.affine is not None
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    (out,) = apply(PLAIN.with_fields(spacing_mm=spacing), scan.with_(affine=rotation @ scan.affine))
    assert out.affine is not None
    np.testing.assert_allclose(out.spacing_mm, spacing, atol=1e-3)  # MONAI resamples nothing that is that close
    x, y, z = world_points(np.linalg.inv(rotation) @ out.affine, out.size)
    expected = (500 + x + 2 * y + 3 * z) / 1000
    inside = (x >= -5) & (x <= 4) & (y >= 7) & (y <= 29) & (z >= -11) & (z <= 10)
    np.testing.assert_allclose(values(out)[0][inside], expected[inside], atol=2e-4)


def test_labels_are_resampled_to_ids_that_were_there() -> None:
    scan = ramp_scan()
    label = np.zeros(scan.size, np.uint16)
    label[2:6, 3:9, 2:8] = 417
    label[3:5, 4:6, 3:5] = 7
    (out,) = apply(PLAIN.with_fields(spacing_mm=(1, 1, 1)), scan.with_(label=label))
    assert out.label is not None
    assert out.label.dtype == np.uint16
    assert np.unique(out.label).tolist() == [0, 7, 417]
    assert (out.label > 0).sum() == pytest.approx(4 * 6 * 6 * 6, rel=0.15)


def test_doubling_the_voxels_uses_every_voxel_of_a_label_equally() -> None:
    scan = ramp_scan(size=(9, 4, 4), spacing=(5.0, 1.0, 1.0))
    planes = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None], scan.size).copy()
    (out,) = apply(PLAIN.with_fields(spacing_mm=(2.5, 1, 1)), scan.with_(label=planes))
    assert out.label is not None
    assert out.label[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]


def test_sheared_axes_become_orthogonal_and_world_points_keep_their_intensity() -> None:
    scan = ramp_scan(size=(10, 24, 20))
    assert scan.affine is not None
    tilt = np.eye(4)
    tilt[1, 0] = 0.8  # each slice lies 0.8 voxels of 2 mm further to anterior
    affine = scan.affine @ tilt
    x, y, z = world_points(affine, scan.size)
    sheared = volume_of((500 + x + 2 * y + 3 * z).astype(np.float32)[None], affine)
    assert is_sheared(affine)
    (out,) = apply(PLAIN.with_fields(spacing_mm=(3, 2, 1), window=(-1000, 1000)), sheared)
    assert out.affine is not None
    assert not is_sheared(out.affine)
    world = np.vstack([world_points(out.affine, out.size).reshape(3, -1), np.ones(out.voxels.size)])
    index = np.linalg.inv(affine) @ world
    inside = ((index[:3] >= 0) & (index[:3] <= np.array([[9], [23], [19]]))).all(axis=0)
    assert inside.mean() > 0.5
    x, y, z = world[:3, inside]
    expected = (1500 + x + 2 * y + 3 * z) / 2000
    np.testing.assert_allclose(values(out)[0].ravel()[inside], expected, atol=2e-4)
    with pytest.raises(BadStudy, match=r"sheared axes.*set the recipe's spacing_mm"):
        apply(PLAIN, sheared)


def test_the_window_takes_hu_to_unit_intensities_and_storage_keeps_them() -> None:
    hu = np.array([-2000, -500, -250, 0, 499, 500, 3000], np.int16)
    scan = volume_of(np.broadcast_to(hu, (1, 4, 4, 7)).copy(), modality="CT")
    recipe = RECIPES["ct_abdomen_slices"].with_fields(spacing_mm=None, crop_above=None, pad_to=(), kind="volume")
    (out,) = apply(recipe, scan)
    np.testing.assert_allclose(values(out)[0, 0, 0], [0, 0, 0.25, 0.5, 0.999, 1, 1], atol=1e-5)
    (coarse,) = apply(recipe.with_fields(stored="uint8", rounding="truncate"), scan)
    assert coarse.voxels[0, 0, 0].tolist() == [0, 0, 63, 127, 254, 255, 255]


def test_a_rescale_slope_and_intercept_count_before_the_window() -> None:
    stored = np.full((1, 4, 4, 4), 1024, np.uint16)
    stored[0, 0, 0, 0], stored[0, 1, 1, 1] = 0, 1274
    scan = volume_of(stored, modality="CT", offset=-1024.0)
    recipe = RECIPES["ct_volume"].with_fields(spacing_mm=None, window=(-500, 500), crop_above=None)
    (out,) = apply(recipe, scan)
    assert values(out)[0, 1, 1, 1] == pytest.approx(0.75, abs=1e-4)


def test_cropping_and_padding_move_the_affine_with_the_voxels() -> None:
    voxels = np.zeros((1, 6, 8, 8), np.float32)
    voxels[0, 2:5, 3:6, 4:7] = 900
    voxels[0, 3, 4, 5] = 700
    affine = np.array([[0, 0, 1.0, 10], [0, 1.0, 0, 20], [2.0, 0, 0, 30], [0, 0, 0, 1]])
    (out,) = apply(PLAIN.with_fields(crop_above=0, pad_to=(1, 8, 6)), volume_of(voxels, affine))
    assert out.size == (3, 8, 6)
    assert out.affine is not None
    (place,) = np.argwhere((values(out)[0] > 0.69) & (values(out)[0] < 0.71))
    np.testing.assert_allclose(out.affine @ [*place, 1], affine @ [3, 4, 5, 1])
    assert place.tolist() == [1, 1 + 2, 1 + 1]


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(*[st.integers(4, 30)] * 3), turn=st.sampled_from(TURNS))
def test_a_resized_volume_has_the_size_asked_for_and_world_points_keep_their_intensity(
    size: tuple[int, int, int], turn: np.ndarray
) -> None:
    (out,) = apply(PLAIN.with_fields(resize_to=size), turned(ramp_scan(), turn))
    assert out.size == size
    assert out.affine is not None
    x, y, z = world_points(out.affine, out.size)
    inside = (x >= -5) & (x <= 4) & (y >= 7) & (y <= 29) & (z >= -11) & (z <= 10)
    expected = (500 + x + 2 * y + 3 * z) / 1000
    np.testing.assert_allclose(values(out)[0][inside], expected[inside], atol=2e-4)
    np.testing.assert_allclose(np.prod(out.spacing_mm) * np.prod(size), 3 * 2 * 1 * 8 * 12 * 10, rtol=1e-6)


def test_a_foreground_is_cut_out_before_it_is_resized_and_its_label_moves_with_it() -> None:
    voxels = np.zeros((1, 10, 12, 14), np.float32)
    voxels[0, 2:6, 3:9, 4:12] = 500
    voxels[0, 3:5, 5:7, 6:10] = 900
    scan = volume_of(voxels).with_(label=(voxels[0] > 800).astype(np.uint8) * 7)
    (out,) = apply(PLAIN.with_fields(crop_above=0, resize_to=(8, 12, 16)), scan)
    assert values(out).min() == pytest.approx(0.5, abs=1e-4)
    assert out.label is not None
    assert np.unique(out.label).tolist() == [0, 7]
    assert (out.label == 7).sum() == 8 * (2 * 2 * 4)
    np.testing.assert_array_equal(out.label == 7, values(out)[0] > 0.65)
    assert out.spacing_mm == pytest.approx((0.5, 0.5, 0.5))


def test_pictures_and_slices_are_resized_too() -> None:
    colour = Scan(np.full((3, 40, 60), 100, np.uint8), (1.0, 1.0), "", scale=1 / 255)
    (picture,) = apply(RECIPES["natural"].with_fields(short_side=None, resize_to=(32, 64)), colour)
    assert picture.size == (32, 64)
    assert np.unique(picture.voxels).tolist() == [100]
    planes = apply(PLAIN.with_fields(kind="slices", resize_to=(5, 16, 8)), ramp_scan())
    assert [plane.size for plane in planes] == [(16, 8)] * 5


def test_voco_volumes_are_cut_to_the_body_and_tiled_by_bases_of_the_networks_size() -> None:
    hu = np.full((1, 20, 40, 40), -1000, np.int16)
    hu[0, 4:16, 10:30, 5:35] = 40
    (out,) = apply(RECIPES["ct_voco"], volume_of(hu, modality="CT"))
    assert out.size == (64, 4 * 64, 4 * 64)
    assert out.voxels.dtype == np.uint16
    assert values(out)[0, 32, 128, 128] == pytest.approx((40 + 175) / 425, abs=1e-4)
    np.testing.assert_allclose(np.array(out.spacing_mm) * out.size, [12, 20, 30], atol=3.1)  # at 1.5 mm before


def test_slices_of_a_volume_are_its_planes_in_order_with_their_labels() -> None:
    recipe = RECIPES["ct_abdomen_slices"].with_fields(window=(0, 1000), window_kind="value", modality=None)
    scan = ramp_scan(size=(20, 30, 40), spacing=(2.5, 1.0, 1.0))
    slices = apply(recipe, scan)
    (volume,) = apply(recipe.with_fields(kind="volume"), scan)
    assert [plane.slice_index for plane in slices] == list(range(20))
    assert volume.label is not None
    for d, plane in enumerate(slices):
        assert plane.voxels.shape == (1, 96, 96)
        assert plane.spacing_mm == (1.0, 1.0)
        np.testing.assert_array_equal(plane.voxels, volume.voxels[:, d])
        np.testing.assert_array_equal(plane.label, volume.label[d])


def test_percentiles_ignore_the_background() -> None:
    rng = np.random.default_rng(0)
    voxels = np.zeros((1, 10, 10, 10), np.float32)
    voxels[0, 5:] = rng.permutation(500).reshape(5, 10, 10) + 100
    (out,) = apply(PLAIN.with_fields(window=(10, 90), window_kind="percentile"), volume_of(voxels))
    inside = values(out)[0, 5:]
    assert (inside == 0).sum() == 50
    assert (inside == 1).sum() == 50


def brain(rng: np.random.Generator, size: tuple[int, int, int] = (24, 28, 26)) -> np.ndarray:
    """A skull-stripped brain: 84 % of the voxels are 0."""
    voxels = np.zeros((1, *size), np.float32)
    d, h, w = ((np.array(size) - np.array(size) * 0.54) / 2).astype(int)
    inside = voxels[0, d : size[0] - d, h : size[1] - h, w : size[2] - w]
    inside[:] = np.rint(rng.gamma(9, 40, inside.shape)) + 1
    return voxels


@pytest.mark.parametrize("spacing", [1.0, 1.3])
@pytest.mark.parametrize("num_negative", [1, 9])
@pytest.mark.parametrize("air", [0.0, 37.3])
def test_a_few_voxels_below_the_background_change_neither_crop_nor_scale(
    spacing: float, num_negative: int, air: float
) -> None:
    rng = np.random.default_rng(4)
    clean = brain(rng) + np.float32(air)
    odd = clean.copy()
    for _ in range(num_negative):
        d, h, w = rng.integers(0, 4), rng.integers(0, 28), rng.integers(0, 26)
        odd[0, d, h, w] = air - rng.integers(1, 60)
    affine = np.diag([spacing, spacing, spacing, 1.0])[:, [2, 1, 0, 3]]
    recipe = RECIPES["mri_brain"].with_fields(pad_to=())
    (expected,), (out,) = (apply(recipe, volume_of(voxels, affine, "MR")) for voxels in (clean, odd))
    assert expected.voxels.size < 0.5 * clean.size * spacing**3
    np.testing.assert_array_equal(out.voxels, expected.voxels)
    np.testing.assert_array_equal(out.affine, expected.affine)


def test_the_background_is_the_lowest_value_where_air_is_noise_and_the_lowest_common_one_elsewhere() -> None:
    rng = np.random.default_rng(5)
    noise = np.rint(np.hypot(*rng.normal(0, 10, (2, 50_000)))).astype(np.float32)
    assert background(noise) == noise.min()
    smooth = rng.normal(300, 50, 50_000).astype(np.float32)
    assert background(smooth) == smooth.min()
    masked = np.where(rng.random(50_000) < 0.3, np.float32(0), smooth)
    assert background(masked) == 0
    masked[:40] = -rng.integers(1, 2000, 40)
    assert background(masked) == 0
    masked[:1000] = -7
    assert background(masked) == masked.min(), "so many are no accident"


@pytest.mark.parametrize(
    ("scan", "recipe", "text"),
    [
        (ramp_scan().with_(modality="CT"), "ct_volume", "none below 0.*HU.*option rescale to the slope"),
        (ramp_scan().with_(modality="MR"), "ct_volume", "modality MR; expected CT .*another recipe"),
        (ramp_scan(), "xray", "3 spatial axes.*expected 2 .*choose a recipe"),
        (Scan(np.ones((1, 9, 9), np.uint8), (1.0, 1.0), ""), "mri_volume", "2 spatial axes.*expected 3"),
        (ramp_scan(size=(2, 9, 9)), "mri_volume", "only 2 voxels thick.*at least 4.*lower the recipe.s min_slices"),
    ],
)
def test_a_scan_that_a_recipe_does_not_fit_is_refused_in_words(scan: Scan, recipe: str, text: str) -> None:
    with pytest.raises(BadStudy, match=text):
        apply(RECIPES[recipe], scan)


def test_a_crop_that_leaves_nothing_is_refused() -> None:
    recipe = PLAIN.with_fields(window=(5000, 6000), crop_above=0)
    with pytest.raises(BadStudy, match="no voxel above 0 after the window"):
        apply(recipe, ramp_scan())


def test_intensities_under_a_negative_slope_are_hu_where_the_highest_stored_is_below_zero() -> None:
    scan = ramp_scan()
    inverted = scan.with_(voxels=-scan.voxels.astype(np.float32) + 500, scale=-1.0, offset=0.0, modality="CT")
    recipe = RECIPES["ct_volume"].with_fields(spacing_mm=None)
    np.testing.assert_array_equal(
        apply(recipe, inverted)[0].voxels,
        apply(recipe, scan.with_(voxels=scan.voxels - np.float32(500), modality="CT"))[0].voxels,
    )


@pytest.mark.parametrize(("window", "where"), [((5000, 6000), "at or below"), ((-9000, -8000), "at or above")])
@pytest.mark.parametrize("kind", ["volume", "slices", "image"])
def test_a_window_that_leaves_nothing_of_a_scan_is_refused(
    kind: str, window: tuple[float, float], where: str
) -> None:
    """Kind: all voxels became 0 or all 1, and all such scans were called copies of the first one."""
    scan = ramp_scan()
    if kind == "image":
        scan = Scan(scan.voxels[:, 0], (1.0, 1.0), "")
    recipe = PLAIN.with_fields(kind=kind, window=window, num_channels=1 if kind == "image" else None)
    with pytest.raises(BadStudy, match=f"every voxel {where} the window .*; set the recipe's window"):
        apply(recipe, scan)


def test_pictures_get_the_channels_and_the_size_that_the_recipe_says() -> None:
    colour = np.zeros((3, 40, 60), np.uint8)
    colour[0], colour[1], colour[2] = 200, 100, 50
    colour[:, :, :10] = 10
    scan = Scan(colour, (1.0, 1.0), "", scale=1 / 255)
    (grey,) = apply(RECIPES["natural"].with_fields(num_channels=1, short_side=20), scan)
    assert grey.voxels.shape == (1, 20, 30)
    assert values(grey)[0, 10, 20] == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, abs=1 / 255)
    (fundus,) = apply(RECIPES["fundus"], scan)
    assert fundus.voxels.shape == (3, 40, 50)
    assert fundus.voxels[:, 5, 5].tolist() == [200, 100, 50]


def test_a_recipe_digest_changes_with_every_field_and_with_nothing_else() -> None:
    recipe = RECIPES["ct_volume"]
    assert recipe.digest == Recipe.model_validate(recipe.model_dump()).digest
    assert len({recipe.digest for recipe in RECIPES.values()}) == len(RECIPES)
    assert recipe.with_fields(spacing_mm=(2, 2, 2)).digest != recipe.digest
    assert recipe.with_fields(spacing_mm=[1.5, 1.5, 1.5]).digest == recipe.digest


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("ct_volume", {"window": (500, -500)}, "lower value first"),
        ("mri_volume", {"window": (1, 101)}, "percentiles are from 0 to 100"),
        ("ct_volume", {"pad_to": (96, 96)}, "2 sizes; expected 3"),
        ("ct_voco", {"resize_to": (256, 256)}, "2 sizes; expected 3"),
        ("ct_voco", {"pad_to": (96, 96, 96)}, "resize_to .* beside pad_to.*give one of the two"),
        ("xray", {"resize_to": (256, 256)}, "resize_to .* beside short_side.*give one of the two"),
        ("ct_volume", {"spacing_mm": (0, 1, 1)}, "greater than 0"),
        ("ct_volume", {"spacing": (2, 2, 2)}, "Extra inputs are not permitted"),
        ("xray", {"spacing_mm": (1, 1, 1)}, "no spacing_mm"),
        ("ct_volume", {"num_channels": 3}, "for pictures"),
    ],
)
def test_a_wrong_field_is_an_error_that_says_why(name: str, changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RECIPES[name].with_fields(**changes)


def test_a_real_ct_keeps_every_organ_and_its_volume(scans: Path) -> None:
    options = SourceOptions(images="ok.nii.gz", labels="ok_labels.nii.gz", modality="CT")
    (study,) = find_studies(str(scans / "odd/derived"), "volumes", options)
    scan = read_study(study)
    (out,) = apply(RECIPES["ct_volume"].with_fields(spacing_mm=(4.5, 4.5, 4.5), crop_above=None), scan)
    assert scan.label is not None
    assert out.label is not None
    before, after = np.bincount(scan.label.ravel(), minlength=118), np.bincount(out.label.ravel(), minlength=118)
    assert set(np.flatnonzero(before)) == set(np.flatnonzero(after))
    core = scan.label[1:-1, 1:-1, 1:-1]  # an organ at the border loses half a voxel there
    whole = [i for i in range(1, 118) if before[i] > 30 and (core == i).sum() == before[i]]
    assert len(whole) > 10
    np.testing.assert_allclose(after[whole] * 4.5**3, before[whole] * 9.0**3, rtol=0.02)
