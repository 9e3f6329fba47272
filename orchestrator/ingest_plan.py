"""The plan of an ingest: the request, the studies found, their splits and bundles. No scan is read or written.

The plan and the shards depend on the request and on what the sources list, never on the cluster.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from data.bundles import Bundle, Job, volume_id
from data.files import listing_once
from data.privacy import Pseudonymiser, load_key
from data.quarantine import BadStudy, NoScan
from data.recipes import RECIPES, Recipe
from data.sources import (
    LeftOut,
    SourceOptions,
    Study,
    companions,
    find_studies,
    label_names,
    left_out_of,
    remarks,
    survey_of,
)
from data.spelling import did_you_mean
from data.splits import assign_splits
from orchestrator.config import absolute
from orchestrator.refusal import validated

FORMAT = 3
PICTURES_PER_BUNDLE = 512
MOST_VOLUMES_PER_BUNDLE, LEAST_VOLUMES_PER_BUNDLE = 32, 8
BUNDLES_WANTED = 16
TORN = BadStudy(
    "a study of a patient who is in two splits",
    "one split for each patient, or what was learnt from a patient is judged by the same patient",
    "correct the split in the source, or ignore a table's own splits by --split-column ''",
)


def _placed(uri: str) -> str:
    absolute(uri)  # raises for credentials, and for a relative path in a submitted job
    return uri


class Source(BaseModel):
    """A folder or bucket of scans, its layout, and how studies are found in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    layout: str
    options: SourceOptions = SourceOptions()

    _placed = field_validator("source")(lambda uri: _placed(uri))


class IngestConfig(BaseModel):
    """The request for an ingest.

    also            further sources into the same shards
    recipe          preprocessing by name; ``changes`` replaces some of its fields
    val_fraction    share of patients held out for validation if the layout names no such split; likewise
                    test_fraction
    max_bad         if a larger share of the studies cannot be used, no index is written
    rows_per_group  slices or pictures per row group, which is read and mixed as a whole; a volume has its own row
                    group
    readers         how many tasks run at once (default: one per core)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    layout: str
    recipe: str
    out: str
    options: SourceOptions = SourceOptions()
    also: tuple[Source, ...] = ()
    changes: dict[str, Any] = {}
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int = 0
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.1
    strict: bool = False
    overwrite: bool = False
    keep_names: bool = False
    rows_per_group: PositiveInt = 16
    readers: PositiveInt | None = None

    _placed = field_validator("source", "out")(lambda uri: _placed(uri))

    @model_validator(mode="after")
    def _recipe_exists(self) -> Self:
        if self.recipe not in RECIPES:
            near = did_you_mean(self.recipe, RECIPES)
            raise ValueError(f"recipe: there is no {self.recipe!r}{near}; expected one of {', '.join(RECIPES)}")
        assert self.resolved_recipe, "its fields are checked as well"
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        return (Source(source=self.source, layout=self.layout, options=self.options), *self.also)

    @property
    def resolved_recipe(self) -> Recipe:
        tree = {**RECIPES[self.recipe].model_dump(), **self.changes}
        return validated(Recipe, tree, f"recipe {self.recipe}, changed")


@dataclass(frozen=True)
class IngestPlan:
    """Studies in their stable order, their bundles, and the description that the shards will carry.

    ``identity`` shows whether the shards in a folder are the requested ones; it holds no name. ``stamps`` tell by
    pseudonym what each study was made from: they change with its files and its description. ``remarks`` say how the
    sources were understood. ``no_scans`` are files of the sources that are no scans, by design: the quarantine list
    names them, and they do not count as bad.
    """

    job: Job
    studies: list[Study]
    bundles: list[Bundle]
    identity: dict[str, Any]
    stamps: dict[str, str]
    label_names: dict[int, str]
    class_names: dict[int, str]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]
    no_scans: list[Study]


def make_plan(config: IngestConfig) -> IngestPlan:
    """Find the studies of all sources, split them by patient, lay out bundles; raise ValueError if that fails."""
    key = load_key()
    with listing_once():
        parts = [(part, find_studies(part.source, part.layout, part.options)) for part in config.sources]
        left_out = _left_out(parts)
        states = _states(config.sources)
    found = [study for _, own in parts for study in own]
    found.sort(key=lambda study: (study.dataset, study.key))
    no_scans = [study for study in found if isinstance(study.fault, NoScan)]
    studies = without_leaks([study for study in found if not isinstance(study.fault, NoScan)])
    _check_any(studies, no_scans)
    _check_distinct(studies)
    recipe = config.resolved_recipe
    names = _all_label_names(config.sources)
    rows_per_group = 1 if recipe.spatial_dims == 3 else config.rows_per_group
    pseudonymiser = Pseudonymiser(key)
    splits = split_patients(studies, config)
    return IngestPlan(
        job=Job(config.out, recipe, key, config.seed, rows_per_group),
        studies=studies,
        bundles=lay_out_bundles(studies, splits, config.seed),
        identity={
            "format": str(FORMAT),
            "recipe": recipe.model_dump(mode="json"),
            "sources": [_options(part, pseudonymiser) for part in config.sources],
            "held out": f"val {config.val_fraction:g}, test {config.test_fraction:g}",
            "pseudonym key": pseudonymiser.fingerprint("key"),
            "seed": str(config.seed),
            "rows per group": str(rows_per_group),
            "label names": ", ".join(f"{value} {name}" for value, name in names.items()) or "none given",
        },
        stamps={volume_id(key, study): _stamp(study, states, pseudonymiser) for study in studies},
        label_names=names,
        class_names=_class_names(studies),
        left_out=left_out,
        remarks=(*_remarks(config.sources), *_by_kind(no_scans)),
        no_scans=no_scans,
    )


def _remarks(sources: Sequence[Source]) -> tuple[str, ...]:
    """Say how each source was understood, naming the source if there are several."""
    said = [
        (f"source {number}: " if len(sources) > 1 else "") + remark
        for number, part in enumerate(sources, 1)
        for remark in remarks(part.source, part.layout, part.options)
    ]
    return tuple(said)


def _by_kind(no_scans: Sequence[Study]) -> list[str]:
    """Say how many files of each kind were left out, and what is to be done with them."""
    kinds = Counter((study.fault.found, study.fault.remedy) for study in no_scans if study.fault)
    return [f"left out: {count} x {kind}: {remedy}" for (kind, remedy), count in kinds.most_common()]


def _check_any(studies: Sequence[Study], no_scans: Sequence[Study]) -> None:
    if not studies:
        raise ValueError(
            f"sources: 0 studies; expected 1 or more; {'; '.join(_by_kind(no_scans))}; give the folder of the scans"
        )


def _check_distinct(studies: Sequence[Study]) -> None:
    counts = Counter((study.dataset, study.key) for study in studies)
    doubled = sum(count > 1 for count in counts.values())
    if doubled:
        raise ValueError(
            f"sources: {doubled} studies have the dataset and path of another; expected each once; "
            "give the sources different dataset names"
        )


def split_patients(
    studies: Sequence[Study], config: IngestConfig, earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the split of each patient: the layout's if it names one, else drawn by fractions.

    A split that the layout gives to labelled patients is not drawn; the other splits are drawn from its training
    split too. If some patients have labels, all patients without labels train, because they could not be scored.
    Classes are spread evenly. ``earlier`` are the splits of patients that were written before: they stay, and the
    others are drawn so that the fractions hold for all.
    """
    earlier = earlier or {}
    given = {study.patient: study.split for study in studies if study.split is not None and study.fault is not TORN}
    strata = _strata(studies)
    scored = {patient for patient, stratum in strata.items() if stratum is not None} or set(strata)
    held = {given[patient] for patient in scored if patient in given}
    val = 0.0 if "val" in held else config.val_fraction
    test = 0.0 if "test" in held else config.test_fraction
    pool = {patient: str(strata[patient]) for patient in scored if given.get(patient, "train") == "train"}
    counts = Counter(earlier[patient] for patient in pool if patient in earlier)
    new = {patient: stratum for patient, stratum in pool.items() if patient not in earlier}
    drawn = assign_splits(new, val, test, config.seed, counts)
    return dict.fromkeys(strata, "train") | given | drawn | dict(earlier)


def without_leaks(studies: Sequence[Study]) -> list[Study]:
    """Return the studies; all those of a patient whom the source lays into two splits are bad."""
    splits: dict[str, set[str]] = {}
    for study in studies:
        if study.split is not None:
            splits.setdefault(study.patient, set()).add(study.split)
    return [
        replace(study, fault=study.fault or TORN) if len(splits.get(study.patient, ())) > 1 else study
        for study in studies
    ]


def _strata(studies: Sequence[Study]) -> dict[str, str | None]:
    """Map each patient to the stratum that is spread over the splits; None for a patient without labels.

    The stratum is the patient's class that the fewest patients have (of two such classes, the higher), "no class" for
    an empty list of classes, or "label" for a label map.
    """
    classes: dict[str, set[int]] = {}
    strata: dict[str, str | None] = {}
    for study in studies:
        if study.classes is not None:
            classes.setdefault(study.patient, set()).update(study.classes)
        labelled = study.label or strata.get(study.patient)
        strata[study.patient] = "label" if labelled else None
    num_patients = Counter(number for numbers in classes.values() for number in numbers)
    for patient, numbers in classes.items():
        rarest = min(numbers, key=lambda number: (num_patients[number], -number), default=None)
        strata[patient] = "no class" if rarest is None else f"class {rarest:06d}"
    return strata


def lay_out_bundles(studies: Sequence[Study], splits: Mapping[str, str], seed: int) -> list[Bundle]:
    """Deal studies in a seeded order into bundles; a bundle's size depends only on the studies' kind and number."""
    order = sorted(studies, key=lambda study: _draw(seed, study))
    size = min(MOST_VOLUMES_PER_BUNDLE, max(LEAST_VOLUMES_PER_BUNDLE, -(-len(order) // BUNDLES_WANTED)))
    if all(study.kind in ("picture", "array") for study in order):
        size = PICTURES_PER_BUNDLE
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    return [
        Bundle(number, tuple(part), tuple(splits[study.patient] for study in part))
        for number, part in enumerate(parts)
    ]


def _draw(seed: int, study: Study) -> bytes:
    return hashlib.blake2b(f"{seed}:{study.dataset}/{study.key}".encode(), digest_size=16).digest()


def _options(part: Source, pseudonymiser: Pseudonymiser) -> dict[str, str]:
    """Return the layout of a source and a fingerprint of each of its options: a pattern may hold a name."""
    given = part.options.model_dump(mode="json", exclude_defaults=True, exclude={"label_names"})
    return {"layout": part.layout} | {
        f"option {name}": pseudonymiser.fingerprint(json.dumps(value)) for name, value in given.items()
    }


States = dict[str, tuple[tuple[int, int], ...]]
"""Size and time of change of each file by its address, and of the voxels that lie beside it."""


def _states(sources: Sequence[Source]) -> States:
    files = [file for part in sources for file in survey_of(part.source, part.layout).files]
    states: States = {file.uri: ((file.num_bytes, file.mtime_ns),) for file in files}
    beside = companions(files, states)
    for uri, header in beside.items():
        states[header] += states[uri]
    return states


def _stamp(study: Study, states: States, pseudonymiser: Pseudonymiser) -> str:
    files = [states.get(uri) for uri in (*study.image, study.label or "")]
    said = (study.kind, study.modality, study.classes, study.class_names, study.rescale, study.num_channels)
    fault = study.fault and str(study.fault)
    return pseudonymiser.fingerprint(json.dumps([said, fault, len(study.image), study.label is not None, files]))


def _all_label_names(sources: Sequence[Source]) -> dict[int, str]:
    """Return the names of label ids over all sources; raise ValueError if two give one id different names."""
    names: dict[int, str] = {}
    for part in sources:
        found = label_names(part.source) if part.layout == "nnunet" else {}
        for number, name in {**found, **(part.options.label_names or {})}.items():
            if names.setdefault(number, name) != name:
                raise ValueError(
                    f"sources: label {number} is {names[number]!r} in one and {name!r} in another; expected one "
                    "meaning; ingest them into shards of their own, or renumber one"
                )
    return names


def _class_names(studies: Sequence[Study]) -> dict[int, str]:
    named = {n: name for s in studies for n, name in zip(s.classes or (), s.class_names, strict=False)}
    return dict(sorted(named.items()))


def _left_out(parts: Sequence[tuple[Source, list[Study]]]) -> tuple[LeftOut, ...]:
    """List what no source reads or quarantines: a file that one of several leaves out may be another's."""
    studies = [study for _, found in parts for study in found]
    first = {part.source: part for part, _ in reversed(parts)}
    said = [one for part in first.values() for one in left_out_of(part.source, part.layout, studies)]
    return tuple(dict.fromkeys(said))
