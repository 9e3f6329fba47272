"""Several orders become one in which every set keeps its share, its epochs and its own order."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.interleaving import Interleaving, Visits
from data.order import Order

sizes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4)
weights = st.lists(st.integers(1, 40), min_size=4, max_size=4)


def interleaved(group_sizes: list[list[int]], shares: list[int]) -> Interleaving:
    orders = [Order(groups, seed) for seed, groups in enumerate(group_sizes)]
    return Interleaving(orders, [Fraction(share) for share in shares[: len(orders)]])


def rows_of(visits: Visits) -> list[tuple[int, ...]]:
    return list(zip(*(values.tolist() for values in (visits.sets, visits.positions, visits.epochs)), strict=True))


def test_three_to_one_holds_over_every_stretch_and_each_set_completes_its_epochs():
    order = interleaved([[4] * 25, [5] * 8], [3, 1])
    visits = order.visits(0, 4000)
    is_first = np.concatenate([[0], np.cumsum(visits.sets == 0)])
    for length in (4, 100, 300):
        counts = is_first[length:] - is_first[:-length]
        assert abs(counts - 0.75 * length).max() <= 1
    for place, size in ((0, 100), (1, 40)):
        own = visits.positions[visits.sets == place]
        epochs = visits.epochs[visits.sets == place]
        for epoch in range(len(own) // size):
            assert sorted(own[epochs == epoch]) == list(range(size))
        assert own.tolist() == Order([[4] * 25, [5] * 8][place], place).positions(0, len(own)).tolist()


@settings(deadline=None)
@given(sizes, weights, st.integers(0, 400), st.integers(1, 300))
def test_any_stretch_holds_each_sets_share(group_sizes, shares, start, length):
    sets = interleaved(group_sizes, shares).visits(start, start + length).sets
    used = shares[: len(group_sizes)]
    for place, share in enumerate(used):
        assert abs((sets == place).sum() - length * share / sum(used)) <= len(used)


@pytest.mark.slow
@settings(deadline=None)
@given(sizes, weights, st.lists(st.integers(0, 120), min_size=3, max_size=3).map(sorted))
def test_the_sequence_does_not_depend_on_how_it_is_asked(group_sizes, shares, cuts):
    first, middle, last = cuts
    order = interleaved(group_sizes, shares)
    whole = rows_of(order.visits(first, last))
    assert whole == rows_of(order.visits(first, middle)) + rows_of(order.visits(middle, last))
    again = interleaved(group_sizes, shares)
    assert whole == [rows_of(again.visits(number, number + 1))[0] for number in range(first, last)]


@pytest.mark.slow
@settings(deadline=None)
@given(sizes, st.integers(0, 5))
def test_with_shares_as_the_sizes_an_epoch_visits_every_sample_once(group_sizes, epoch):
    counts = [sum(groups) for groups in group_sizes]
    visits = interleaved(group_sizes, counts).visits(epoch * sum(counts), (epoch + 1) * sum(counts))
    expected = [(place, position, epoch) for place, count in enumerate(counts) for position in range(count)]
    assert sorted(rows_of(visits)) == expected


@pytest.mark.slow
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 200), st.integers(0, 60))
def test_one_set_keeps_its_own_order(groups, start, length):
    visits = interleaved([groups], [7]).visits(start, start + length)
    assert visits.positions.tolist() == Order(groups, 0).positions(start, start + length).tolist()
    assert visits.epochs.tolist() == Order(groups, 0).epochs(start, start + length).tolist()


@pytest.mark.parametrize(
    ("shares", "first"), [([1, 1], [0, 1, 0, 1]), ([3, 1], [0, 0, 1, 0]), ([1, 3], [1, 0, 1, 1])]
)
def test_samples_come_in_turn(shares, first):
    assert interleaved([[8], [8]], shares).visits(0, 4).sets.tolist() == first


def test_numbers_of_any_size_are_exact():
    order = interleaved([[3], [2]], [10**6 - 1, 10**6])
    far = order.visits(10**12, 10**12 + 200)
    assert abs((far.sets == 0).sum() - 100) <= 1
    assert far.epochs.min() > 10**11
