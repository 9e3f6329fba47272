"""Shards: the Parquet files that hold samples. One row is one slice or picture, or one volume.

Voxels are raw little-endian bytes in C order in a ``large_binary`` column, beside plain columns that say how to read
them. A file is written under a temporary name and renamed, so a shard is whole or does not exist; its name ends in
a part of the hash of its content, so the content under a name never changes.

Parquet's defaults do not fit rows of megabytes: page size is checked after every value, and voxels get neither
dictionary nor statistics. On windowed CT, lz4 decodes three to four times as fast as zstd and is a third larger.
"""

import hashlib
import re
import uuid
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.boxes import Boxes
from data.files import is_file, join, locate, reaching, read_bytes
from data.scan import Scan

COMPRESSION = "lz4"
STORED_DTYPES = ("uint8", "int16", "uint16", "int32", "float16", "float32")
LABEL_DTYPES = ("uint8", "uint16")
TEMPORARY = ".writing-"
REPAIR = "look with `raydiology shards verify`, delete the damaged shard and run the same ingest again"

SMALL_FIELDS = [
    pa.field("sample_id", pa.string(), nullable=False),
    pa.field("patient", pa.string(), nullable=False),
    pa.field("volume", pa.string(), nullable=False),
    pa.field("slice_index", pa.int32()),
    pa.field("dataset", pa.string(), nullable=False),
    pa.field("modality", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("dtype", pa.string(), nullable=False),
    pa.field("shape", pa.list_(pa.int32()), nullable=False),
    pa.field("spacing_mm", pa.list_(pa.float32()), nullable=False),
    pa.field("scale", pa.float64(), nullable=False),
    pa.field("offset", pa.float64(), nullable=False),
    pa.field("has_label", pa.bool_(), nullable=False),
    pa.field("classes", pa.list_(pa.int32())),
    pa.field("boxes", pa.list_(pa.int32())),
    pa.field("box_classes", pa.list_(pa.int32())),
    pa.field("crc32", pa.int64(), nullable=False),
    pa.field("label_crc32", pa.int64()),
]
SCHEMA = pa.schema(
    [
        *SMALL_FIELDS,
        pa.field("affine", pa.list_(pa.float64())),
        pa.field("label", pa.large_binary()),
        pa.field("voxels", pa.large_binary(), nullable=False),
    ]
)
SMALL_COLUMNS = [field.name for field in SMALL_FIELDS]
_REPEATED = ["patient", "volume", "dataset", "modality", "split", "dtype"]


class ShardError(ValueError):
    """Shards that are missing, damaged or of another kind than expected; the message says what to do."""


@dataclass(frozen=True)
class Sample:
    """A row: a preprocessed scan, its patient, its dataset and the like.

    ``volume`` is the volume that a slice was cut from (the sample itself otherwise). ``classes`` is None where the
    classes are unknown. In a row, boxes are a list of corners, for each box those of low, then those of high.
    """

    scan: Scan
    sample_id: str
    patient: str
    volume: str
    dataset: str
    split: str
    classes: tuple[int, ...] | None = None


def to_row(sample: Sample) -> dict[str, Any]:
    """Return a sample as the values of a row."""
    scan = sample.scan
    _check_types(sample)
    voxels = _raw(scan.voxels)
    label = None if scan.label is None else _raw(scan.label)
    return {
        "sample_id": sample.sample_id,
        "patient": sample.patient,
        "volume": sample.volume,
        "slice_index": scan.slice_index,
        "dataset": sample.dataset,
        "modality": scan.modality,
        "split": sample.split,
        "dtype": scan.voxels.dtype.name,
        "shape": list(scan.voxels.shape),
        "spacing_mm": list(scan.spacing_mm),
        "scale": scan.scale,
        "offset": scan.offset,
        "has_label": label is not None,
        "classes": None if sample.classes is None else list(sample.classes),
        "boxes": None if scan.boxes is None else scan.boxes.corners.ravel().tolist(),
        "box_classes": None if scan.boxes is None else scan.boxes.classes.tolist(),
        "crc32": zlib.crc32(voxels),
        "label_crc32": None if label is None else zlib.crc32(label),
        "affine": None if scan.affine is None else scan.affine.ravel().tolist(),
        "label": label,
        "voxels": voxels,
    }


def from_row(row: dict[str, Any]) -> Sample:
    """Return the sample that a row holds; arrays are read-only views of its bytes."""
    shape = tuple(row["shape"])
    label = row["label"]
    if label is not None:
        dtype = LABEL_DTYPES[len(label) // int(np.prod(shape[1:])) - 1]
        label = np.frombuffer(label, np.dtype(dtype).newbyteorder("<")).reshape(shape[1:])
    scan = Scan(
        voxels=np.frombuffer(row["voxels"], np.dtype(row["dtype"]).newbyteorder("<")).reshape(shape),
        spacing_mm=tuple(row["spacing_mm"]),
        modality=row["modality"],
        affine=None if row["affine"] is None else np.array(row["affine"]).reshape(4, 4),
        label=label,
        scale=row["scale"],
        offset=row["offset"],
        slice_index=row["slice_index"],
        boxes=boxes_of(row["boxes"], row["box_classes"], len(shape) - 1),
    )
    return Sample(
        scan,
        *(row[name] for name in ("sample_id", "patient", "volume", "dataset", "split")),
        classes=None if row["classes"] is None else tuple(row["classes"]),
    )


def boxes_of(corners: list[int] | None, classes: list[int] | None, spatial_dims: int) -> Boxes | None:
    """Return the boxes that a row's columns ``boxes`` and ``box_classes`` hold; None where they are unknown."""
    if corners is None or classes is None:
        return None
    return Boxes(np.array(corners, np.int64).reshape(-1, 2, spatial_dims), np.array(classes, np.int64))


def _raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _check_types(sample: Sample) -> None:
    stored = sample.scan.voxels.dtype.name
    if stored not in STORED_DTYPES:
        raise ValueError(f"sample {sample.sample_id}: voxels of type {stored}; expected one of {STORED_DTYPES}")
    label = sample.scan.label
    if label is not None and label.dtype.name not in LABEL_DTYPES:
        raise ValueError(
            f"sample {sample.sample_id}: label of type {label.dtype.name}; expected one of {LABEL_DTYPES}"
        )


@dataclass(frozen=True)
class ShardFile:
    """A finished shard: its name in the folder, its size and the hash (blake2b) of its content."""

    name: str
    num_rows: int
    num_bytes: int
    content_hash: str


def write_shard(folder: str, prefix: str, groups: Iterable[list[dict[str, Any]]]) -> ShardFile | None:
    """Write one shard ``<prefix>-<hash>.parquet`` into a folder, one row group per list of rows; None for no rows.

    Only one group is in memory at a time. The same rows give the same bytes, hence the same name.
    """
    filesystem, base = locate(folder)
    temporary = f"{base}/{TEMPORARY}{uuid.uuid4().hex}"
    num_rows = 0
    with reaching(folder):
        filesystem.create_dir(base, recursive=True)
    with reaching(folder), filesystem.open_output_stream(temporary) as stream:
        hashing = _HashingFile(stream)
        with _parquet_writer(hashing) as writer:
            for group in groups:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA), row_group_size=len(group))
                num_rows += len(group)
    name = f"{prefix}-{hashing.hash.hexdigest()[:16]}.parquet"
    with reaching(folder):
        if num_rows == 0:
            filesystem.delete_file(temporary)
            return None
        filesystem.move(temporary, f"{base}/{name}")
    return ShardFile(name, num_rows, hashing.num_bytes, hashing.hash.hexdigest())


def _parquet_writer(sink: "_HashingFile") -> pq.ParquetWriter:
    return pq.ParquetWriter(
        sink,
        SCHEMA,
        compression=COMPRESSION,
        use_dictionary=_REPEATED,  # pyright: ignore[reportArgumentType]  # the stub allows bool only
        write_statistics=False,
        write_batch_size=1,
        write_page_checksum=True,
    )


class _HashingFile:
    """A sink for Parquet's writer that hashes what goes through."""

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self.hash = hashlib.blake2b(digest_size=32)
        self.num_bytes = 0
        self._stream = stream

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        self.num_bytes += len(content)
        self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        self._stream.flush()

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        self.closed = True


def write_atomically(uri: str | Path, content: str | bytes) -> None:
    """Write a small file under a temporary name, then rename it; leave a file with the same content alone."""
    uri, content = str(uri), content.encode() if isinstance(content, str) else content
    filesystem, path = locate(uri)
    if is_file(uri) and read_bytes(uri) == content:
        return
    folder, _, _ = path.rpartition("/")
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
    with reaching(uri):
        filesystem.create_dir(folder, recursive=True)
        try:
            with filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
        except OSError:  # failed attempts must not fill the disk
            with suppress(OSError):
                filesystem.delete_file(temporary)
            raise
        filesystem.move(temporary, path)


def remove_unfinished(folder: str) -> None:
    """Delete what a killed writer left under its temporary name."""
    filesystem, base = locate(folder)
    with reaching(folder):
        for info in filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True)):
            if info.base_name.startswith(TEMPORARY):
                filesystem.delete_file(info.path)


_SET = re.compile(r"(.+)@([0-9a-f]{12,64})")


def split_address(uri: str) -> tuple[str, str | None]:
    """Return the folder of shards and, where the address ends in ``@digest``, the digest of the set that is meant."""
    match = _SET.fullmatch(uri)
    return (match[1], match[2]) if match else (uri, None)


def open_shard(uri: str, name: str, check_pages: bool = False) -> pq.ParquetFile:
    """Open a shard of a folder for reading; raise ShardError where it is missing or not a Parquet file.

    With ``check_pages``, reading compares the checksum of every page.
    """
    folder, _ = split_address(uri)
    filesystem, path = locate(join(folder, name))
    try:
        with reaching(folder):
            return pq.ParquetFile(filesystem.open_input_file(path), page_checksum_verification=check_pages)
    except FileNotFoundError:
        raise ShardError(f"shard {name}: missing; expected beside its index; {REPAIR}") from None
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"shard {name}: {first_line(error)}; expected a whole Parquet file; {REPAIR}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of Arrow's message; the others are lines of Arrow's source."""
    return str(error).split("\n", 1)[0].rstrip(". ")
