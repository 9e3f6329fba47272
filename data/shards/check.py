"""Shardcheck: report what shards hold and lack, and whether every byte is as it was written."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyarrow import fs

from data.files import join, list_tree, locate, reaching
from data.labels import KINDS, LABEL_MAP
from data.shards.classes import count_classes
from data.shards.earlier import EARLIER_INDEX, INDEX, earlier_indices
from data.shards.index import ShardSet
from data.shards.keep import is_any
from data.shards.reader import ShardReader
from data.shards.writer import REPAIR, TEMPORARY, ShardError, ShardFile, split_address
from data.splits import SPLITS, check_no_leakage

_BLOCK_BYTES = 2**22
_WITHOUT_LABELS = {
    "train": "to fine-tune on these, name another split by downstream.train_split",
    "val": "to judge a fine-tuning, cross-validate by downstream.num_folds, or ingest with a larger val_fraction",
}


def describe(shards: ShardSet) -> list[tuple[str, str]]:
    """Return a summary of the shards as (name, value) lines for a person."""
    rows = shards.rows
    groups = shards.group_of[-1] + 1 if shards.num_samples else 0
    lines = [
        ("digest", shards.digest),
        ("recipe", str(shards.recipe.get("name"))),
        ("samples", f"{shards.num_samples:,} in {groups:,} row groups of {len(shards.files):,} shards"),
        ("on disk", f"{shards.num_bytes / 2**20:,.1f} MiB"),
    ]
    if shards.num_samples:
        sizes = shards.select().extents
        low, high = " x ".join(map(str, sizes.min(axis=0))), " x ".join(map(str, sizes.max(axis=0)))
        channels = f"{shards.num_channels} channel{'s' if shards.num_channels > 1 else ''}"
        lines.append(("sizes", f"{shards.spatial_dims}D, {channels}, {low} to {high}"))
    lines += [(split, _count(part) if part.num_rows else "no samples") for split, part in _by_split(shards)]
    lines += [("datasets", _values(rows["dataset"])), ("modalities", _values(rows["modality"]))]
    lines += [("labels", _names(shards.label_names)), ("classes", _classes(rows["classes"], shards.class_names))]
    lines += [("boxes", _classes(rows["box_classes"], shards.box_names))]
    lines += [(name.replace("_", " "), f"{count:,}") for name, count in shards.counts.items()]
    earlier = [digest for digest in earlier_indices(split_address(shards.uri)[0]) if shards.digest[:16] != digest]
    lines += [("earlier sets", ", ".join(f"@{digest}" for digest in sorted(earlier)))]
    lines += [("note", doubt) for doubt in doubts(shards)]
    return [(name, value) for name, value in lines if value]


def doubts(shards: ShardSet) -> list[str]:
    """List the faults that will keep a training from starting or from being judged, and their remedies."""
    if shards.num_samples and len(shards.rows["patient"].unique()) == 1:
        return [
            f"all samples ({shards.num_samples}) are of one patient, so no patient can be held out to judge a "
            "training; ingest more patients, or identify patients by patient_pattern or patient_column"
        ]
    said = []
    if shards.select("train").num_samples == 0:
        said.append("split train is empty, so there is nothing to pretrain on unless data.split names another split")
    for labels in KINDS:
        held = {split: shards.select(split, having=labels).num_samples for split in SPLITS}
        said += [
            f"no sample of split {split} has {labels.each}, but {sum(held.values())} samples of other splits do; "
            f"{remedy}"
            for split, remedy in _WITHOUT_LABELS.items()
            if sum(held.values()) and not held[split]
        ]
    return said


def _by_split(shards: ShardSet) -> list[tuple[str, pa.Table]]:
    return [(split, shards.rows.take(shards.select(split=split).row_ids)) for split in SPLITS]


def _count(rows: pa.Table) -> str:
    patients, volumes = (len(rows[name].unique()) for name in ("patient", "volume"))
    labelled, classed, boxed = (int(labels.held(rows).sum()) for labels in KINDS)
    held = f"{labelled:,} with a label map" + (f", {classed:,} with classes" if classed else "")
    held += f", {boxed:,} with known boxes" if boxed else ""
    return f"{rows.num_rows:,} samples of {volumes:,} volumes of {patients:,} patients, {held}"


def _values(column: pa.ChunkedArray) -> str:
    counts = {entry["values"]: entry["counts"] for entry in column.cast(pa.string()).value_counts().to_pylist()}
    return ", ".join(f"{name or '?'} ({counts[name]:,})" for name in sorted(counts))


def _names(names: dict[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in sorted(names.items()))


def _classes(column: pa.ChunkedArray, names: dict[int, str]) -> str:
    counts = count_classes(column)
    numbers = sorted(counts.keys() | names.keys())
    return ", ".join(f"{number} {names.get(number, '?')} ({counts.get(number, 0):,})" for number in numbers)


def verify(uri: str) -> Iterator[str]:
    """Read every byte of the shards of a folder; yield one finding for each fault.

    Raises ShardError where the index itself cannot be read.
    """
    shards = ShardSet.open(uri)
    for file in shards.files:
        yield from _verify_file(shards, file)
    folder, _ = split_address(uri)
    sets = [
        shards,
        ShardSet.open(folder),
        *(ShardSet.open(f"{folder}@{digest}") for digest in earlier_indices(folder)),
    ]
    known = {INDEX, *(file.name for one in sets for file in one.files)}
    for file in list_tree(folder):
        is_ours = file.path in known or EARLIER_INDEX.fullmatch(file.path)
        if file.path.endswith(".parquet") and "/" not in file.path and not is_ours:
            yield f"shard {file.path}: not in the index, so never read; delete it"
    yield from _leftovers(folder)
    try:
        check_no_leakage({split: part["patient"].unique().to_pylist() for split, part in _by_split(shards)})
    except ValueError as error:
        yield str(error)


def _verify_file(shards: ShardSet, file: ShardFile) -> Iterator[str]:
    filesystem, path = locate(join(split_address(shards.uri)[0], file.name))
    try:
        with reaching(shards.uri), filesystem.open_input_stream(path) as stream:
            digest, size = hashlib.blake2b(digest_size=32), 0
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        yield f"shard {file.name}: missing; expected {file.num_bytes:,} bytes; {REPAIR}"
        return
    if size != file.num_bytes:
        yield f"shard {file.name}: {size:,} bytes, expected {file.num_bytes:,}; {REPAIR}"
        return
    if digest.hexdigest() == file.content_hash:
        return
    yield f"shard {file.name}: content hash {digest.hexdigest()[:16]}, expected {file.content_hash[:16]}; {REPAIR}"
    yield from _damaged_rows(shards, file)


def _damaged_rows(shards: ShardSet, file: ShardFile) -> Iterator[str]:
    """Name the first damaged row of each row group of a shard."""
    mine = shards.group_of[is_any(shards.rows["file"], [file.name])]
    for group in dict.fromkeys(mine.tolist()):
        try:
            ShardReader(shards, LABEL_MAP).read(np.flatnonzero(shards.group_of == group)[:1])
        except ShardError as error:
            yield str(error)


def _leftovers(uri: str) -> Iterator[str]:
    filesystem, base = locate(uri)
    for info in filesystem.get_file_info(fs.FileSelector(base)):
        if info.base_name.startswith(TEMPORARY):
            yield f"{info.base_name}: left by a killed writer; delete it, or run the same ingest again"
