"""Permutations: sets of orders of a puzzle's pieces, far apart from each other or drawn at random.

The distance of two permutations is Hamming's: in how many places they differ.
Paper: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016,
       section 4: one after the other, always the one that is farthest from the nearest of those chosen before.
"""

from functools import lru_cache
from itertools import permutations
from math import factorial

import numpy as np
from jaxtyping import Int

LISTED = 7  # up to so many pieces, every permutation is looked at
TRIALS = 100


def min_distance(chosen: Int[np.ndarray, "p k"]) -> int:
    """Return the distance of the two permutations that are nearest to each other."""
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
    """Choose ``count`` permutations, each as far as possible from the nearest of those before; the first at random.

    All n! permutations are compared up to 7 pieces. For more, the farthest of 100 that are sought is taken: of 9
    pieces, 100 are then at least 6 apart, as with a comparison of all, and of 27 at least 23 (at most 26 can be).
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
    """Return the listed permutation whose nearest chosen one is farthest; of several, the farthest on average."""
    distances = np.stack([(listed != one).sum(axis=1) for one in chosen])
    return listed[np.lexsort((distances.sum(axis=0), distances.min(axis=0)))[-1]]


def _seek(chosen: Int[np.ndarray, "p k"], rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """Return the farthest of some permutations that share few places with those chosen.

    Each is an assignment of pieces to places, where a piece costs the weights of the permutations that have it there;
    those that come too near weigh more the next time.
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
    """Return what may be kept and given out again: nobody can change it."""
    chosen = chosen.astype(np.int64)
    chosen.flags.writeable = False
    return chosen
