"""Boxes of findings stay on their voxels, from the scan through recipe, shards and batch to the view."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.boxes import Boxes
from data.labels import BOXES
from data.recipes import Recipe
from data.recipes.apply import apply
from data.scan import Scan
from data.shards import bundles
from data.shards.bundles import Bundle, BundleJob, run_bundle
from data.shards.check import describe
from data.shards.index import IndexCard, ShardSet, write_index
from data.shards.reader import ShardReader
from data.shards.writer import Sample, to_row, write_shard
from data.sources import Study
from data.views.augmentation import Augmentation, cut, cut_boxes, draw, move, move_boxes
from data.views.batch import Batch
from data.views.boxes import boxes_at, uniform_boxes
from data.views.collate import collate
from data.views.rng import SampleRng
from tests.cuboids import FIRST_CLASS, bounds, check_boxes, cuboids, scan_of

PLAIN = Recipe(name="plain", kind="volume", window=(0, 1), window_kind="value")
PICTURE = Recipe(name="picture", kind="image", window=(0, 1), window_kind="value", num_channels=3)
SEEDS = st.integers(0, 2**32 - 1)
AXES = list(itertools.product(itertools.permutations(range(3)), itertools.product((1.0, -1.0), repeat=3)))
SIZES = [(20, 20), (24, 17), (9, 12, 12)]
EVERY_MOVE = Augmentation(zoom=(0.6, 1.7), zoom_prob=0.7, flip_axes=("D", "H", "W"), flip_prob=0.5, rotate_prob=0.7)


def affine_of(turn: tuple, spacing_mm: tuple[float, ...], tilt: float = 0.0) -> np.ndarray:
    """Axes in any order and direction, or a little oblique."""
    order, signs = turn
    axes = Rotation.from_rotvec([tilt, tilt / 2, -tilt]).as_matrix() @ (np.eye(3)[:, list(order)] * signs)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = (3.0, -20.0, 11.0)
    return affine


def intensities(scan: Scan) -> np.ndarray:
    return scan.voxels.astype(np.float64) * scan.scale + scan.offset


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(SEEDS, st.sampled_from(AXES), st.booleans(), st.booleans())
def test_a_scan_that_is_turned_cropped_and_padded_keeps_its_boxes_to_the_voxel(seed, turn, is_cropped, is_padded):
    rng = np.random.default_rng(seed)
    scan = scan_of(rng, affine_of(turn, (2.0, 1.0, 1.5)), (9, 12, 10), 3, least=1)
    recipe = PLAIN.with_fields(crop_above=0.5 if is_cropped else None, pad_to=(13, 13, 14) if is_padded else ())
    (out,) = apply(recipe, scan)
    assert out.boxes is not None
    assert out.boxes.classes.tolist() == [FIRST_CLASS, FIRST_CLASS + 1, FIRST_CLASS + 2]
    check_boxes(intensities(out), out.boxes, within=0)


@pytest.mark.slow
@settings(deadline=None, max_examples=120)
@given(
    seed=SEEDS,
    turn=st.sampled_from(AXES),
    tilt=st.sampled_from([0.0, 0.3]),
    old=st.tuples(*[st.sampled_from([0.8, 1.0, 1.5, 2.0]) | st.floats(0.7, 2.5)] * 3),
    new=st.tuples(*[st.sampled_from([0.8, 1.0, 1.5, 2.0]) | st.floats(0.7, 2.5)] * 3),
    resize_to=st.tuples(*[st.integers(14, 40)] * 3),
    is_resized=st.booleans(),
    is_cropped=st.booleans(),
)
def test_a_scan_that_is_resampled_or_resized_keeps_its_boxes_to_a_voxel(
    seed, turn, tilt, old, new, resize_to, is_resized, is_cropped
):
    rng = np.random.default_rng(seed)
    scan = scan_of(rng, affine_of(turn, old, tilt), (24, 22, 26), 3, least=8)
    change = {"resize_to": resize_to} if is_resized else {"spacing_mm": new}
    recipe = PLAIN.with_fields(crop_above=0.5 if is_cropped else None, **change)
    (out,) = apply(recipe, scan)
    check_boxes(intensities(out), out.boxes, within=1)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(-0.9, 0.9))
def test_boxes_of_a_tilted_gantry_hold_their_cuboids(seed, tilt):
    rng = np.random.default_rng(seed)
    affine = np.diag([1.5, 1.5, 4.0, 1.0])[:, [2, 1, 0, 3]]
    affine[1, 0] = tilt
    scan = scan_of(rng, affine, (10, 20, 16), 2, least=4)
    (out,) = apply(PLAIN.with_fields(spacing_mm=(2.0, 1.0, 1.0)), scan)
    assert out.boxes is not None
    held = dict(zip(out.boxes.classes.tolist(), out.boxes.corners, strict=True))
    for number, channel in enumerate(intensities(out), FIRST_CLASS):
        seen = bounds(channel >= 0.5)
        assert seen is not None
        assert (held[number][0] <= seen[0] + 1).all()
        assert (held[number][1] >= seen[1] - 1).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from(AXES), st.booleans())
def test_each_slice_has_the_boxes_that_cut_it_and_no_others(seed, turn, is_padded):
    rng = np.random.default_rng(seed)
    scan = scan_of(rng, affine_of(turn, (1.0, 1.0, 1.0)), (8, 12, 10), 3, least=1)
    slices = apply(PLAIN.with_fields(kind="slices", pad_to=(14, 14, 14) if is_padded else ()), scan)
    assert len(slices) in ((14,) if is_padded else (8, 10, 12))
    for one in slices:
        assert one.boxes is not None
        lit = [number for number, plane in enumerate(one.voxels, FIRST_CLASS) if plane.any()]
        assert one.boxes.classes.tolist() == lit
        check_boxes(intensities(one), one.boxes, within=0)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.tuples(st.integers(20, 40), st.integers(20, 40)), st.integers(0, 2), st.booleans())
def test_a_picture_that_is_resized_cropped_and_padded_keeps_its_boxes_to_a_pixel(seed, size, how, is_cropped):
    voxels, boxes = cuboids(np.random.default_rng(seed), size, 3, least=6)
    change = ({"short_side": 17}, {"resize_to": (31, 25)}, {"pad_to": (45, 45)})[how]
    recipe = PICTURE.with_fields(crop_above=0.5 if is_cropped else None, **change)
    (out,) = apply(recipe, Scan(voxels, (1.0, 1.0), "", boxes=boxes))
    check_boxes(intensities(out), out.boxes, within=0 if how == 2 else 1)


def streams(count: int, seed: int) -> SampleRng:
    return SampleRng.for_samples(seed, np.zeros(count, np.int64), [str(i) for i in range(count)])


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(SIZES))
def test_boxes_are_zoomed_flipped_and_turned_with_their_views(seed, size):
    phantoms = [cuboids(np.random.default_rng([seed, number]), size, 3, least=3) for number in range(6)]
    images, boxes = torch.from_numpy(np.stack([voxels for voxels, _ in phantoms])), [own for _, own in phantoms]
    drawn = draw(EVERY_MOVE, size, streams(6, seed))
    moved, zoomed = move_boxes(boxes, drawn, size), drawn.zoom != 1
    for view, own, has_zoom in zip(move(images, drawn).numpy(), moved, zoomed, strict=True):
        check_boxes(view, own, within=int(has_zoom))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(SIZES))
def test_boxes_are_cut_with_their_crops_and_dropped_outside(seed, size):
    voxels, boxes = cuboids(np.random.default_rng(seed), size, 4)
    crops = uniform_boxes(np.array([size] * 5), tuple(length // 2 for length in size), streams(5, seed))
    for own, (low, high) in zip(cut_boxes([boxes] * 5, crops), crops.tolist(), strict=True):
        crop = voxels[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))]
        assert own.classes.tolist() == [n for n, channel in enumerate(crop, FIRST_CLASS) if channel.any()]
        check_boxes(crop, own, within=0)


def test_a_crop_that_exceeds_its_sample_is_padded_with_its_boxes():
    own = Boxes(np.array([[[0, 1], [2, 4]]]), np.array([7]))
    (moved,) = cut_boxes([own], np.array([[[-3, 0], [9, 9]]]))
    assert moved.corners.tolist() == [[[3, 1], [5, 4]]]


def batch_of(samples: list[Scan], folder: Path) -> Batch:
    """Send scans through shards and collate."""
    rows = [to_row(Sample(scan, f"s{n}", f"p{n}", f"s{n}", "set", "train")) for n, scan in enumerate(samples)]
    file = write_shard(str(folder), "train-00000", [rows[at : at + 2] for at in range(0, len(rows), 2)])
    assert file is not None
    write_index(str(folder), [file], IndexCard({"name": "test"}, box_names={FIRST_CLASS: "nodule"}))
    table = ShardReader(ShardSet.open(str(folder)), BOXES).read(np.arange(len(rows)))
    zeros = [np.zeros(len(rows), np.int64)]
    return collate(table.append_column("number", zeros).append_column("epoch", zeros).append_column("row", zeros))


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, kind=st.sampled_from(["volume", "slices"]))
def test_boxes_reach_the_view_through_every_step(tmp_path_factory, seed, kind):
    rng = np.random.default_rng(seed)
    affine = affine_of(AXES[seed % len(AXES)], (1.3, 1.0, 1.6))
    scan = scan_of(rng, affine, (26, 25, 27), 3, least=8)
    recipe = PLAIN.with_fields(kind=kind, spacing_mm=(1.5, 1.2, 1.2), crop_above=0.5, pad_to=(24, 30, 30))
    scans = apply(recipe, scan)[:6]
    batch = batch_of(scans, tmp_path_factory.mktemp("shards"))
    assert batch.boxes is not None
    findings = [own for own in batch.boxes if own is not None]
    assert len(findings) == len(batch)
    for voxels, own, extent in zip(batch.voxels.numpy(), findings, batch.extents, strict=True):
        check_boxes(voxels / 65535.0, own, within=1)
        assert (own.corners <= extent).all()
    size = (16, 20, 20)[-batch.spatial_dims :]
    where = boxes_at(np.array([[2, 5, 4][-batch.spatial_dims :]] * len(batch)), size)
    drawn = draw(EVERY_MOVE, size, streams(len(batch), seed))
    views = move(cut(batch, where), drawn).numpy()
    for view, own in zip(views, move_boxes(cut_boxes(findings, where), drawn, size), strict=True):
        check_boxes(view, own, within=3)  # one by resampling, which zooming by 1.7 makes two, and one by zooming


def test_unknown_boxes_and_none_are_told_apart_and_selected(tmp_path: Path) -> None:
    voxels, boxes = cuboids(np.random.default_rng(0), (8, 9), 1)
    known = Scan(voxels.astype(np.uint8), (1.0, 1.0), "XR", boxes=boxes)
    none = Boxes(np.zeros((0, 2, 2), np.int64), np.zeros(0, np.int64))
    batch = batch_of([known, known.with_(boxes=None), known.with_(boxes=none)], tmp_path)
    assert batch.boxes is not None
    first, unknown, last = batch.boxes
    assert first is not None
    assert unknown is None
    assert last is not None
    np.testing.assert_array_equal(first.corners, boxes.corners)
    assert (first.classes.tolist(), len(last), last.corners.shape) == ([FIRST_CLASS], 0, (0, 2, 2))
    assert batch.to("cpu").boxes == batch.boxes
    shards = ShardSet.open(str(tmp_path))
    assert shards.select(having=BOXES).row_ids.tolist() == [0, 2]
    assert shards.names_of(BOXES) == {FIRST_CLASS: "nodule"}
    assert shards.is_labelled
    assert shards.patients(shards.select(having=BOXES), BOXES) == {"p0": (FIRST_CLASS,), "p2": ()}
    lines = dict(describe(shards))
    assert lines["boxes"] == f"{FIRST_CLASS} nodule (1)"
    assert lines["train"].endswith("2 with known boxes")


def test_an_ingest_writes_the_boxes_of_its_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_of(np.random.default_rng(3), affine_of(AXES[5], (1.0, 1.0, 1.0)), (8, 12, 10), 3, least=2)
    monkeypatch.setattr(bundles, "read_study", lambda study: scan)
    recipe = PLAIN.with_fields(kind="slices")
    job = BundleJob(str(tmp_path), recipe, bytes(range(32)), seed=0, rows_per_group=1)
    manifest = run_bundle(job, Bundle(0, (Study("a", "volume", ("a.nii",), "a", "set"),), ("train",)))
    write_index(str(tmp_path), manifest.files, IndexCard({}))
    shards = ShardSet.open(str(tmp_path))
    expected = {one.slice_index: one.boxes for one in apply(recipe, scan)}
    assert shards.num_samples == len(expected)
    for row in shards.rows.to_pylist():
        own = expected[row["slice_index"]]
        assert own is not None
        assert row["boxes"] == own.corners.ravel().tolist()
        assert row["box_classes"] == own.classes.tolist()


def test_a_box_that_is_thinner_than_a_voxel_keeps_one() -> None:
    own = Boxes(np.array([[[8, 8], [9, 12]]]), np.array([1])).resized((24, 24), (6, 6))
    assert own.corners.tolist() == [[[2, 2], [3, 3]]]


def test_boxes_of_no_size_outside_their_scan_or_with_other_axes_are_refused() -> None:
    voxels, boxes = cuboids(np.random.default_rng(0), (8, 9), 1)
    with pytest.raises(
        ValueError, match=r"box 0 from \[1, 4\] to \[3, 4\] holds no voxel; expected each high corner"
    ):
        Boxes(np.array([[[1, 4], [3, 4]]]), np.array([0]))
    outside = replace(boxes, corners=np.array([[[1, 4], [9, 5]]]))
    with pytest.raises(ValueError, match=r"box 0 from \[1, 4\] to \[9, 5\] .*leaves the image of size \(8, 9\)"):
        Scan(voxels, (1.0, 1.0), "XR", boxes=outside)
    with pytest.raises(ValueError, match="boxes with 2 axes for 3 spatial axes"):
        Scan(voxels[None], (1.0, 1.0, 1.0), "XR", boxes=boxes)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (2.0, 5.0, (2, 5)),
        (2.4, 5.4, (2, 5)),
        (2.6, 4.6, (3, 5)),
        (2.5, 4.5, (2, 5)),  # half-way: outwards
        (2.2, 2.3, (2, 3)),  # thinner than a pixel: the one that it lies in
        (2.4, 2.6, (2, 3)),
        (-3.0, 2.6, (0, 3)),
        (8.6, 20.0, (9, 10)),
    ],
)
def test_faces_between_borders_go_to_the_nearest_one(low: float, high: float, expected: tuple[int, int]) -> None:
    found = Boxes.between(np.array([[[low], [high]]]), np.array([4]), (10,))
    assert found.corners.tolist() == [[[expected[0]], [expected[1]]]]
    assert found.classes.tolist() == [4]


def test_a_box_that_lies_outside_is_dropped() -> None:
    assert len(Boxes.between(np.array([[[10.0], [12.0]], [[-2.0], [0.0]]]), np.array([0, 1]), (10,))) == 0
