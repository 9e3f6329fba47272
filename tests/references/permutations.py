"""Distances of permutations, and the greedy choice among all of them, slowly, in plain loops."""

import itertools


def distance(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Count the places in which two permutations differ."""
    return sum(a != b for a, b in zip(first, second, strict=True))


def nearest_pair(chosen: list[tuple[int, ...]]) -> int:
    """Return the distance of the two that are nearest to each other."""
    return min(distance(a, b) for a, b in itertools.combinations(chosen, 2))


def reachable(chosen: list[tuple[int, ...]]) -> int:
    """Return how far a permutation can be from the nearest of those chosen."""
    return max(min(distance(p, one) for one in chosen) for p in itertools.permutations(range(len(chosen[0]))))
