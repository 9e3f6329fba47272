"""Bundles: groups of studies, each read, preprocessed and written as shards by one task, all or nothing.

A bundle holds studies from anywhere in the source, and its slices are shuffled before they are written: a row group,
which is read as one, has slices of many patients. Voxels wait for their turn in an unnamed temporary file, so memory
holds one study and one row group. Rows that do not fill a row group are kept aside and joined at the end of an
ingest, so that all row groups of a split but one have the same size.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa

from data.files import is_file, join
from data.limits import SECONDS_PER_STUDY, limited
from data.privacy import Pseudonymiser
from data.quarantine import FATAL, BadStudy, unforeseen
from data.readers import read_study
from data.recipes import Recipe
from data.recipes.apply import apply
from data.scan import Scan
from data.shards.kept import kept_rows
from data.shards.manifest import Manifest, Reject, write_manifest
from data.shards.writer import SCHEMA, Sample, ShardError, ShardFile, from_row, open_shard, to_row, write_shard
from data.sources import Study

WORK = ".ingest"
REST = "rest"


@dataclass(frozen=True)
class BundleJob:
    """The settings that all bundles of an ingest share; a study that is read for longer than a limit is bad."""

    out: str
    recipe: Recipe
    key: bytes = field(repr=False)
    seed: int
    rows_per_group: int
    seconds_per_study: float = SECONDS_PER_STUDY

    @property
    def work(self) -> str:
        return join(self.out, WORK)


@dataclass(frozen=True)
class Bundle:
    """Studies for one task, and the split of each; ``excluded`` are the pseudonyms of copies and their hashes.

    ``fatal`` are the pseudonyms of studies that end the process that reads them, and so are not read.
    ``stamps`` are the states of the studies by pseudonym. Where the bundle was written before, ``earlier`` is its
    manifest: only studies that it does not hold and those of ``again`` are read; the others' rows are taken from it.
    """

    number: int
    studies: tuple[Study, ...]
    splits: tuple[str, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)
    fatal: tuple[str, ...] = ()
    stamps: Mapping[str, str] = field(default_factory=dict)
    earlier: Manifest | None = None
    again: frozenset[str] = frozenset()

    def written(self) -> frozenset[str]:
        """Return the pseudonyms of the studies whose rows are kept from an earlier manifest, and so are not read."""
        if self.earlier is None:
            return frozenset()
        return frozenset(self.earlier.contents) - frozenset(self.earlier.excluded) - self.again


def run_bundle(job: BundleJob, bundle: Bundle) -> Manifest:
    """Read, preprocess and write a bundle; the result depends only on the arguments and the files.

    The manifest is written last, so a bundle that was killed is done again, to the same names and bytes.
    """
    rejects: list[Reject] = []
    contents = dict(bundle.excluded)
    label_values: set[int] = set()
    with tempfile.TemporaryFile(prefix="raydiology-") as scratch:
        kept = _kept(job, bundle, scratch)
        rows: dict[str, list[dict[str, Any]]] = {}
        for study, split in zip(bundle.studies, bundle.splits, strict=True):
            name = volume_id(job.key, study)
            if name in bundle.excluded:
                continue
            if name in bundle.fatal:
                rejects.append(Reject(name, FATAL.found, FATAL.expected, FATAL.remedy))
                continue
            if name in kept and bundle.earlier is not None:
                contents[name] = bundle.earlier.contents[name]
                label_values.update(kept[name].label_values)
                rows.setdefault(split, []).extend(kept[name].in_order())
                continue
            try:
                with limited(job.seconds_per_study):
                    scans = preprocess(job.recipe, study)
            except BadStudy as fault:
                rejects.append(Reject(name, fault.found, fault.expected, fault.remedy))
                continue
            contents[name] = _content(scans)
            label_values.update(value for scan in scans for value in _label_values(scan))
            samples = _samples(scans, name, study, split, Pseudonymiser(job.key))
            rows.setdefault(split, []).extend(_put_aside(scratch, to_row(sample)) for sample in samples)
        manifest = Manifest(
            [],
            {},
            rejects,
            contents,
            sorted(bundle.excluded),
            sorted(label_values),
            sorted(bundle.fatal),
            dict(bundle.stamps),
        )
        for split in sorted(rows):
            _write_split(job, bundle.number, split, _take_back(scratch, _mixed(job.seed, rows[split])), manifest)
    write_manifest(job.work, bundle.number, manifest)
    return manifest


@dataclass
class _StudyRows:
    """The rows of a study that were put aside, and the values in its label maps."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    label_values: set[int] = field(default_factory=set)

    def in_order(self) -> list[dict[str, Any]]:
        """Return the rows in the order in which a recipe gives them."""
        return sorted(self.rows, key=lambda row: -1 if row["slice_index"] is None else row["slice_index"])


def _kept(job: BundleJob, bundle: Bundle, scratch: IO[bytes]) -> dict[str, _StudyRows]:
    """Put aside the rows of the studies that need not be read; none where what was written is damaged."""
    if bundle.earlier is None:
        return {}
    written = bundle.written()
    kept: dict[str, _StudyRows] = {name: _StudyRows() for name in written}
    try:
        for row in kept_rows(job.out, job.work, bundle.earlier, written):
            one = kept[row["volume"]]
            one.label_values.update(_label_values(from_row(row).scan))
            one.rows.append(_put_aside(scratch, row))
    except (ShardError, pa.ArrowException, OSError):
        return {}
    return kept


def volume_id(key: bytes, study: Study) -> str:
    """Return the pseudonym of a study, made of its dataset's name and its key."""
    return Pseudonymiser(key).study(f"{study.dataset}/{study.key}")


def preprocess(recipe: Recipe, study: Study) -> list[Scan]:
    """Read a study and apply the recipe; raise BadStudy for a study that cannot be used.

    Whatever its reading raises is the study's fault: a BadStudy with the error's type and its text without names. A
    failing bucket is a StorageError.
    """
    try:
        return apply(recipe, read_study(study), study.label_boxes)
    except Exception as error:  # no list of errors foresees what a file can do to a library
        for uri in study.image[:1]:
            is_file(uri)  # a study whose bucket does not answer is not bad
        if isinstance(error, BadStudy):
            raise
        raise unforeseen(error, (study.key, study.patient, study.dataset, *study.image, study.label or "")) from None


def _samples(
    scans: Sequence[Scan], name: str, study: Study, split: str, pseudonymiser: Pseudonymiser
) -> Iterator[Sample]:
    for scan in scans:
        yield Sample(
            scan=scan,
            sample_id=name if scan.slice_index is None else f"{name}-{scan.slice_index:04d}",
            patient=pseudonymiser.patient(study.patient),
            volume=name,
            dataset=study.dataset if study.dataset_is_given else pseudonymiser.dataset(study.dataset),
            split=split,
            classes=study.classes,
        )


def _content(scans: Sequence[Scan]) -> str:
    """Return a hash of preprocessed voxels: equal for one scan in two files, types or orders of axes."""
    digest = hashlib.blake2b(digest_size=16)
    for scan in scans:
        digest.update(repr(scan.voxels.shape).encode())
        digest.update(np.ascontiguousarray(scan.voxels).data)
    return digest.hexdigest()


def _label_values(scan: Scan) -> list[int]:
    """List the values of a label map except the background."""
    return [] if scan.label is None else [value for value in np.unique(scan.label).tolist() if value]


def _put_aside(scratch: IO[bytes], row: dict[str, Any]) -> dict[str, Any]:
    """Append a row's bytes to the scratch file, and return the row with their places instead."""
    places: dict[str, Any] = {}
    for name in ("voxels", "label"):
        if row[name] is not None:
            places[name] = (scratch.tell(), len(row[name]))
            scratch.write(row[name])
    return {**row, "voxels": None, "label": None, **places}


def _take_back(scratch: IO[bytes], rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        large = {}
        for name in ("voxels", "label"):
            if row[name] is not None:
                start, size = row[name]
                scratch.seek(start)
                large[name] = scratch.read(size)
        yield {**row, **large}


def _mixed(seed: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in an order that depends on the seed and their number, not on their pseudonyms."""
    keys = [hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest() for number in range(len(rows))]
    return [row for _, row in sorted(zip(keys, rows, strict=True), key=lambda pair: pair[0])]


def _write_split(job: BundleJob, number: int, split: str, rows: Iterator[dict[str, Any]], manifest: Manifest) -> None:
    """Write the whole row groups of a split as a shard, and the remaining rows as a work file."""
    rest: list[dict[str, Any]] = []
    shard = write_shard(job.out, f"{split}-{number:05d}", whole_groups(rows, job.rows_per_group, rest))
    if shard:
        manifest.files.append(shard)
    leftover = write_shard(job.work, f"{REST}-{split}-{number:05d}", [rest] if rest else [])
    if leftover:
        manifest.rests[split] = leftover


def whole_groups(
    rows: Iterator[dict[str, Any]], size: int, rest: list[dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of ``size`` rows, and put the remaining rows into ``rest``."""
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    rest.extend(group)


def join_rests(job: BundleJob, split: str, rests: Sequence[ShardFile]) -> ShardFile | None:
    """Write the leftovers of all bundles of a split as one shard, whose last row group alone may be smaller."""
    last: list[dict[str, Any]] = []

    def groups() -> Iterator[list[dict[str, Any]]]:
        yield from whole_groups(_rows_of(job.work, rests), job.rows_per_group, last)
        if last:
            yield last

    return write_shard(job.out, f"{split}-{REST}", groups())


def _rows_of(folder: str, files: Sequence[ShardFile]) -> Iterator[dict[str, Any]]:
    for file in files:
        with open_shard(folder, file.name) as shard:
            for group in range(shard.num_row_groups):
                table: pa.Table = shard.read_row_group(group, columns=SCHEMA.names, use_threads=False)
                yield from table.to_pylist()
