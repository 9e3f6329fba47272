"""Permutations: the greedy choice is the farthest there is, and beats random sets; sets are fixed and distinct."""

from math import factorial

import numpy as np
import pytest

from methods.parts.permutations import greedy_permutations, min_distance, random_permutations
from tests.references import permutations as reference


def test_every_greedy_choice_is_as_far_from_those_before_as_any_permutation_can_be():
    chosen = [tuple(row) for row in greedy_permutations(12, 5, seed=3).tolist()]
    for count in range(1, 12):
        gained = min(reference.distance(chosen[count], one) for one in chosen[:count])
        assert gained == reference.reachable(chosen[:count])


@pytest.mark.slow
@pytest.mark.parametrize(("length", "expected"), [(8, 5), (9, 6), (27, 23)])
def test_hundred_greedy_permutations_are_farther_apart_than_random_ones(length, expected):
    greedy = greedy_permutations(100, length, seed=0)
    chosen, drawn = ([tuple(row) for row in rows.tolist()] for rows in (greedy, random_permutations(100, length, 0)))
    assert reference.nearest_pair(chosen) == min_distance(greedy) == expected
    assert reference.nearest_pair(chosen) > reference.nearest_pair(drawn)


def test_as_many_pieces_as_permutations_can_differ_in_every_place():
    assert min_distance(greedy_permutations(27, 27, seed=1)) == 27
    assert min_distance(greedy_permutations(28, 27, seed=1)) < 27


@pytest.mark.parametrize("choose", [greedy_permutations, random_permutations])
@pytest.mark.parametrize(("count", "length"), [(24, 4), (60, 5), (20, 12)])
def test_rows_are_different_permutations_and_depend_on_the_seed_alone(choose, count, length):
    rows = choose(count, length, 5)
    assert (np.sort(rows, axis=1) == np.arange(length)).all()
    assert len(np.unique(rows, axis=0)) == count
    choose.cache_clear()
    np.testing.assert_array_equal(choose(count, length, 5), rows)
    assert not np.array_equal(choose(count, length, 6), rows)


def test_all_permutations_are_drawn_before_one_comes_twice():
    assert len(np.unique(random_permutations(factorial(4), 4, 0), axis=0)) == 24
    with pytest.raises(ValueError, match=r"num_permutations 25: 4 pieces have only 24 permutations; give fewer"):
        random_permutations(25, 4, 0)
    with pytest.raises(ValueError, match=r"num_permutations 7: 3 pieces have only 6 permutations; give fewer"):
        greedy_permutations(7, 3, 0)
