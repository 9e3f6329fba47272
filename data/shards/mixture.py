"""Mixture: samples of one or several shard sets that a training is fed, each set with its share; and their reader."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from data.exact import exact
from data.interleaving import Interleaving, Visits
from data.labels import Labels
from data.order import Order
from data.shards.classes import pad_classes
from data.shards.index import Selection, ShardSet
from data.shards.reader import ShardReader


@dataclass(frozen=True)
class Component:
    """Samples of one shard set, and how many of them come for so many of the others; by default, for each one."""

    shards: ShardSet
    selection: Selection
    weight: float | None = None

    @property
    def share(self) -> Fraction:
        return exact(self.selection.num_samples if self.weight is None else self.weight)


class Mixture:
    """The N samples of all components, numbered 0 to N - 1: those of the first, then those of the next.

    Raises ValueError for sets whose axes or channels differ.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        self.components = tuple(components)
        self.spatial_dims: int = self._common("spatial dimensions", "spatial_dims")
        self.num_channels: int = self._common("channels", "num_channels")
        counts = [one.selection.num_samples for one in self.components]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    @property
    def num_samples(self) -> int:
        return int(self._starts[-1])

    @property
    def shard_sets(self) -> tuple[ShardSet, ...]:
        return tuple(one.shards for one in self.components)

    @cached_property
    def digest(self) -> str:
        """One digest of all sets, in their order; that of the set where there is one."""
        return joint_digest([shards.digest for shards in self.shard_sets])

    @property
    def recipe(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The recipe of the set, or of each."""
        recipes = [shards.recipe for shards in self.shard_sets]
        return recipes[0] if len(recipes) == 1 else recipes

    @property
    def classes(self) -> Int64[np.ndarray, "n m"]:
        """The classes of each sample, padded with -1."""
        columns = [one.shards.rows["classes"].take(one.selection.row_ids) for one in self.components]
        return pad_classes(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))

    @property
    def shares(self) -> list[float]:
        """The share of each set in what is visited."""
        whole = sum(one.share for one in self.components)
        return [float(one.share / whole) for one in self.components]

    def order(self, seed: int) -> Interleaving:
        """Return the order of the visits; sets of one size are visited in different orders."""
        orders = [Order(one.selection.group_sizes, _seed(seed, place)) for place, one in enumerate(self.components)]
        return Interleaving(orders, [one.share for one in self.components])

    def numbers(self, visits: Visits) -> Int64[np.ndarray, " n"]:
        """Return which of the N samples are visited."""
        return self._starts[visits.sets] + visits.positions

    def rows(self, numbers: Int64[np.ndarray, " n"]) -> Iterator[tuple[ShardSet, Int64[np.ndarray, " m"]]]:
        """Yield each set that has some of the N samples, with their rows in it, in the order given."""
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for owner in np.unique(owners).tolist():
            one = self.components[owner]
            yield one.shards, one.selection.row_ids[numbers[owners == owner] - self._starts[owner]]

    def names_of(self, labels: Labels) -> dict[int, str]:
        """Return what the numbers of labels of a kind are called; raise ValueError where two sets differ."""
        names: dict[int, str] = {}
        for shards in self.shard_sets:
            for number, name in shards.names_of(labels).items():
                if names.setdefault(number, name) != name:
                    raise ValueError(
                        f"data: {labels.names} of shards {shards.uri}: {number} is {name!r}, of the sets before it "
                        f"{names[number]!r}; ingest one of them anew with the same numbers"
                    )
        return dict(sorted(names.items()))

    def mean_bytes(self, labels: Labels | None) -> float:
        """Mean raw bytes per visited sample: its voxels, and its labels if they are read."""
        per_voxel, total = labels.bytes_per_voxel if labels else 0, 0.0
        for one, share in zip(self.components, self.shares, strict=True):
            sizes = one.shards.voxel_bytes[one.selection.row_ids]
            total += share * float((sizes + per_voxel * one.selection.extents.prod(axis=1)).mean())
        return total

    def _common(self, what: str, name: str) -> Any:
        values = [getattr(shards, name) for shards in self.shard_sets]
        for shards, value in zip(self.shard_sets, values, strict=True):
            if value != values[0]:
                raise ValueError(
                    f"data: shards {self.shard_sets[0].uri} have {values[0]} {what}, shards {shards.uri} have "
                    f"{value}; a stage is fed samples of one kind: ingest one anew, or give each its own stage"
                )
        return values[0]


class MixtureReader:
    """Reads visited samples of a mixture, in one thread; shards stay open between calls."""

    def __init__(self, mixture: Mixture, labels: Labels | None = None) -> None:
        self._mixture = mixture
        self._readers = [ShardReader(shards, labels) for shards in mixture.shard_sets]

    def read(self, visits: Visits) -> pa.Table:
        """Return the samples in order, with the columns that ``collate`` needs, but for their global numbers."""
        tables, places = [], []
        for place, (reader, one) in enumerate(zip(self._readers, self._mixture.components, strict=True)):
            here = np.flatnonzero(visits.sets == place)
            if len(here):
                tables.append(reader.read(one.selection.row_ids[visits.positions[here]]))
                places.append(here)
        table = tables[0]
        if len(tables) > 1:
            table = pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))
        table = table.append_column("epoch", pa.array(visits.epochs))
        return table.append_column("row", pa.array(self._mixture.numbers(visits)))


def joint_digest(digests: Sequence[str]) -> str:
    """Return one digest of several; that of the first where all are the same."""
    if len(set(digests)) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps(list(digests)).encode()).hexdigest()


def _seed(seed: int, place: int) -> int:
    """Return the seed of a component's order: the training's for the first, and others for the next."""
    if place == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:8], "little")
