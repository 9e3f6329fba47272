"""The plan of an ingest: the studies found, their splits and bundles. No scan is read or written.

The plan and the shards depend on the request and on what the sources list, never on the cluster.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.box_rule import LabelBoxes
from data.files import listing_once
from data.privacy import Pseudonymiser, load_key
from data.quarantine import NoScan
from data.shards.bundles import Bundle, BundleJob, volume_id
from data.sources import (
    LeftOutFiles,
    Study,
    companions,
    find_studies,
    label_names,
    left_out_of,
    remarks,
    survey_of,
)
from orchestrator.config.paths import absolute
from orchestrator.ingest.request import IngestConfig, ScanSource
from orchestrator.ingest.splits import split_patients, without_leaks

FORMAT, EARLIER_FORMAT = 4, 3  # of the folder with its manifests; the shards have a format of their own
PICTURES_PER_BUNDLE = 512
MOST_VOLUMES_PER_BUNDLE, LEAST_VOLUMES_PER_BUNDLE = 32, 8
BUNDLES_WANTED = 16


@dataclass(frozen=True)
class IngestPlan:
    """Studies in their stable order, their bundles, and the description that the shards will carry.

    ``identity`` shows whether the shards in a folder are the requested ones; it holds no name. ``stamps`` tell by
    pseudonym what each study was made from: they change with its files and its description. ``box_names`` are those
    of boxes that the sources give; ``label_boxes`` says how label maps give boxes, if they do. ``remarks`` say how
    the sources were understood. ``no_scans`` are files of the sources that are no scans, by design: the quarantine
    list names them, and they do not count as bad.
    """

    job: BundleJob
    studies: list[Study]
    bundles: list[Bundle]
    identity: dict[str, Any]
    stamps: dict[str, str]
    label_names: dict[int, str]
    class_names: dict[int, str]
    box_names: dict[int, str]
    label_boxes: tuple[LabelBoxes, ...]
    left_out: tuple[LeftOutFiles, ...]
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
        job=BundleJob(absolute(config.out), recipe, key, config.seed, rows_per_group),
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
        box_names=_box_names(studies),
        label_boxes=tuple(dict.fromkeys(study.label_boxes for study in studies if study.label_boxes)),
        left_out=left_out,
        remarks=(*_remarks(config.sources), *_by_kind(no_scans)),
        no_scans=no_scans,
    )


def _remarks(sources: Sequence[ScanSource]) -> tuple[str, ...]:
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


def _options(part: ScanSource, pseudonymiser: Pseudonymiser) -> dict[str, str]:
    """Return the layout of a source and a fingerprint of each of its options: a pattern may hold a name."""
    given = part.options.model_dump(mode="json", exclude_defaults=True, exclude={"label_names"})
    return {"layout": part.layout} | {
        f"option {name}": pseudonymiser.fingerprint(json.dumps(value)) for name, value in given.items()
    }


States = dict[str, tuple[tuple[int, int], ...]]
"""Size and time of change of each file by its address, and of the voxels that lie beside it."""


def _states(sources: Sequence[ScanSource]) -> States:
    files = [file for part in sources for file in survey_of(part.source, part.layout).files]
    states: States = {file.uri: ((file.num_bytes, file.mtime_ns),) for file in files}
    beside = companions(files, states)
    for uri, header in beside.items():
        states[header] += states[uri]
    return states


def _stamp(study: Study, states: States, pseudonymiser: Pseudonymiser) -> str:
    files = [states.get(uri) for uri in (*study.image, study.label or "")]
    said: list[Any] = [
        study.kind,
        study.modality,
        study.classes,
        study.class_names,
        study.rescale,
        study.num_channels,
    ]
    added = (study.boxes, study.size, study.label_boxes, study.stack)
    if any(part is not None for part in added):  # stamps of studies without them are as they always were
        said.append(repr(added))
    fault = study.fault and str(study.fault)
    return pseudonymiser.fingerprint(json.dumps([said, fault, len(study.image), study.label is not None, files]))


def _all_label_names(sources: Sequence[ScanSource]) -> dict[int, str]:
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


def _box_names(studies: Sequence[Study]) -> dict[int, str]:
    """Return the names of the classes of boxes; raise ValueError where sources do not agree on them."""
    names: dict[int, str] = {}
    given = any(study.boxes is not None for study in studies)
    if given and any(study.label_boxes for study in studies):
        raise ValueError(
            "sources: boxes of label maps in one and boxes that are given in another; expected one kind, whose "
            "classes have one numbering; ingest them into shards of their own, or leave option boxes out"
        )
    for box in (box for study in studies for box in study.boxes or ()):
        if names.setdefault(box.number, box.name) != box.name:
            raise ValueError(
                f"sources: class {box.number} of boxes is {names[box.number]!r} in one and {box.name!r} in another; "
                "expected the same classes in all; ingest them into shards of their own"
            )
    return dict(sorted(names.items()))


def _left_out(parts: Sequence[tuple[ScanSource, list[Study]]]) -> tuple[LeftOutFiles, ...]:
    """List what no source reads or quarantines: a file that one of several leaves out may be another's."""
    studies = [study for _, found in parts for study in found]
    first = {part.source: part for part, _ in reversed(parts)}
    said = [one for part in first.values() for one in left_out_of(part.source, part.layout, studies)]
    return tuple(dict.fromkeys(said))
