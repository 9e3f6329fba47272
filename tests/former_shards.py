"""Shards as format 2 had them: a folder of today's is turned back, its shards byte for byte as they were then."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.shards import writer
from data.shards.manifest import read_manifest, write_manifest
from data.shards.writer import SCHEMA, SMALL_FIELDS, ShardFile, open_shard, write_shard

_LARGE = ("affine", "boxes", "label", "voxels")
_SMALL = [field for field in SMALL_FIELDS if field.name not in ("boxes", "box_classes")]
FORMER_SCHEMA = pa.schema([*_SMALL, *(SCHEMA.field(name) for name in _LARGE)])
_PLACES = ("file", "group", "row_in_group")


def into_format_2(folder: Path) -> None:
    """Replace the shards of a folder, and what an ingest keeps beside them, by those of format 2."""
    index = pq.read_table(folder / "index.parquet")
    tree = json.loads(index.schema.metadata[b"raydiology"])
    former = {file["name"]: _rewritten(folder, ShardFile(**file)) for file in tree["files"]}
    tree = {name: value for name, value in tree.items() if name != "box_names"}
    tree |= {"format": 2, "files": [asdict(file) for file in former.values()]}
    columns = {name: index[name] for name in (*(field.name for field in _SMALL), *_PLACES)}
    columns["file"] = pa.array([former[name].name for name in index["file"].to_pylist()])
    schema = pa.schema([*_SMALL, *(index.schema.field(name) for name in _PLACES)])
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns, schema).replace_schema_metadata({b"raydiology": json.dumps(tree, sort_keys=True)}),
        sink,
        compression="zstd",
        use_dictionary=["patient", "dataset", "modality", "split", "dtype", "file"],  # pyright: ignore[reportArgumentType]
        write_statistics=False,
    )
    (folder / "index.parquet").write_bytes(sink.getvalue())
    if (folder / "ingest.json").exists():
        _former_work(folder, former)


def _former_work(folder: Path, former: dict[str, ShardFile]) -> None:
    work = folder / ".ingest"
    (work / "finished").unlink()
    for number in range(len(json.loads((work / "studies.json").read_text()))):
        manifest = read_manifest(str(work), number)
        assert manifest is not None
        manifest.files[:] = [former[file.name] for file in manifest.files]
        manifest.rests.update({split: _rewritten(work, file) for split, file in manifest.rests.items()})
        write_manifest(str(work), number, manifest)
    asked = json.loads((folder / "ingest.json").read_text()) | {"format": "3"}
    (folder / "ingest.json").write_text(json.dumps(asked, indent=1))


def _rewritten(folder: Path, file: ShardFile) -> ShardFile:
    with open_shard(str(folder), file.name) as shard:
        groups = [shard.read_row_group(number).to_pylist() for number in range(shard.num_row_groups)]
    (folder / file.name).unlink()
    now, writer.SCHEMA = writer.SCHEMA, FORMER_SCHEMA
    try:
        former = write_shard(str(folder), file.name.rpartition("-")[0], groups)
    finally:
        writer.SCHEMA = now
    assert former is not None
    return former
