"""ShardSet: the shards of a folder as one table, through their index; the index's sha256 is the dataset's digest.

The index holds every small column of every row and where the row lies, so that selecting, ordering and splitting
samples never opens a shard. It names each shard with the hash of its content: equal digests are equal datasets.
"""

import hashlib
import io
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from data.files import join, locate, reaching, read_bytes
from data.labels import CLASSES, KINDS, Labels
from data.shards.earlier import INDEX, keep_index, read_earlier
from data.shards.keep import Keep, is_any, passing
from data.shards.writer import (
    SMALL_COLUMNS,
    SMALL_FIELDS,
    ShardError,
    ShardFile,
    open_shard,
    split_address,
    write_atomically,
)

FORMAT, EARLIER_FORMAT = 3, 2
_METADATA = b"raydiology"
_REPEATED = ["patient", "dataset", "modality", "split", "dtype", "file"]
_INDEX_SCHEMA = pa.schema(
    [
        *SMALL_FIELDS,
        pa.field("file", pa.string(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("row_in_group", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class IndexCard:
    """The index's data on the whole set: the recipe as a tree, names, ingest's counts.

    ``label_names`` are those of values in label maps, ``class_names`` of the classes of samples, ``box_names`` of
    the classes of boxes.
    """

    recipe: dict[str, Any]
    label_names: dict[int, str] = field(default_factory=dict)
    class_names: dict[int, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    box_names: dict[int, str] = field(default_factory=dict)


def write_index(uri: str, files: Sequence[ShardFile], card: IndexCard) -> str:
    """Write the index of finished shards, in the order given, and return the digest.

    Only small columns are read, never voxels. The same shards and card give the same bytes. An earlier index stays
    beside it under the name of its digest.
    """
    tables = [_index_of(uri, file) for file in files]
    tree = {"format": FORMAT, **asdict(card), "files": [asdict(file) for file in files]}
    schema = _INDEX_SCHEMA.with_metadata({_METADATA: json.dumps(tree, sort_keys=True).encode()})
    sink = io.BytesIO()
    pq.write_table(
        pa.concat_tables([_INDEX_SCHEMA.empty_table(), *tables]).cast(schema),
        sink,
        compression="zstd",
        use_dictionary=_REPEATED,  # pyright: ignore[reportArgumentType]  # the stub knows bool only
        write_statistics=False,
    )
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    keep_index(uri, digest)
    write_atomically(join(uri, INDEX), sink.getvalue())
    return digest


def _index_of(uri: str, file: ShardFile) -> pa.Table:
    """Return the index rows of one shard."""
    with reaching(uri), open_shard(uri, file.name) as shard:
        sizes = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
        table = shard.read(columns=SMALL_COLUMNS)
    places = {
        "file": pa.array([file.name] * table.num_rows, pa.string()),
        "group": pa.array(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
        "row_in_group": pa.array(np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])),
    }
    return pa.table({name: table[name] for name in SMALL_COLUMNS} | places, schema=_INDEX_SCHEMA)


# Of the shard sets that this process looks at, which are few; each is opened many times.
@lru_cache(maxsize=8)
def _parsed(content: bytes) -> tuple[pa.Table, str]:
    return pq.read_table(io.BytesIO(content), read_dictionary=_REPEATED), hashlib.sha256(content).hexdigest()


def read_index(uri: str) -> tuple[pa.Table, str]:
    """Return an index of any format, and its digest; raise ShardError where it is missing or unreadable."""
    folder, wanted = split_address(uri)
    try:
        content = read_bytes(join(folder, INDEX))
        if wanted and not hashlib.sha256(content).hexdigest().startswith(wanted):
            content = read_earlier(folder, wanted)
    except FileNotFoundError:
        raise ShardError(
            f"shards {uri}: no {INDEX}; expected a folder that `raydiology ingest` has finished; "
            "check the path, or run the same ingest again: it continues where it stopped"
        ) from None
    try:
        return _parsed(content)
    except (pa.ArrowException, OSError):
        raise ShardError(
            f"shards {uri}: {INDEX} of {len(content)} bytes is no whole Parquet file; delete it and run the same "
            "ingest again: finished shards are kept"
        ) from None


def tree_of(rows: pa.Table) -> dict[str, Any]:
    """Return the data on the whole set that an index holds beside its rows; none where it is no index."""
    return json.loads((rows.schema.metadata or {}).get(_METADATA, b"{}"))


def renewal(uri: str, found: int | None) -> str:
    """Say that shards have another format, and which command renews them."""
    remedy = "run ingest again with --overwrite"
    if found == EARLIER_FORMAT:
        out = f"{split_address(uri)[0].rstrip('/')}-format{FORMAT}"
        remedy = (
            f"`raydiology shards convert {shlex.quote(uri)} --out {shlex.quote(out)}` copies them without reading a "
            "scan again"
        )
    return f"shards {uri}: format {found}, expected {FORMAT}; {remedy}"


@dataclass(frozen=True)
class Selection:
    """Some rows of a set, in index order.

    row_ids      (n,) rows of ``ShardSet.rows``
    group_of     (n,) the row group of each, numbered over the whole set
    group_sizes  number of selected rows per row group that has any, in index order
    extents      (n, nd) spatial sizes: (D, H, W) or (H, W)
    num_left_out number of further rows that the filter, and each of its criteria, left out (a row may fail several)
    """

    row_ids: Int64[np.ndarray, " n"]
    group_of: Int64[np.ndarray, " n"]
    extents: Int64[np.ndarray, "n nd"]
    num_left_out: int = 0
    left_out_by: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return len(self.row_ids)

    @cached_property
    def group_sizes(self) -> Int64[np.ndarray, " g"]:
        return np.unique(self.group_of, return_counts=True)[1].astype(np.int64)


class ShardSet:
    """The finished shards of a folder or bucket. ``rows`` has one row per sample, with all columns but voxels.

    >>> shards = ShardSet.open("shards/flare22")
    >>> shards.select(split="train", having=LABEL_MAP).num_samples
    """

    def __init__(self, uri: str, rows: pa.Table, digest: str) -> None:
        tree = tree_of(rows)
        self.uri = uri
        self.digest = digest
        self.rows = rows.replace_schema_metadata(None)
        self.recipe: dict[str, Any] = tree["recipe"]
        self.label_names = {int(key): name for key, name in tree["label_names"].items()}
        self.class_names = {int(key): name for key, name in tree["class_names"].items()}
        self.box_names = {int(key): name for key, name in tree["box_names"].items()}
        self.counts: dict[str, int] = tree["counts"]
        self.files = [ShardFile(**file) for file in tree["files"]]

    @classmethod
    def open(cls, uri: str) -> "ShardSet":
        """Open the shards of a folder by their index; raise ShardError where the index is missing or unreadable.

        ``folder@digest`` is an earlier set of the folder, before studies were added to it or read again.
        """
        rows, digest = read_index(uri)
        found = tree_of(rows).get("format")
        if found != FORMAT:
            raise ShardError(renewal(uri, found))
        return cls(uri, rows, digest)

    def check_files(self) -> None:
        """Raise ShardError where a shard of the index is missing or has another size; no shard is read."""
        filesystem, base = locate(split_address(self.uri)[0])
        with reaching(self.uri):
            infos = filesystem.get_file_info([f"{base}/{file.name}" for file in self.files])
        bad = [file for file, info in zip(self.files, infos, strict=True) if info.size != file.num_bytes]
        if bad:
            raise ShardError(
                f"shards {self.uri}: {len(bad)} of {len(self.files)} files are missing or cut off, the first is "
                f"{bad[0].name}; expected {bad[0].num_bytes} bytes; restore the missing files, or run the "
                "same ingest again with --overwrite"
            )

    @property
    def num_samples(self) -> int:
        return self.rows.num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards as stored (compressed)."""
        return sum(file.num_bytes for file in self.files)

    @property
    def spatial_dims(self) -> int:
        return self._shapes.shape[1] - 1

    @property
    def num_channels(self) -> int:
        return int(self._shapes[:, 0].max())

    @property
    def is_labelled(self) -> bool:
        """Tell whether any sample has a label map, known classes or known boxes (an empty list counts)."""
        return any(bool(labels.held(self.rows).any()) for labels in KINDS)

    def names_of(self, labels: Labels) -> dict[int, str]:
        """Return what the numbers of labels of a kind are called, in order of the numbers."""
        names: dict[int, str] = getattr(self, labels.names)
        return {number: name for number, name in sorted(names.items()) if number >= labels.first}

    @cached_property
    def _shapes(self) -> Int64[np.ndarray, "n axes"]:
        """(C, *S) of every row; all rows have as many axes."""
        flat = self.rows["shape"].combine_chunks().flatten().to_numpy().astype(np.int64)
        return flat.reshape(self.num_samples, -1)

    @cached_property
    def voxel_bytes(self) -> Int64[np.ndarray, " n"]:
        """Raw bytes of every row's voxels."""
        names = self.rows["dtype"].to_pylist()
        widths = {name: np.dtype(name).itemsize for name in set(names)}
        return self._shapes.prod(axis=1) * np.array([widths[name] for name in names], np.int64)

    @cached_property
    def group_of(self) -> Int64[np.ndarray, " n"]:
        """The row group of every row, numbered over the whole set in index order."""
        first = self.rows["row_in_group"].to_numpy() == 0
        return np.cumsum(first, dtype=np.int64) - 1

    def select(
        self,
        split: str | None = None,
        patients: Collection[str] | None = None,
        having: Labels | None = None,
        keep: Keep | None = None,
    ) -> Selection:
        """Return the rows of a split, of some patients (pseudonyms), with labels of a kind; None selects all.

        A filter leaves out the rows that do not meet its criteria. Raises ValueError if it does not fit the rows.
        """
        mask = np.ones(self.num_samples, bool)
        if split is not None:
            mask &= is_any(self.rows["split"], [split])
        if patients is not None:
            mask &= is_any(self.rows["patient"], patients)
        if having is not None:
            mask &= having.held(self.rows)
        met = passing(keep, self.rows, self._shapes[:, 1:]) if keep else {}
        left_out_by = {name: int((mask & ~one).sum()) for name, one in met.items()}
        kept = np.logical_and.reduce([mask, *met.values()])
        ids = np.flatnonzero(kept).astype(np.int64)
        num_left_out = int(mask.sum()) - len(ids)
        return Selection(ids, self.group_of[ids], self._shapes[ids, 1:], num_left_out, left_out_by)

    def num_patients(self, selection: Selection) -> int:
        """Return how many patients a selection has samples of."""
        return len(self.rows["patient"].take(selection.row_ids).unique())

    def patients(self, selection: Selection, labels: Labels = CLASSES) -> dict[str, tuple[int, ...]]:
        """Return the patients of a selection, each with the classes that its samples, or their boxes, have."""
        held: dict[str, set[int]] = {}
        columns = (self.rows[name].take(selection.row_ids).to_pylist() for name in ("patient", labels.strata))
        for patient, numbers in zip(*columns, strict=True):
            held.setdefault(patient, set()).update(numbers or ())
        return {patient: tuple(sorted(numbers)) for patient, numbers in held.items()}
