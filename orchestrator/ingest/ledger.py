"""Ledger: which studies an ingest has laid into which bundle and split, kept between runs of the same command.

Studies that were laid out stay where they are. New ones get bundles of their own behind the others; their patients'
splits are drawn so that the fractions hold for all patients, and a known patient stays in its split. So what is
written already need not be read again, and an interrupted ingest continues to the shards of an undisturbed one. The
ledger holds pseudonyms only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from data.files import join, read_bytes
from data.privacy import Pseudonymiser
from data.shards.bundles import Bundle, volume_id
from data.shards.manifest import Manifest
from data.shards.writer import write_atomically
from data.sources import Study
from orchestrator.ingest.plan import IngestPlan, lay_out_bundles
from orchestrator.ingest.request import IngestConfig
from orchestrator.ingest.splits import TORN, split_patients

LEDGER = "studies.json"


@dataclass(frozen=True)
class LedgerEntry:
    """A study in its bundle; ``given`` is the split that its source gives it."""

    study: str
    patient: str
    split: str
    given: str | None


Ledger = list[list[LedgerEntry]]


def read_ledger(work: str) -> Ledger:
    """Return the bundles that were laid out; none in a new folder."""
    try:
        tree = json.loads(read_bytes(join(work, LEDGER)))
    except FileNotFoundError:
        return []
    return [[LedgerEntry(**entry) for entry in bundle] for bundle in tree]


def continued(
    plan: IngestPlan, config: IngestConfig, ledger: Ledger, manifests: Mapping[int, Manifest]
) -> IngestPlan:
    """Return the plan with the ledger's bundles, and new ones for new studies; studies that are gone are dropped.

    A study that was laid out keeps its split. Raises ValueError where the source gives one that was written another
    patient or split than before; one that was bad may get another. A new study of a known patient is bad where the
    source lays it into another split than the patient's.
    """
    if not ledger:
        return plan
    pseudonymiser = Pseudonymiser(plan.job.key)
    studies = {volume_id(plan.job.key, study): study for study in plan.studies}
    known = {entry.study: entry for bundle in ledger for entry in bundle if entry.study in studies}
    moved = {name for name, entry in known.items() if _is_moved(studies[name], entry, pseudonymiser)}
    _check_unmoved(config.out, sorted(moved & _written(manifests)))
    torn = {reject.study for m in manifests.values() for reject in m.rejects if reject.found == TORN.found}
    stays = {entry.patient: entry.split for name, entry in known.items() if name not in moved | torn}
    patients = {study.patient: pseudonymiser.patient(study.patient) for study in plan.studies}
    earlier = {name: stays[patient] for name, patient in patients.items() if patient in stays}
    studies = {name: _not_torn(study, earlier) for name, study in studies.items()}
    splits = split_patients(list(studies.values()), config, earlier)
    old = [
        _bundle(number, [studies[entry.study] for entry in bundle if entry.study in studies], splits)
        for number, bundle in enumerate(ledger)
    ]
    new = [study for name, study in studies.items() if name not in known]
    added = lay_out_bundles(new, splits, config.seed) if new else []
    added = [replace(bundle, number=len(old) + bundle.number) for bundle in added]
    return replace(plan, studies=list(studies.values()), bundles=[*old, *added])


def _bundle(number: int, studies: Sequence[Study], splits: Mapping[str, str]) -> Bundle:
    return Bundle(number, tuple(studies), tuple(splits[study.patient] for study in studies))


def _is_moved(study: Study, entry: LedgerEntry, pseudonymiser: Pseudonymiser) -> bool:
    return (pseudonymiser.patient(study.patient), study.split) != (entry.patient, entry.given)


def _written(manifests: Mapping[int, Manifest]) -> set[str]:
    return {name for manifest in manifests.values() for name in manifest.contents.keys() - set(manifest.excluded)}


def _check_unmoved(out: str, moved: Sequence[str]) -> None:
    if moved:
        raise ValueError(
            f"shards {out}: {len(moved)} studies have another patient or split in the source than when they were "
            f"written, such as {moved[0]}; expected the same; choose another --out, or replace them with --overwrite"
        )


def _not_torn(study: Study, earlier: Mapping[str, str]) -> Study:
    if study.split in (None, earlier.get(study.patient, study.split)):
        return study
    return replace(study, fault=study.fault or TORN)


def check_gone(plan: IngestPlan, ledger: Ledger, manifests: Mapping[int, Manifest]) -> None:
    """Raise ValueError where studies that were written are no longer in the sources."""
    there = {volume_id(plan.job.key, study) for study in plan.studies}
    gone = [entry.study for bundle in ledger for entry in bundle if entry.study in _written(manifests) - there]
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
            asdict(
                LedgerEntry(volume_id(plan.job.key, study), pseudonymiser.patient(study.patient), split, study.split)
            )
            for study, split in zip(bundle.studies, bundle.splits, strict=True)
        ]
        for bundle in plan.bundles
    ]
    write_atomically(join(plan.job.work, LEDGER), json.dumps(tree).encode())
