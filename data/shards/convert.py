"""Convert: shards of format 2 become shards of format 3 by copying their rows; no scan is read.

Format 3 added boxes: ``boxes`` and ``box_classes`` stand in every row and in the index. In format 2 they are unknown.
The checksums of voxels and label maps and those of Parquet's pages are compared while rows are copied. The index is
to be written last: a conversion that was killed has left no set, and done again it writes the same files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data.files import is_file, join
from data.shards.earlier import INDEX
from data.shards.index import EARLIER_FORMAT, FORMAT, IndexCard, read_index, renewal, tree_of, write_index
from data.shards.kept import check_row
from data.shards.writer import (
    REPAIR,
    SCHEMA,
    ShardError,
    ShardFile,
    first_line,
    open_shard,
    remove_unfinished,
    write_shard,
)

_ADDED = ("box_classes",)
_BEFORE = [name for name in SCHEMA.names if name not in _ADDED]


@dataclass(frozen=True)
class Conversion:
    """A set of format 2, by its address and digest, and the shards and the card that its index names."""

    uri: str
    digest: str
    files: tuple[ShardFile, ...]
    card: IndexCard

    @classmethod
    def of(cls, uri: str) -> "Conversion":
        """Open the set of an address; raise ShardError where it has another format."""
        rows, digest = read_index(uri)
        tree = tree_of(rows)
        found = tree.get("format")
        if found == FORMAT:
            raise ShardError(f"shards {uri}: format {FORMAT}, expected {EARLIER_FORMAT}; use them as they are")
        if found != EARLIER_FORMAT:
            raise ShardError(renewal(uri, found))
        labels, classes = (
            {int(number): name for number, name in tree[kind].items()} for kind in ("label_names", "class_names")
        )
        files = tuple(ShardFile(**file) for file in tree["files"])
        return cls(uri, digest, files, IndexCard(tree["recipe"], labels, classes, tree["counts"]))

    def check_new(self, out: str) -> None:
        """Raise ValueError where a folder holds shards already."""
        if is_file(join(out, INDEX)):
            raise ValueError(f"shards {out}: {INDEX} is there; expected a new folder; choose another --out")
        remove_unfinished(out)

    def finish(self, out: str, copies: Sequence[ShardFile]) -> str:
        """Write the index of the copied shards, and return the new digest."""
        return write_index(out, copies, self.card)


def copy_shard(folder: str, file: ShardFile, out: str) -> ShardFile:
    """Copy a shard of format 2 into another folder; raise ShardError where it is damaged."""
    copied = write_shard(out, file.name.rpartition("-")[0], _groups(folder, file))
    if copied is None or copied.num_rows != file.num_rows:
        raise ShardError(
            f"shard {file.name}: {copied.num_rows if copied else 0} rows, expected {file.num_rows}; {REPAIR}"
        )
    return copied


def _groups(folder: str, file: ShardFile) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each row group, with what format 3 added."""
    with open_shard(folder, file.name, check_pages=True) as shard:
        for group in range(shard.num_row_groups):
            try:
                table: pa.Table = shard.read_row_group(group, columns=_BEFORE, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise ShardError(f"shard {file.name}: row group {group}: {first_line(error)}; {REPAIR}") from None
            rows = table.to_pylist()
            for row in rows:
                check_row(row, file.name)
            yield [row | dict.fromkeys(("boxes", *_ADDED)) for row in rows]
