"""Boxes: exact IoU-bounded pairs, their distribution, and the errors for impossible requests."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, ks_2samp

from data.views import boxes
from data.views.boxes import BoxPairs, box_iou, boxes_at, check_fits, uniform_boxes
from data.views.rng import SampleRng
from tests.references import iou_pairs

THESIS_INTERVALS = [(0.0, 0.0), (0.0001, 0.3), (0.3, 0.6), (0.6, 1.0), (0.0, 1.0)]


def streams(count: int, seed: int = 0) -> SampleRng:
    return SampleRng.for_samples(seed, np.zeros(count, np.int64), [str(i) for i in range(count)])


def extents(count: int, extent: tuple[int, ...]) -> np.ndarray:
    return np.tile(np.array(extent, dtype=np.int64), (count, 1))


def p_value(observed: Counter, cells: list) -> float:
    """Chi-square p-value of counts against the uniform distribution over cells."""
    expected = sum(observed.values()) / len(cells)
    assert set(observed) <= set(cells)
    statistic = sum((observed[cell] - expected) ** 2 / expected for cell in cells)
    return float(chi2.sf(statistic, max(1, len(cells) - 1)))


def test_iou_of_known_boxes():
    first = boxes_at(np.zeros((4, 2), np.int64), (4, 6))
    second = boxes_at(np.array([[0, 0], [4, 0], [2, 3], [3, 5]]), (4, 6))
    assert box_iou(first, second).tolist() == [1.0, 0.0, 6 / 42, 1 / 47]


@pytest.mark.slow
def test_corner_touch_of_two_96_crops_belongs_to_neither_of_the_two_lowest_intervals():
    corner = box_iou(boxes_at(np.array([[0, 0]]), (96, 96)), boxes_at(np.array([[95, 95]]), (96, 96)))[0]
    assert corner == 1 / (2 * 9216 - 1)
    for interval in [(0.0, 0.0), (0.0001, 0.3)]:
        first, second = BoxPairs((96, 96), interval).draw(extents(5000, (192, 192)), streams(5000))
        assert not np.any(box_iou(first, second) == corner)


@pytest.mark.parametrize("interval", THESIS_INTERVALS)
def test_ten_thousand_pairs_stay_inside_their_interval_and_their_images(interval):
    sizes = np.random.default_rng(1).integers(200, 451, (10_000, 2))
    first, second = BoxPairs((96, 96), interval).draw(sizes, streams(10_000))
    for drawn in (first, second):
        assert drawn[:, 0].min() >= 0
        assert np.all(drawn[:, 1] <= sizes)
        assert np.all(drawn[:, 1] - drawn[:, 0] == 96)
    ious = [
        iou_pairs.iou(tuple(a), tuple(b), (96, 96))
        for a, b in zip(first[:, 0].tolist(), second[:, 0].tolist(), strict=True)
    ]
    assert sum(not iou_pairs.inside(iou, interval) for iou in ious) == 0


@settings(max_examples=20, deadline=None)
@given(
    size=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    room=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    bounds=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_pairs_stay_inside_wherever_enumeration_finds_any(size, room, bounds):
    size = tuple(size)
    extent = tuple(c + r for c, r in zip(size, room, strict=False))
    interval = (min(bounds) / 20, max(bounds) / 20)
    pairs = BoxPairs(size, interval)
    possible = iou_pairs.partners(extent, size, interval)
    if not possible:
        with pytest.raises(ValueError, match="no two crops"):
            pairs.check(extent)
        return
    pairs.check(extent)
    first, second = pairs.draw(extents(50, extent), streams(50))
    for a, b in zip(first[:, 0].tolist(), second[:, 0].tolist(), strict=True):
        assert tuple(b) in possible[tuple(a)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extent", "size", "interval"),
    [
        ((9, 8), (4, 4), (0.3, 0.6)),
        ((9, 8), (4, 4), (0.0, 0.0)),  # the middle has no partner
        ((8, 6), (3, 5), (0.0, 0.25)),
        ((9, 7), (5, 3), (0.6, 1.0)),
        ((7, 10), (5, 6), (0.05, 0.2)),  # the middle has no partner
        ((8, 8), (4, 4), (0.0, 1.0)),
        ((5, 6, 5), (3, 4, 3), (0.3, 0.6)),
        ((6, 5, 7), (3, 3, 4), (0.0, 0.0)),  # only places near a face have a partner
        ((5, 6, 4), (3, 4, 3), (0.02, 0.1)),
        ((6, 4, 5), (3, 3, 3), (0.0, 0.2)),
    ],
)
@pytest.mark.parametrize("guesses", [1, boxes.GUESSES])  # after one guess, enumeration draws about half of the pairs
def test_first_and_second_box_are_distributed_as_enumeration_says(extent, size, interval, guesses, monkeypatch):
    monkeypatch.setattr(boxes, "GUESSES", guesses)
    count = 12_000
    possible = iou_pairs.partners(extent, size, interval)
    first, second = BoxPairs(size, interval).draw(extents(count, extent), streams(count, seed=5))
    firsts = [tuple(a) for a in first[:, 0].tolist()]
    seconds = [tuple(b) for b in second[:, 0].tolist()]
    assert p_value(Counter(firsts), list(possible)) > 1e-4
    common = Counter(firsts).most_common(12)
    for a, _ in common:
        given_a = Counter(b for x, b in zip(firsts, seconds, strict=True) if x == a)
        assert p_value(given_a, possible[a]) > 1e-4 / len(common)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [(0.0001, 0.3), (0.3, 0.6), (0.6, 1.0)])
def test_pairs_are_distributed_as_in_algorithm_1(interval):
    count, extent, size = 1500, (30, 26), (10, 10)
    generator = np.random.default_rng(3)
    reference = [iou_pairs.algorithm_1(generator, extent, size, interval) for _ in range(count)]
    first, second = BoxPairs(size, interval).draw(extents(count, extent), streams(count, seed=2))
    theirs = np.array([[*a, *b] for a, b, found in reference if found])
    ours = np.concatenate([first[:, 0], second[:, 0]], axis=1)
    assert len(theirs) > 0.95 * count
    for statistic in (
        lambda x: x[:, 2] - x[:, 0],
        lambda x: x[:, 3] - x[:, 1],
        lambda x: x[:, 2] + 0.01 * x[:, 3],
        lambda x: np.abs(x[:, 2] - x[:, 0]) * np.abs(x[:, 3] - x[:, 1]),
    ):
        assert ks_2samp(statistic(theirs), statistic(ours)).pvalue > 1e-3


@pytest.mark.slow
def test_second_box_given_a_hard_first_one_is_distributed_as_in_algorithm_1():
    extent, size, interval = (13, 12), (4, 4), (0.0, 0.0)
    generator = np.random.default_rng(4)
    reference = [iou_pairs.algorithm_1(generator, extent, size, interval) for _ in range(10_000)]
    first, second = BoxPairs(size, interval).draw(extents(10_000, extent), streams(10_000, seed=9))
    hard = (4, 4)
    theirs = Counter(b for a, b, found in reference if found and a == hard)
    ours = Counter(
        tuple(b) for a, b in zip(first[:, 0].tolist(), second[:, 0].tolist(), strict=True) if tuple(a) == hard
    )
    cells = iou_pairs.partners(extent, size, interval)[hard]
    assert p_value(theirs, cells) > 1e-4
    assert p_value(ours, cells) > 1e-4


@pytest.mark.slow
def test_algorithm_1_fails_where_exact_drawing_does_not():
    extent, size, interval = (24, 24), (12, 12), (0.0, 0.0)
    generator = np.random.default_rng(6)
    failed = sum(not iou_pairs.algorithm_1(generator, extent, size, interval)[2] for _ in range(300))
    assert failed > 30
    first, second = BoxPairs(size, interval).draw(extents(300, extent), streams(300))
    assert box_iou(first, second).max() == 0


def test_boxes_do_not_depend_on_how_the_batch_is_split():
    sizes = np.random.default_rng(2).integers(120, 300, (32, 2))
    whole = BoxPairs((96, 96), (0.0, 0.3)).draw(sizes, streams(32))
    for part in (slice(0, 5), slice(5, 32)):
        cut = BoxPairs((96, 96), (0.0, 0.3)).draw(sizes[part], streams(32).take(np.arange(32)[part]))
        for a, b in zip(whole, cut, strict=True):
            np.testing.assert_array_equal(a[part], b)


def test_uniform_boxes_reach_every_position_alike():
    drawn = uniform_boxes(extents(30_000, (6, 5)), (4, 2), streams(30_000))
    cells = [(i, j) for i in range(3) for j in range(4)]
    assert p_value(Counter(tuple(a) for a in drawn[:, 0].tolist()), cells) > 1e-4


def test_impossible_interval_names_extent_size_interval_and_the_reachable_iou():
    message = (
        r"IoU interval \[0, 0\]: no two crops of size \(96, 96\) inside samples of size \(100, 120\) meet it; "
        r"the closest possible is 0\.561; widen method\.crops\.iou"
    )
    with pytest.raises(ValueError, match=message):
        BoxPairs((96, 96), (0.0, 0.0)).check((100, 120))
    with pytest.raises(ValueError, match=message):
        BoxPairs((96, 96), (0.0, 0.0)).draw(extents(2, (100, 120)), streams(2))


def test_interval_between_two_reachable_values_names_both():
    with pytest.raises(ValueError, match=r"closest possible is 0\.6 and 1; widen"):
        BoxPairs((4, 4), (0.7, 0.9)).check((8, 8))


def test_crop_larger_than_the_image_names_both_sizes():
    with pytest.raises(ValueError, match=r"crop size \(96, 96\) exceeds samples of size \(80, 300\); lower method"):
        check_fits((96, 96), (80, 300))
    with pytest.raises(ValueError, match=r"crop size \(96, 96\) has 2 axes, samples of size \(9, 9, 9\) have 3"):
        check_fits((96, 96), (9, 9, 9))


@pytest.mark.parametrize("interval", [(0.6, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_interval_out_of_order_or_range_is_refused(interval):
    with pytest.raises(ValueError, match=r"expected 0 <= low <= high <= 1; correct method\.crops\.iou"):
        BoxPairs((8, 8), interval)
