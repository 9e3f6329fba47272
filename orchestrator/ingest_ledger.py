"""Ledger: which studies an ingest has laid into which bundle and split, kept between runs of the same command.

Studies that were laid out stay where they are. New ones get bundles of their own behind the others, and splits of
their own, except that a known patient stays in its split. So what is written already need not be read again, and an
interrupted ingest continues to the shards of an undisturbed one. The ledger holds pseudonyms only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from data.bundles import Bundle, volume_id
from data.files import join, read_bytes
from data.manifest import Manifest
from data.privacy import Pseudonymiser
from data.shards import write_atomically
from data.sources import Study
from orchestrator.ingest_plan import IngestConfig, IngestPlan, lay_out_bundles, split_patients

_LEDGER = "studies.json"


@dataclass(frozen=True)
class Entry:
    """A study in its bundle; ``given`` is the split that its source gives it."""

    study: str
    patient: str
    split: str
    given: str | None


Ledger = list[list[Entry]]


def read_ledger(work: str) -> Ledger:
    """Return the bundles that were laid out; none in a new folder."""
    try:
        tree = json.loads(read_bytes(join(work, _LEDGER)))
    except FileNotFoundError:
        return []
    return [[Entry(**entry) for entry in bundle] for bundle in tree]


def continued(plan: IngestPlan, config: IngestConfig, ledger: Ledger) -> IngestPlan:
    """Return the plan with the ledger's bundles, and new ones for new studies; studies that are gone are dropped.

    Raises ValueError where the source gives a study another patient or split than before.
    """
    if not ledger:
        return plan
    names = {volume_id(plan.job.key, study): study for study in plan.studies}
    pseudonymiser = Pseudonymiser(plan.job.key)
    known = {entry.study: entry for bundle in ledger for entry in bundle}
    moved = [
        name
        for name, entry in known.items()
        if name in names
        and (pseudonymiser.patient(names[name].patient), names[name].split) != (entry.patient, entry.given)
    ]
    if moved:
        raise ValueError(
            f"shards {config.out}: {len(moved)} studies have another patient or split in the source than when they "
            f"were written, such as {moved[0]}; expected the same; choose another --out, or replace them with "
            "--overwrite"
        )
    new = [study for name, study in names.items() if name not in known]
    splits = _splits(new, config, pseudonymiser, {e.patient: e.split for e in known.values()})
    old = [
        Bundle(
            number,
            tuple(names[entry.study] for entry in bundle if entry.study in names),
            tuple(entry.split for entry in bundle if entry.study in names),
        )
        for number, bundle in enumerate(ledger)
    ]
    added = lay_out_bundles(new, splits, config.seed) if new else []
    added = [replace(bundle, number=len(old) + bundle.number) for bundle in added]
    return replace(plan, bundles=[*old, *added])


def _splits(
    new: list[Study], config: IngestConfig, pseudonymiser: Pseudonymiser, known: Mapping[str, str]
) -> dict[str, str]:
    """Return the split of each new study's patient: that of a known patient, else one drawn among the new ones."""
    earlier = {study.patient: known.get(pseudonymiser.patient(study.patient)) for study in new}
    torn = [study for study in new if earlier[study.patient] not in (None, study.split) and study.split]
    if torn:
        patient = pseudonymiser.patient(torn[0].patient)
        raise ValueError(
            f"splits: {len(torn)} new studies are of a patient that was written to another split, such as {patient}; "
            "expected one split for each patient; correct the source, or replace the shards with --overwrite"
        )
    unknown = [study for study in new if earlier[study.patient] is None]
    drawn = split_patients(unknown, config, pseudonymiser) if unknown else {}
    return drawn | {patient: split for patient, split in earlier.items() if split is not None}


def check_gone(plan: IngestPlan, ledger: Ledger, manifests: Mapping[int, Manifest]) -> None:
    """Raise ValueError where studies that were written are no longer in the sources."""
    there = {volume_id(plan.job.key, study) for study in plan.studies}
    written = {name for m in manifests.values() for name in m.contents.keys() - set(m.excluded)}
    gone = [entry.study for bundle in ledger for entry in bundle if entry.study in written - there]
    if gone:
        raise ValueError(
            f"shards {plan.job.out}: {len(gone)} studies that were written are no longer in the sources, such as "
            f"{gone[0]}; expected all of them; restore their files, or leave them out for good with --overwrite"
        )


def write_ledger(plan: IngestPlan) -> None:
    """Keep the plan's bundles for the next run."""
    pseudonymiser = Pseudonymiser(plan.job.key)
    tree = [
        [
            asdict(Entry(volume_id(plan.job.key, study), pseudonymiser.patient(study.patient), split, study.split))
            for study, split in zip(bundle.studies, bundle.splits, strict=True)
        ]
        for bundle in plan.bundles
    ]
    write_atomically(join(plan.job.work, _LEDGER), json.dumps(tree).encode())
