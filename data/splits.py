"""Splits: divide patients into train, val and test. By patient, never by slice: slices of one patient are alike.

Every function is pure. A patient's place in a seeded order depends on (seed, patient) alone, so it is the same in
every process, on every machine and whatever order the patients come in.
"""

import hashlib
from collections.abc import Collection, Hashable, Mapping

from data.exact import exact

SPLITS = ("train", "val", "test")


def seeded_order(patients: Collection[str], seed: int) -> list[str]:
    """Return the patients, each once, in an order drawn by the seed."""
    return sorted(set(patients), key=lambda patient: (_draw(seed, patient), patient))


def _draw(seed: int, patient: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{patient}".encode(), digest_size=16).digest()


def assign_splits(
    strata: Mapping[str, Hashable], val: float, test: float, seed: int, earlier: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Return the split of each patient: ``round(test * n)`` test, ``round(val * n)`` val, the rest train.

    ``strata`` maps a patient to a stratum to be spread evenly over the splits, such as the class. In the order by
    stratum, every k-th patient is taken, so totals are exact and each stratum's share is met within one patient.
    ``earlier`` are the numbers of patients that each split already has: the fractions hold for them and the new ones.
    """
    if min(val, test) < 0 or exact(val) + exact(test) >= 1:
        raise ValueError(f"splits: val {val} and test {test}; expected fractions of at least 0 whose sum is below 1")
    order = sorted(seeded_order(strata, seed), key=lambda patient: repr(strata[patient]))
    earlier = earlier or {}
    total = len(order) + sum(earlier.values())
    held_out = _spread(order, _still(round(exact(test) * total), earlier.get("test", 0), len(order)))
    rest = [patient for patient in order if patient not in held_out]
    validating = _spread(rest, _still(round(exact(val) * total), earlier.get("val", 0), len(rest)))
    return {p: "test" if p in held_out else "val" if p in validating else "train" for p in order}


def _still(wanted: int, earlier: int, available: int) -> int:
    return min(max(wanted - earlier, 0), available)


def _spread(order: list[str], count: int) -> set[str]:
    """Take ``count`` elements of a list at even distances."""
    return {order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)}


def even_order(strata: Mapping[str, Hashable], seed: int) -> list[str]:
    """Return the patients in a seeded order in which every prefix holds about each stratum's share.

    Of S strata, one with a share q of the patients is off by at most ``(1 + q S) / 2`` patients. With a single
    stratum the order is ``seeded_order``'s.
    """
    places: dict[str, float] = {}
    for stratum in set(strata.values()):
        members = seeded_order([patient for patient in strata if strata[patient] == stratum], seed)
        places |= {patient: (place + 0.5) / len(members) for place, patient in enumerate(members)}
    return sorted(places, key=lambda patient: (places[patient], _draw(seed, patient)))


def folds(strata: Mapping[str, Hashable], num_folds: int, seed: int) -> list[frozenset[str]]:
    """Return disjoint held-out sets that cover the patients, whose sizes differ by at most one.

    ``strata`` maps a patient to a stratum to be spread evenly over the folds.
    """
    if not 2 <= num_folds <= len(strata):
        raise ValueError(
            f"folds: {num_folds} folds of {len(strata)} patients; expected from 2 to the number of patients: "
            "lower downstream.num_folds, or use shards of more patients"
        )
    order = sorted(seeded_order(strata, seed), key=lambda patient: repr(strata[patient]))
    return [frozenset(order[fold::num_folds]) for fold in range(num_folds)]


def label_fraction(strata: Mapping[str, Hashable], fraction: float, seed: int) -> frozenset[str]:
    """Return the patients whose labels a fraction keeps: ``round(fraction * n)``, but at least one.

    With one seed, a smaller fraction is a subset of a larger one. ``strata`` maps a patient to a stratum that keeps
    its share, such as the class.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label fraction {fraction}; expected above 0 and at most 1")
    if not strata:
        raise ValueError("label fraction: 0 labelled patients; expected at least 1: choose another split or shards")
    order = even_order(strata, seed)
    return frozenset(order[: max(1, round(exact(fraction) * len(order)))])


def check_no_leakage(splits: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError where a patient (a pseudonym: it is printed) is in two splits."""
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(set(splits[first]) & set(splits[second]))
            if shared:
                raise ValueError(
                    f"splits: {len(shared)} patients are in both {first} ({len(set(splits[first]))} patients) and "
                    f"{second} ({len(set(splits[second]))}), such as {shared[0]}; expected none: "
                    "correct the split of these patients"
                )
