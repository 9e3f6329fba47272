"""ShardReader: rows of shards by number, each needed row group read once, files kept open."""

import zlib
from collections import OrderedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from data.files import reaching
from data.labels import Labels
from data.shards.index import ShardSet
from data.shards.writer import REPAIR, SCHEMA, SMALL_COLUMNS, ShardError, first_line, open_shard

_SMALL = ["sample_id", "volume", "slice_index", "dtype", "shape", "spacing_mm", "scale", "offset"]
MOST_OPEN_FILES = 32


class ShardReader:
    """Reads rows of one ShardSet in one thread; it compares every row's checksum once.

    Files (their parsed footers) stay open; above ``MOST_OPEN_FILES``, the least recently used is closed.
    """

    def __init__(self, shards: ShardSet, labels: Labels | None = None) -> None:
        columns = labels.columns if labels else ()
        self._shards = shards
        self._others = [name for name in columns if name not in SMALL_COLUMNS]
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._checked: set[int] = set()
        small = [*_SMALL, *(name for name in columns if name in SMALL_COLUMNS)]
        self._small = pa.table({name: _plain(shards.rows[name]) for name in small})

    def read(self, row_ids: Int64[np.ndarray, " n"]) -> pa.Table:
        """Return the rows with these ids, in their order: the voxels, and the columns that ``collate`` needs.

        The columns of the labels that are asked for, too. Raises ShardError for a shard that is missing or damaged.
        """
        groups = self._shards.group_of[row_ids]
        voxels = _Rows(self._shards.voxel_bytes[row_ids])
        pieces, places = [SCHEMA.empty_table().select(self._others)], [np.empty(0, np.int64)]
        for group in dict.fromkeys(groups.tolist()):
            here = np.flatnonzero(groups == group)
            first, table = self._read_group(group)
            inside = row_ids[here] - first
            voxels.fill(here, table["voxels"], inside)
            pieces.append(table.select(self._others).take(inside))
            places.append(here)
        table = self._small.take(row_ids)
        if self._others:
            others = pa.concat_tables(pieces).take(np.argsort(np.concatenate(places), kind="stable"))
            for name in self._others:
                table = table.append_column(name, others[name])
        return table.append_column("voxels", voxels.array())

    def _read_group(self, group: int) -> tuple[int, pa.Table]:
        """Return the number of a row group's first row, and the large columns of all its rows."""
        first = int(np.searchsorted(self._shards.group_of, group))
        stop = int(np.searchsorted(self._shards.group_of, group, side="right"))
        name, number = (self._shards.rows[column][first].as_py() for column in ("file", "group"))
        try:
            with reaching(self._shards.uri):
                table = self._file(name).read_row_group(number, columns=["voxels", *self._others], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            self._open.pop(name, None)
            raise ShardError(f"shard {name}: row group {number}: {first_line(error)}; {REPAIR}") from None
        if group not in self._checked:
            self._check(name, number, table, self._shards.rows.slice(first, stop - first))
            self._checked.add(group)
        return first, table

    def _file(self, name: str) -> pq.ParquetFile:
        if name not in self._open:
            self._open[name] = open_shard(self._shards.uri, name)
            if len(self._open) > MOST_OPEN_FILES:
                self._open.popitem(last=False)[1].close(force=True)
        self._open.move_to_end(name)
        return self._open[name]

    def _check(self, name: str, number: int, table: pa.Table, rows: pa.Table) -> None:
        """Raise ShardError where a row group's rows differ from the index."""
        if table.num_rows != rows.num_rows:
            raise ShardError(
                f"shard {name}: row group {number} has {table.num_rows} rows, expected {rows.num_rows}; {REPAIR}"
            )
        for column, checksum in (("voxels", "crc32"), ("label", "label_crc32")):
            if column not in table.column_names:
                continue
            for row, (value, expected) in enumerate(zip(table[column], rows[checksum].to_pylist(), strict=True)):
                found = zlib.crc32(value.as_buffer()) if value.is_valid else None
                if found != expected:
                    raise ShardError(
                        f"shard {name}: {column} of sample {rows['sample_id'][row]}: checksum {found}, expected "
                        f"{expected}; {REPAIR}"
                    )


class _Rows:
    """Voxels of rows, each written once into one buffer, in any order, while the decoded data are in the cache.

    Neither joining nor sorting copies the voxels again, and no others are held.
    """

    def __init__(self, num_bytes: Int64[np.ndarray, " n"]) -> None:
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(num_bytes)])
        self._buffer = pa.allocate_buffer(int(self._starts[-1]))
        self._bytes = np.frombuffer(self._buffer, np.uint8)

    def fill(self, places: np.ndarray, column: pa.ChunkedArray, rows: np.ndarray) -> None:
        """Copy some rows of a column to their places."""
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            start, stop = self._starts[place : place + 2]
            self._bytes[start:stop] = np.frombuffer(column[row].as_buffer(), np.uint8)

    def array(self) -> pa.LargeBinaryArray:
        """Return the rows once all are filled."""
        starts = pa.py_buffer(self._starts)
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self._starts) - 1, [None, starts, self._buffer]
        )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without dictionary encoding: a dictionary would travel whole with every batch."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
