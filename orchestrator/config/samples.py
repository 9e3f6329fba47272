"""Samples: which samples of which shards a training sees, for one shard set or several with weights."""

from collections.abc import Callable, Collection
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Discriminator, Field, Tag, model_serializer

from data.labels import Labels
from data.shards.index import Selection, ShardSet
from data.shards.keep import Keep
from methods.base import ADDED, FrozenConfig
from orchestrator.config.paths import AbsolutePath


class Samples(FrozenConfig):
    """Samples of some shards; ``keep`` leaves out samples that do not meet its criteria."""

    section: ClassVar[str]
    shards: AbsolutePath
    keep: Keep = Keep()

    @model_serializer(mode="wrap")
    def _without_an_empty_filter(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out a filter that keeps everything: it decides nothing, so it is no part of a run key."""
        tree = dump(self)
        return tree if self.keep.criteria else {name: value for name, value in tree.items() if name != "keep"}

    def kept(
        self,
        shards: ShardSet,
        split: str | None,
        patients: Collection[str] | None = None,
        having: Labels | None = None,
    ) -> Selection:
        """Select samples of a split that the filter keeps; raise ValueError for a filter that keeps none."""
        try:
            selection = shards.select(split, patients, having, self.keep)
        except ValueError as error:
            raise ValueError(f"{self.section}.{error}") from None
        if selection.num_left_out and selection.num_samples == 0:
            raise ValueError(
                f"{self.section}.keep leaves out all {selection.num_left_out:,} samples of split {split!r} in shards "
                f"{shards.uri}: {self.keep.describe(selection.left_out_by)}; widen {self.section}.keep"
            )
        return selection


class Data(Samples):
    """The samples that a pretraining sees.

    weight   beside other sets: so many of its samples are seen for so many of theirs; by default, every set is seen
             as often as it has samples, so that an epoch sees each sample once
    """

    section = "data"
    split: str | None = "train"
    weight: Annotated[float | None, Field(gt=0), ADDED] = None

    def selected(self, shards: ShardSet, having: Labels | None = None) -> Selection:
        """Select the samples that a pretraining sees; raise ValueError for a split without samples."""
        selection = self.kept(shards, self.split, having=having)
        if having and selection.num_samples == 0:
            raise ValueError(
                f"data.split {self.split!r}: 0 samples with {having.each} in shards {self.shards}, "
                "expected at least 1; name labelled shards in data.shards"
            )
        if selection.num_samples == 0:
            splits = ", ".join(sorted(set(shards.rows["split"].to_pylist())))
            raise ValueError(
                f"data.split {self.split!r}: 0 samples in shards {self.shards}, expected at least 1; set data.split "
                f"to one of {splits}, or to null for all of them"
            )
        return selection


def _weighed_together(data: Data | tuple[Data, ...]) -> Data | tuple[Data, ...]:
    """Return the data; raise ValueError where some sets have a weight and others none."""
    sets = (data,) if isinstance(data, Data) else data
    weights = [one.weight for one in sets if one.weight is not None]
    if weights and (len(sets) == 1 or len(weights) < len(sets)):
        raise ValueError(
            f"{len(weights)} of {len(sets)} shard sets with a weight; expected two sets or more, and a weight for "
            "each or for none, where every set is seen as often as it has samples: set or remove data.weight"
        )
    return data


Mix = Annotated[tuple[Data, ...], Field(min_length=1)]
Sets = Annotated[
    Annotated[Data, Tag("one")] | Annotated[Mix, Tag("several")],
    Discriminator(lambda given: "several" if isinstance(given, list | tuple) else "one"),
    AfterValidator(_weighed_together),
]
"""One shard set, or several whose samples come in turn."""
