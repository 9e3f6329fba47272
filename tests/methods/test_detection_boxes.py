"""Boxes, suppression, anchors, matching and sampling of the detector, beside slow references."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.views.rng import SampleRng
from methods.detection.anchors import centred_in, level_anchors
from methods.detection.boxes import clip, decode, encode, iou_matrix, sides, volumes
from methods.detection.matching import BACKGROUND, PROPOSAL_RULE, REGION_RULE, UNDECIDED, MatchingRule, matched
from methods.detection.sampling import priorities, sampled
from methods.detection.suppression import BLOCK, kept_boxes
from tests.references import detection as reference

SEEDS = st.integers(0, 2**32 - 1)
NONE = torch.zeros(0, 4)


def random_boxes(seed: int, count: int, axes: int = 2, room: int = 40, whole: bool = True) -> Tensor:
    """Boxes on a grid, so that some are empty, equal, touching or turned inside out."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, room, (count, 2, axes)) if whole else rng.uniform(0, room, (count, 2, axes))
    corners = np.where(rng.random((count, 1, 1)) < 0.9, np.sort(corners, axis=1), corners)
    return torch.from_numpy(corners.reshape(count, 2 * axes)).double()


def by_hand(boxes: Tensor, others: Tensor) -> np.ndarray:
    pairs = [[reference.overlap(one, other) for other in others.tolist()] for one in boxes.tolist()]
    return np.array(pairs).reshape(len(boxes), len(others))


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 3), st.booleans(), st.integers(0, 12), st.integers(0, 12))
def test_overlaps_are_those_of_each_pair_alone(seed, axes, whole, count, others):
    first, second = random_boxes(seed, count, axes, 6, whole), random_boxes(seed + 1, others, axes, 6, whole)
    np.testing.assert_allclose(iou_matrix(first, second).numpy(), by_hand(first, second), rtol=0, atol=1e-12)


def test_overlaps_of_a_hand_made_scene():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 1, 2, 3], [0, 2, 2, 4], [1, 1, 1, 5]])
    found = iou_matrix(boxes, boxes)
    expected = [[1, 1 / 3, 0, 0], [1 / 3, 1, 1 / 3, 0], [0, 1 / 3, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert volumes(boxes).tolist() == [4, 4, 4, 0]
    assert iou_matrix(NONE, boxes).shape == (0, 4)
    assert iou_matrix(boxes, NONE).shape == (4, 0)


def test_boxes_are_cut_at_a_window_and_vanish_outside():
    boxes = torch.tensor([[-3.0, 2, 5, 12], [20, 20, 30, 30], [1, 1, 2, 2]])
    found = clip(boxes, torch.tensor([0.0, 0, 10, 9]))
    assert found.tolist() == [[0, 2, 5, 9], [10, 9, 10, 9], [1, 1, 2, 2]]
    assert clip(NONE, torch.tensor([0.0, 0, 10, 9])).shape == (0, 4)


def test_deltas_of_a_hand_made_pair():
    box, anchor = torch.tensor([[2.0, 1, 6, 9]]), torch.tensor([[0.0, 0, 4, 4]])
    log2 = 0.6931471805599453
    torch.testing.assert_close(encode(box, anchor, (1.0, 1.0)), torch.tensor([[0.5, 0.75, 0, log2]]))
    torch.testing.assert_close(encode(box, anchor, (0.1, 0.2)), torch.tensor([[5, 7.5, 0, 5 * log2]]))


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 3), st.sampled_from([(1.0, 1.0), (0.1, 0.2)]))
def test_decoding_undoes_encoding(seed, axes, deviations):
    first, second = (random_boxes(s, 20, axes, whole=False) for s in (seed, seed + 1))
    inside = (sides(first) > 1).all(1) & (sides(second) > 1).all(1)
    first, second = first[inside], second[inside]
    torch.testing.assert_close(decode(encode(first, second, deviations), second, deviations), first)


def test_no_side_grows_by_more_than_a_bound_and_deltas_of_empty_boxes_are_finite():
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    grown = decode(torch.tensor([[0.0, 0, 100, 0]]), anchor, (1.0, 1.0))
    torch.testing.assert_close(grown, torch.tensor([[8 - 500.0, 0, 8 + 500, 16]]), rtol=1e-5, atol=0)
    empty = torch.zeros(1, 4)
    assert torch.isfinite(encode(empty, anchor, (0.1, 0.2))).all()
    assert torch.isfinite(encode(anchor, empty, (0.1, 0.2))).all()
    assert encode(NONE, NONE, (0.1, 0.2)).shape == decode(NONE, NONE, (0.1, 0.2)).shape == (0, 4)


def assert_kept(boxes: Tensor, scores: Tensor, threshold: float, classes: Tensor) -> None:
    expected = reference.kept(boxes.tolist(), scores.tolist(), threshold, classes.tolist())
    assert kept_boxes(boxes, scores, threshold, classes).nonzero()[:, 0].tolist() == sorted(expected)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 120), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.integers(1, 3), st.booleans())
def test_suppression_keeps_what_looking_at_one_box_after_the_other_keeps(seed, count, threshold, kinds, whole):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(seed, count, room=12, whole=whole)
    scores = torch.from_numpy(rng.integers(0, 10, count) / 10)  # most of them tied
    assert_kept(boxes, scores, threshold, torch.from_numpy(rng.integers(0, kinds, count)))


@pytest.mark.slow
def test_suppression_is_exact_over_several_blocks_and_long_chains():
    rng = np.random.default_rng(0)
    count = 2 * BLOCK + 77
    low = rng.uniform(0, 100, (count, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(5, 30, (count, 2))], axis=1))
    assert_kept(boxes, torch.from_numpy(rng.random(count)), 0.4, torch.from_numpy(rng.integers(0, 2, count)))
    # Each box suppresses the next one only, unless it is suppressed itself: every other one is kept.
    start = torch.arange(count, dtype=torch.float64)
    chain = torch.stack([start * 0, start, start * 0 + 1, start + 2.5], dim=1)
    keep = kept_boxes(chain, -start, 0.3)
    assert keep.tolist() == [place % 2 == 0 for place in range(count)]


def test_where_one_box_suppresses_whole_blocks_it_alone_is_kept():
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(3 * BLOCK, 1)
    assert kept_boxes(boxes, torch.arange(3.0 * BLOCK), 0.5).nonzero().tolist() == [[3 * BLOCK - 1]]


def test_of_equal_scores_the_first_box_is_kept_and_touching_boxes_both():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [0, 5, 4, 9], [4, 0, 8, 4], [2, 2, 2, 2]])
    assert kept_boxes(boxes, torch.ones(5), 0.5).tolist() == [True, False, True, True, True]
    assert kept_boxes(boxes.flip(0), torch.ones(5), 0.5).tolist() == [True, True, True, True, False]
    assert kept_boxes(NONE, torch.zeros(0), 0.5).tolist() == []


def test_ten_thousand_boxes_are_suppressed_in_well_under_a_second():
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 500, (10_000, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(8, 60, (10_000, 2))], axis=1)).float()
    scores, kinds = torch.from_numpy(rng.random(10_000)), torch.arange(10_000) % 5
    began = time.process_time()
    assert 1000 < int(kept_boxes(boxes, scores, 0.7, kinds).sum()) < 10_000
    assert time.process_time() - began < 2  # 0.2 s where nothing else computes


def test_anchors_stand_where_the_reference_puts_them():
    like = torch.zeros(0, dtype=torch.float64)
    found = level_anchors((3, 5), 8, 4.0, (0.5, 1.0, 2.0), like)
    expected = reference.anchors(3, 5, 8, 4.0, (0.5, 1.0, 2.0))
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=0, atol=1e-12)
    assert found[1].tolist() == [4 - 16, 4 - 16, 4 + 16, 4 + 16]
    torch.testing.assert_close(volumes(found), torch.full((45,), 1024.0, dtype=torch.float64))


def test_square_anchors_span_16_to_256_pixels_and_only_those_centred_in_a_window_are_used():
    sizes = [level_anchors((1, 1), stride, 4.0, (1.0,), torch.zeros(0)) for stride in (4, 8, 16, 32, 64)]
    assert [(box[0, 2] - box[0, 0]).item() for box in sizes] == [16, 32, 64, 128, 256]
    grid = level_anchors((2, 3), 4, 4.0, (1.0,), torch.zeros(0))  # centres at 2 and 6; 2, 6 and 10
    assert centred_in(grid, torch.tensor([0.0, 6, 6, 12])).tolist() == [False, True, True, False, False, False]


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 40), st.integers(0, 6), st.sampled_from([PROPOSAL_RULE, REGION_RULE]))
def test_matching_decides_as_the_reference_does(seed, count, others, rule):
    candidates, boxes = random_boxes(seed, count, room=10), random_boxes(seed + 1, others, room=10)
    expected = reference.assigned(candidates.tolist(), boxes.tolist(), rule.positive, rule.negative, rule.least)
    present = torch.ones(others + 2, dtype=torch.bool)
    present[others:] = False  # padding that would overlap
    padded = torch.cat([boxes, candidates.new_tensor([[0, 0, 10, 10]] * 2)])
    assert matched(candidates, padded, present, rule).tolist() == expected
    assert matched(candidates, boxes, present[:others], rule).tolist() == expected


def test_matching_of_a_hand_made_scene():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 24, 24]])
    candidates = torch.tensor(
        [
            [0.0, 0, 10, 8],  # 0.8 of the first box
            [0, 0, 10, 5],  # 0.5: neither near nor far
            [0, 0, 2, 10],  # 0.2: far
            [20, 20, 30, 24],  # 0.4 of the second box, which has no better one
            [40, 40, 50, 50],
        ]
    )
    present = torch.ones(2, dtype=torch.bool)
    assert matched(candidates, boxes, present, PROPOSAL_RULE).tolist() == [0, UNDECIDED, BACKGROUND, 1, BACKGROUND]
    assert matched(candidates, boxes, present, REGION_RULE).tolist() == [0, 0, BACKGROUND, BACKGROUND, BACKGROUND]
    strict = MatchingRule(0.7, 0.3, least=0.45)
    assert matched(candidates, boxes, present, strict).tolist() == [0, UNDECIDED, BACKGROUND, UNDECIDED, BACKGROUND]


@settings(deadline=None, max_examples=30)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**45))
def test_priorities_are_the_numbers_of_splitmix64_on_any_seed(seed, first):
    found = priorities(torch.tensor(seed), 5, first)
    assert found.tolist() == [reference.splitmix(seed, first + place) for place in range(5)]


def test_priorities_are_those_of_a_sample_s_own_stream():
    rng = SampleRng.for_samples(3, [0, 0], ["a", "b"]).fold("sampled")
    seeds = torch.from_numpy(rng.words().view(np.int64))
    inner = SampleRng(rng.words())
    found = torch.stack([priorities(seed, 100) for seed in seeds])
    np.testing.assert_array_equal(found.numpy(), inner.uniform(100))


def sample_of(seed: int, positive: Tensor, negative: Tensor, count: int, share: float) -> tuple[list[int], list[int]]:
    """Return the sampled positives and negatives, in order of their places."""
    found = sampled(positive, negative, priorities(torch.tensor(seed), len(positive)), count, share)
    assert found.index.shape == found.positive.shape == found.counts.shape == (min(count, len(positive)),)
    chosen = found.index[found.counts]
    assert len(set(chosen.tolist())) == len(chosen)
    assert (found.positive <= found.counts).all()
    return (sorted(found.index[found.positive].tolist()), sorted(chosen[~found.positive[found.counts]].tolist()))


def test_a_sample_holds_at_most_a_share_of_positives_and_fills_up_with_negatives():
    positive = torch.arange(100) < 30
    negative = (torch.arange(100) >= 40) & ~positive
    taken, others = sample_of(1, positive, negative, 40, 0.5)
    assert (len(taken), len(others)) == (20, 20)
    assert set(taken) <= set(range(30))
    assert set(others) <= set(range(40, 100))
    few, rest = sample_of(1, torch.arange(100) == 7, negative, 40, 0.25)
    assert (few, len(rest)) == ([7], 39)
    scarce = sample_of(1, positive, torch.arange(100) == 50, 40, 0.25)
    assert (len(scarce[0]), scarce[1]) == (10, [50])
    assert sample_of(1, positive & False, negative & False, 40, 0.5) == ([], [])
    assert sample_of(1, positive[:5], negative[:5], 40, 0.5) == ([0, 1, 2, 3, 4], [])


@pytest.mark.slow
def test_every_candidate_is_sampled_equally_often():
    positive, rounds = torch.arange(50) < 25, 1500
    hits = np.zeros(50)
    for seed in range(rounds):
        for places in sample_of(seed, positive, ~positive, 20, 0.25):
            hits[places] += 1
    share = np.where(np.arange(50) < 25, 5 / 25, 15 / 25)
    deviation = np.sqrt(rounds * share * (1 - share))
    assert np.abs((hits - rounds * share) / deviation).max() < 4
    # Pairs are drawn together as often as without any order.
    assert np.corrcoef(hits[:25], np.arange(25))[0, 1] == pytest.approx(0, abs=0.5)
