"""Rows: groups of runs that differ only in their seeds, named by the settings that distinguish them. Pure.

A table's runs keep the names of its rows. All other rows are named by the fields in which their configs differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from orchestrator.results.run_cards import Card
from orchestrator.results.text import shortened

SEEDS = ("seed", "downstream.seed")
FOLD, NUM_FOLDS = "downstream.fold", "downstream.num_folds"
# Names, places and the frequency of reports decide no result; for shards the digest counts, not the path. Folds are
# parts of one repeat.
_NO_SETTINGS = {
    *SEEDS, FOLD, "name", "pretrained", "data.shards", "downstream.shards",
    "training.report_every_steps", "training.report_every_s", "training.checkpoint_every_steps",
}  # fmt: skip
# What a fine-tuning from scratch depends on, as in Experiment.finetune_key.
_OF_SCRATCH = ("encoder.", "downstream.", "training.precision", "training.sync_batch_norm")
DATASET, PRETRAINING_DATASET = "dataset", "pretraining dataset"
KINDS = ("method.name", "encoder.name")
LONGEST_VALUE = 40
NEAR = 0.3

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """Runs that are repeats of one another.

    settings  what they have in common
    pooled    fields in which they differ nevertheless, because they were grouped by other fields
    """

    name: str
    cards: tuple[Card, ...]
    settings: Settings
    pooled: tuple[str, ...] = ()


def settings_of(card: Card, pretraining: Card | None = None) -> dict[str, str]:
    """Return all settings but the seeds that decide a run's result, and the digests of its training data."""
    params = {
        field: value
        for field, value in card.params.items()
        if field not in _NO_SETTINGS and field.rpartition(".")[0] not in card.params
    }
    if card.kind == "finetune" and card.pretrained is None:
        params = {field: value for field, value in params.items() if field.startswith(_OF_SCRATCH)}
        params["method.name"] = "scratch"
    params[DATASET] = card.tags.get("dataset_digest", "")[:8]
    if pretraining:
        params[PRETRAINING_DATASET] = pretraining.tags.get("dataset_digest", "")[:8]
    return params


def rows_of(cards: Sequence[Card], settings: Mapping[str, Settings]) -> list[Row]:
    """Group the runs that differ only in their seeds; settings are given by place."""
    groups: dict[frozenset[tuple[str, str]], list[Card]] = {}
    for card in cards:
        groups.setdefault(frozenset(settings[card.place].items()), []).append(card)
    rows = [Row("", tuple(group), dict(shared)) for shared, group in groups.items()]
    return _told_apart([replace(row, name=name) for row, name in zip(rows, _names(rows), strict=True)])


def rows_by(cards: Sequence[Card], settings: Mapping[str, Settings], fields: Sequence[str]) -> list[Row]:
    """Group the runs that have the same values of some fields, or belong to the same ``row`` of a table.

    Raises ValueError if no run has such a field.
    """
    known = {card.place: {**card.params, **settings[card.place]} for card in cards}
    for field in fields:
        if field != "row" and not any(field in values for values in known.values()):
            near = get_close_matches(field, {name for values in known.values() for name in values}, 3, NEAR)
            raise ValueError(f"--by {field}: no run has this field; near it are: {', '.join(near) or 'none'}")
    groups: dict[tuple[str, ...], list[Card]] = {}
    for card in cards:
        values = [card.row or "no row" if f == "row" else known[card.place].get(f, "none") for f in fields]
        groups.setdefault(tuple(values), []).append(card)
    rows = []
    for values, group in groups.items():
        labels = [
            value if f == "row" else described(f, value, fields) for f, value in zip(fields, values, strict=True)
        ]
        pooled = differing_fields([settings[card.place] for card in group])
        shared = {field: value for field, value in settings[group[0].place].items() if field not in pooled}
        rows.append(Row(", ".join(labels), tuple(group), shared, tuple(pooled)))
    return rows


def differing_fields(all_settings: Sequence[Settings]) -> list[str]:
    """List the fields whose values differ; a missing value counts as a value."""
    fields = sorted({field for settings in all_settings for field in settings})
    return [field for field in fields if len({settings.get(field) for settings in all_settings}) > 1]


def described(field: str, value: str | None, among: Sequence[str]) -> str:
    """Describe a field's value in a few words: ``iou [0.3, 0.6]``; a method's or an encoder's name is enough."""
    shown = "none" if value in (None, "null") else str(value)
    shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[: LONGEST_VALUE - 3]}..."
    if field.endswith(KINDS):
        return shown
    return f"{shortened(field, among).removesuffix('.name')} {shown}"


def _names(rows: Sequence[Row]) -> list[str]:
    """Name rows after their table's rows if they have any, else by the fields in which they differ."""
    return [_named_by_tables(row) or name for row, name in zip(rows, _named_by_fields(rows), strict=True)]


def _named_by_tables(row: Row) -> str:
    """Return the name that a table or a sweep has for a row; for two tables, both names."""
    names = {card.name if card.kind == "trial" else card.row for card in row.cards}
    return " = ".join(sorted(filter(None, names)))


def _named_by_fields(rows: Sequence[Row]) -> list[str]:
    """Name rows by method and encoder if these differ, then by the fields that differ among equal names.

    Another method has other fields, so that differences in its fields are not named.
    """
    kinds = [f for f in differing_fields([row.settings for row in rows]) if f.endswith(KINDS)]
    family = [tuple(row.settings.get(field) for field in kinds) for row in rows]
    within = [differing_fields([r.settings for r, f in zip(rows, family, strict=True) if f == own]) for own in family]
    everything = sorted({*kinds, *(field for fields in within for field in fields)})
    names = []
    for row, fields in zip(rows, within, strict=True):
        labels = [described(field, row.settings.get(field), everything) for field in [*kinds, *fields]]
        names.append(", ".join(labels) or row.settings.get("method.name", "") or row.cards[0].name)
    return names


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """If two tables give two rows the same name, add the fields in which the rows differ."""
    told = []
    for row in rows:
        same = [other for other in rows if other.name == row.name]
        fields = differing_fields([other.settings for other in same])
        labels = [row.name, *(described(field, row.settings.get(field), fields) for field in fields)]
        told.append(replace(row, name=", ".join(labels)))
    return told
