"""The order is an exact permutation per epoch, whatever the sizes, and reads each row group once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import Order

ragged = st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any)
seeds = st.integers(-(2**63), 2**63 - 1)


def reads_per_step(group_sizes: np.ndarray, order: Order, batch: int, start: int, stop: int) -> int:
    """Count (step, row group) pairs that numbers [start, stop) touch."""
    group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)
    steps = np.arange(start, stop) // batch
    return len(set(zip(steps.tolist(), group_of[order.positions(start, stop)].tolist(), strict=True)))


@given(ragged, seeds, st.integers(0, 50))
def test_every_epoch_is_a_permutation_of_the_selection(sizes, seed, epoch):
    order = Order(sizes, seed)
    n = order.num_samples
    assert n == sum(sizes)
    assert sorted(order.positions(epoch * n, (epoch + 1) * n)) == list(range(n))


@pytest.mark.slow
@settings(deadline=None)
@given(ragged, seeds, st.lists(st.integers(0, 60), min_size=3, max_size=3).map(sorted))
def test_the_sequence_does_not_depend_on_how_it_is_asked(sizes, seed, cuts):
    a, b, c = cuts
    whole = Order(sizes, seed).positions(a, c)
    other = Order(sizes, seed)
    parts = np.concatenate([other.positions(a, b), other.positions(b, c)])
    assert whole.tolist() == parts.tolist()
    assert whole.tolist() == [int(other.positions(g, g + 1)[0]) for g in range(a, c)]


@given(ragged, st.integers(0, 200), st.integers(0, 200))
def test_epochs_count_passes_over_the_selection(sizes, start, length):
    order = Order(sizes, 0)
    expected = [g // order.num_samples for g in range(start, start + length)]
    assert order.epochs(start, start + length).tolist() == expected


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 4), st.integers(0, 40), seeds)
def test_equal_groups_are_read_once_per_epoch_but_for_one(num_groups, size, groups_per_batch, epoch, seed):
    sizes = np.full(num_groups, size)
    order = Order(sizes, seed)
    start, stop = epoch * order.num_samples, (epoch + 1) * order.num_samples
    assert reads_per_step(sizes, order, size * groups_per_batch, start, stop) <= num_groups + 1


@given(st.integers(4, 20), st.integers(2, 8), st.integers(0, 40), seeds)
def test_full_groups_stay_whole_beside_one_short_group(num_groups, size, epoch, seed):
    sizes = np.full(num_groups, size)
    sizes[num_groups // 2] = size - 1
    order = Order(sizes, seed)
    start, stop = epoch * order.num_samples, (epoch + 1) * order.num_samples
    assert reads_per_step(sizes, order, 2 * size, start, stop) <= num_groups + 2


@given(ragged, seeds)
def test_rows_of_one_group_are_neighbours_in_the_first_epoch(sizes, seed):
    order = Order(sizes, seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)[order.positions(0, order.num_samples)]
    assert 1 + np.count_nonzero(np.diff(groups)) == np.count_nonzero(sizes)


def test_epochs_and_seeds_differ():
    order, other = Order([4] * 50, 1), Order([4] * 50, 2)
    first, second = order.positions(0, 200), order.positions(200, 400)
    assert np.count_nonzero(first == second) < 20
    assert np.count_nonzero(first == other.positions(0, 200)) < 20


@pytest.mark.slow
def test_every_place_in_the_epoch_is_equally_likely():
    """Chi-square of where sample 0 lands over 1200 seeds: 11 degrees of freedom, 31.3 is p = 0.001."""
    places = [int(np.flatnonzero(Order([3] * 4, seed).positions(0, 12) == 0)[0]) for seed in range(1200)]
    counts = np.bincount(places, minlength=12)
    assert ((counts - 1200 / 12) ** 2 / (1200 / 12)).sum() < 31.3


def test_the_sequence_of_version_1_never_changes():
    """A golden sequence: a change of numbers here needs a new ORDER_VERSION, or resumed runs differ silently."""
    first = [4, 3, 5, 8, 10, 9, 0, 2, 1, 7, 6]
    second = [8, 5, 4, 3, 2, 1, 0, 9, 10, 7, 6]
    assert Order([3, 3, 2, 3], 7).positions(0, 22).tolist() == first + second


@pytest.mark.slow
def test_one_million_samples_are_permuted():
    order = Order(np.full(62_500, 16), 3)
    assert np.array_equal(np.sort(order.positions(1_000_000, 2_000_000)), np.arange(1_000_000))


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_an_empty_selection_is_an_error_with_a_remedy(sizes):
    with pytest.raises(ValueError, match=rf"{len(sizes)} row groups with 0 selected samples.*name another split"):
        Order(sizes, 0)


def test_a_reversed_range_is_an_error():
    with pytest.raises(ValueError, match=r"numbers \[5, 3\) are not a range"):
        Order([4], 0).positions(5, 3)
