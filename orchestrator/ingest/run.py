"""Ingest: sources -> shards, in parallel on Ray Data. A bundle is a task; memory does not grow with the studies.

Every bundle leaves a manifest, so the same command continues where it was stopped, and does nothing if everything is
done. Copies of a scan are found once all scans are read; the bundles that hold a copy are then written again without
it.
"""

import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from data.files import check_writable
from data.shards.bundles import Bundle, volume_id
from data.shards.check import doubts
from data.shards.index import ShardSet
from data.shards.manifest import Manifest, Reject, duplicates, read_manifest
from data.sources import LeftOutFiles, Study
from data.splits import SPLITS
from orchestrator.cluster.connection import connected
from orchestrator.ingest.folder import QUARANTINE, claim, done_bundles, finish, finished, write_quarantine
from orchestrator.ingest.ledger import check_gone, continued, read_ledger, write_ledger
from orchestrator.ingest.plan import IngestPlan, make_plan
from orchestrator.ingest.progress import Tally
from orchestrator.ingest.request import IngestConfig
from orchestrator.ingest.tasks import run_bundles
from orchestrator.terminal import progress

__all__ = ["IngestConfig", "IngestReport", "ingest"]
# Each copy names the study that it copies; copies are one reason nevertheless.
_PSEUDONYM = re.compile(r"study v-[0-9a-f]{16}")
_MOST_REASONS = 10


@dataclass(frozen=True)
class Reading:
    """How many studies a run reads: those that were not read before, changed or bad ones; and how many it keeps."""

    num_new: int
    num_changed: int
    num_bad: int
    num_kept: int

    @property
    def num_read(self) -> int:
        return self.num_new + self.num_changed + self.num_bad

    def describe(self) -> str:
        """Say the numbers in a line."""
        return (
            f"{self.num_read} studies read ({self.num_new} new, {self.num_changed} changed, {self.num_bad} "
            f"quarantined before), {self.num_kept} kept as they were"
        )


@dataclass(frozen=True)
class IngestReport:
    """The result of an ingest. ``shards`` is None if too many bad studies prevented the index."""

    config: IngestConfig
    shards: ShardSet | None
    num_studies: int
    rejects: tuple[Reject, ...]
    left_out: tuple[LeftOutFiles, ...]
    remarks: tuple[str, ...]
    bundles_written: int
    seconds: float
    reading: Reading | None = None

    @property
    def too_many_bad(self) -> bool:
        return len(self.rejects) > self.config.max_bad * self.num_studies

    def summary(self) -> str:
        """Return the report as text, one line per subject."""
        bad, total = len(self.rejects), self.num_studies
        lines = [f"{total - bad} of {total} studies written, {bad} quarantined" + (f": {QUARANTINE}" if bad else "")]
        lines += _by_reason(self.rejects)
        if self.left_out:
            lines.append("neither read nor quarantined:")
            lines += [f"  {one.describe(self.config.keep_names)}" for one in self.left_out]
        return "\n".join([*lines, *self.remarks, *self._outcome()])

    def _outcome(self) -> list[str]:
        if self.shards is None:
            share = len(self.rejects) / self.num_studies
            return [
                f"{share:.0%} of the studies are bad, expected at most {self.config.max_bad:.0%}: no index was "
                "written; repair or remove them, or raise --max-bad: finished work is kept"
            ]
        counts = {split: self.shards.select(split=split).num_samples for split in SPLITS}
        splits = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
        lines = [f"{self.shards.num_samples} samples ({splits}) in {self.seconds:.0f} s"]
        for split, fraction in (("val", self.config.val_fraction), ("test", self.config.test_fraction)):
            if fraction > 0 and counts[split] == 0:
                lines.append(
                    f"split {split} is empty: {fraction:g} of so few patients is less than half a patient; raise "
                    f"--{split}-fraction, or ingest more patients"
                )
        if self.reading and self.reading.num_kept and self.reading.num_read:
            lines.append(self.reading.describe())
        lines += doubts(self.shards)
        if self.bundles_written == 0:
            lines.append("everything was done before; nothing was changed")
        return [*lines, f"digest {self.shards.digest}"]


def _by_reason(rejects: Sequence[Reject]) -> list[str]:
    """Group rejected studies by reason: their number, the reason, and the remedy."""
    reasons = Counter((_PSEUDONYM.sub("another study", reject.found), reject.remedy) for reject in rejects)
    lines = [f"  {count} x {reason}: {remedy}" for (reason, remedy), count in reasons.most_common(_MOST_REASONS)]
    if len(reasons) > _MOST_REASONS:
        lines.append(f"  and {len(reasons) - _MOST_REASONS} other reasons")
    return lines


def ingest(config: IngestConfig) -> IngestReport:
    """Write the studies of the sources as shards into ``config.out``; continue where an earlier ingest stopped.

    Raises ValueError if the folder holds shards of another request, and with ``strict`` at the first bad study.
    """
    began = time.monotonic()
    with progress.phase("finding studies"):
        plan = make_plan(config)
        check_writable(config.out, "--out")
    claim(plan, config.overwrite)
    ledger = read_ledger(plan.job.work)
    manifests = done_bundles(plan.job, range(len(ledger)))
    plan = continued(plan, config, ledger, manifests)
    check_gone(plan, ledger, manifests)
    write_ledger(plan)
    todo, reading = _to_read(plan, manifests)
    names = {volume_id(plan.job.key, study): study.key for study in (*plan.studies, *plan.no_scans)}
    num_written = _run_all(plan, config, manifests, todo)
    rejects = _all_rejects(plan, names, manifests)
    _stop_if_strict(config, rejects)
    write_quarantine(plan.job, [*rejects, *_no_scans(plan)], names if config.keep_names else {})
    report = IngestReport(
        config=config,
        shards=None,
        num_studies=len(plan.studies),
        rejects=tuple(rejects),
        left_out=plan.left_out,
        remarks=plan.remarks,
        bundles_written=num_written,
        reading=reading,
        seconds=time.monotonic() - began,
    )
    if report.too_many_bad:
        return report
    with progress.phase("writing the index"):
        shards = (finished(plan, manifests) if num_written == 0 else None) or finish(plan, manifests, len(rejects))
    return replace(report, shards=shards, seconds=time.monotonic() - began)


def _to_read(plan: IngestPlan, manifests: Mapping[int, Manifest]) -> tuple[list[Bundle], Reading]:
    """Return the bundles that hold a study to be read, and the numbers of studies that are read and kept.

    Read are studies that no manifest knows, those whose files or description changed, and those that were bad: what
    hindered a reader may be gone without a trace in the file.
    """
    todo = []
    num_new = num_changed = num_bad = 0
    for bundle in plan.bundles:
        names = [volume_id(plan.job.key, study) for study in bundle.studies]
        stamps = {name: plan.stamps[name] for name in names}
        manifest = manifests.get(bundle.number)
        if manifest is None:
            num_new += len(names)
            todo.append(replace(bundle, stamps=stamps))
            continue
        unreadable = {name for name, study in zip(names, bundle.studies, strict=True) if study.fault is None}
        bad = {reject.study for reject in manifest.rejects} & unreadable
        changed = {name for name in names if manifest.stamps.get(name) != stamps[name]} - bad
        num_bad, num_changed = num_bad + len(bad), num_changed + len(changed)
        if bad or changed:
            todo.append(_again(bundle, manifest, stamps, bad | changed))
    num_kept = len(plan.studies) - num_new - num_changed - num_bad
    return todo, Reading(num_new, num_changed, num_bad, num_kept)


def _again(bundle: Bundle, manifest: Manifest, stamps: Mapping[str, str], names: Collection[str]) -> Bundle:
    """Return a bundle that reads some of its studies and keeps the rows of the others."""
    excluded = {name: manifest.contents[name] for name in manifest.excluded if name in stamps and name not in names}
    return replace(bundle, excluded=excluded, stamps=stamps, earlier=manifest, again=frozenset(names))


def _run_all(plan: IngestPlan, config: IngestConfig, manifests: dict[int, Manifest], todo: list[Bundle]) -> int:
    """Run bundles, then those that hold copies; complete ``manifests``, and return how many wrote something new."""
    tally = Tally(len(plan.studies))
    running = {bundle.number for bundle in todo}
    for number, manifest in manifests.items():
        if number not in running:
            _note(plan.bundles[number], manifest, config, tally)
    num_written = 0
    todo = todo or _with_copies(plan, manifests)
    with connected() if todo else nullcontext(), tally.shown() if todo else nullcontext():
        while todo:
            for bundle in todo:
                if bundle.number in manifests and bundle.number not in running:
                    tally.count(-len(bundle.studies), -len(manifests[bundle.number].rejects))
            running = set()
            for number in run_bundles(plan.job, todo, config.readers):
                manifest = read_manifest(plan.job.work, number)
                assert manifest is not None, f"bundle {number} ended without a manifest"
                num_written += not _is_same(manifest, manifests.get(number))
                manifests[number] = manifest
                _note(plan.bundles[number], manifest, config, tally)
            todo = _with_copies(plan, manifests)
    return num_written


def _is_same(manifest: Manifest, earlier: Manifest | None) -> bool:
    return earlier is not None and replace(manifest, stamps={}) == replace(earlier, stamps={})


def _note(bundle: Bundle, manifest: Manifest, config: IngestConfig, tally: Tally) -> None:
    """Count a finished bundle; with ``strict``, stop at its first rejected study."""
    tally.count(len(bundle.studies), len(manifest.rejects) + len(manifest.excluded))
    _stop_if_strict(config, manifest.rejects)


def _stop_if_strict(config: IngestConfig, rejects: Sequence[Reject]) -> None:
    if config.strict and rejects:
        first = rejects[0]
        raise ValueError(
            f"study {first.study}: {first.found}; expected {first.expected}; {first.remedy}, or leave --strict out "
            "to quarantine it"
        )


def _with_copies(plan: IngestPlan, manifests: Mapping[int, Manifest]) -> list[Bundle]:
    """Return the bundles whose copies are not yet left out, or leave out studies that are no copies any more."""
    contents = _contents(manifests)
    copies = duplicates(in_stable_order(plan, contents))
    again = []
    for bundle in plan.bundles:
        manifest = manifests[bundle.number]
        wanted = {study: contents[study] for study in manifest.contents if study in copies}
        if sorted(wanted) != manifest.excluded:
            again.append(
                replace(
                    bundle, excluded=wanted, fatal=tuple(manifest.fatal), stamps=manifest.stamps, earlier=manifest
                )
            )
    return again


def _contents(manifests: Mapping[int, Manifest]) -> dict[str, str]:
    return {study: content for manifest in manifests.values() for study, content in manifest.contents.items()}


def in_stable_order(plan: IngestPlan, contents: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return studies and their contents, those with most labels first: of copies the first one stays."""
    order = sorted(plan.studies, key=_num_missing_labels)
    named = [volume_id(plan.job.key, study) for study in order]
    return [(study, contents[study]) for study in named if study in contents]


def _no_scans(plan: IngestPlan) -> list[Reject]:
    """Return the lines of files that are no scans, which are not counted as bad."""
    faults = [(volume_id(plan.job.key, study), study.fault) for study in plan.no_scans]
    return [Reject(name, fault.found, fault.expected, fault.remedy) for name, fault in faults if fault]


def _num_missing_labels(study: Study) -> tuple[int, bool]:
    return (study.label is None) + (study.classes is None), study.label is None


def _all_rejects(plan: IngestPlan, names: Mapping[str, str], manifests: Mapping[int, Manifest]) -> list[Reject]:
    """Return every study that was left out, copies too, in the order of the sources."""
    copies = duplicates(in_stable_order(plan, _contents(manifests)))
    rejects = {reject.study: reject for manifest in manifests.values() for reject in manifest.rejects}
    for study, first in copies.items():
        rejects[study] = Reject(
            study, f"the same voxels as study {first}", "each scan once", "remove one of the two files"
        )
    return [rejects[study] for study in names if study in rejects]
