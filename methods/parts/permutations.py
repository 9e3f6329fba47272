"""Permutations: sets of orders of a puzzle's pieces, far apart from each other or drawn at random.

The distance of two permutations is Hamming's: the number of places in which they differ.
Paper: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016,
       section 4: permutations are chosen one by one, each the farthest from its nearest predecessor.
"""

from functools import lru_cache
from itertools import permutations
from math import factorial

import numpy as np
from jaxtyping import Int

LISTED = 7  # up to this number of pieces, every permutation is compared
TRIALS = 100


def min_distance(chosen: Int[np.ndarray, "p k"]) -> int:
    """Return the smallest distance between any two permutations."""
    first, second = np.triu_indices(len(chosen), 1)
    return int((chosen[first] != chosen[second]).sum(axis=1).min())


@lru_cache(maxsize=16)
def random_permutations(count: int, length: int, seed: int) -> Int[np.ndarray, "p k"]:
    """Draw ``count`` different permutations, each as likely as any other."""
    _check(count, length)
    rng, chosen = np.random.default_rng(seed), dict[tuple[int, ...], None]()
    while len(chosen) < count:
        chosen[tuple(rng.permutation(length).tolist())] = None
    return _fixed(np.array(list(chosen)))


@lru_cache(maxsize=16)
def greedy_permutations(count: int, length: int, seed: int) -> Int[np.ndarray, "p k"]:
    """Choose ``count`` permutations: the first at random, each other as far as possible from its nearest predecessor.

    Up to 7 pieces, all n! permutations are compared. For more pieces, the farthest of 100 candidates is taken: 100
    permutations of 9 pieces are then at least 6 apart, as if all were compared, and of 27 pieces at least 23 (the
    maximum is 26).
    """
    _check(count, length)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(length)[None]
    listed = rng.permutation(np.array(list(permutations(range(length))))) if length <= LISTED else None
    while len(chosen) < count:
        farthest = _seek(chosen, rng) if listed is None else _choose(listed, chosen)
        chosen = np.concatenate([chosen, farthest[None]])
    return _fixed(chosen)


def _choose(listed: Int[np.ndarray, "q k"], chosen: Int[np.ndarray, "p k"]) -> Int[np.ndarray, " k"]:
    """Return the listed permutation farthest from its nearest chosen one; of several, the farthest on average."""
    distances = np.stack([(listed != one).sum(axis=1) for one in chosen])
    return listed[np.lexsort((distances.sum(axis=0), distances.min(axis=0)))[-1]]


def _seek(chosen: Int[np.ndarray, "p k"], rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """Return the farthest of some candidate permutations that share few places with the chosen ones.

    Each candidate solves an assignment of pieces to places, in which putting a piece in a place costs the weights of
    the chosen permutations that have it there; chosen permutations that come too near weigh more the next time.
    """
    from scipy.optimize import linear_sum_assignment

    length = chosen.shape[1]
    weights, best, nearest = np.ones(len(chosen)), chosen[0], length
    for _ in range(TRIALS):
        costs = np.zeros((length, length))
        np.add.at(costs, (np.arange(length), chosen), weights[:, None])
        costs += 1e-3 * costs.max() * rng.random(costs.shape)
        found = linear_sum_assignment(costs)[1]
        shared = (chosen == found).sum(axis=1)
        if shared.max() < nearest:
            best, nearest = found, shared.max()
        if nearest == 0:
            break
        weights *= np.exp(shared)
        weights /= weights.mean()
    return best


def _check(count: int, length: int) -> None:
    if count > factorial(length):
        raise ValueError(
            f"method.num_permutations {count}: {length} pieces have only {factorial(length)} permutations; "
            "give fewer, or a grid of more patches"
        )


def _fixed(chosen: Int[np.ndarray, "p k"]) -> Int[np.ndarray, "p k"]:
    """Return the array, read-only, so that it can be cached and shared."""
    chosen = chosen.astype(np.int64)
    chosen.flags.writeable = False
    return chosen
