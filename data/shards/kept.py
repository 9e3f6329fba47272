"""Kept: the rows that a bundle wrote before, taken from its shards so that sound studies are not read again."""

import zlib
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from data.shards.manifest import Manifest
from data.shards.writer import REPAIR, SCHEMA, ShardError, open_shard

Row = dict[str, Any]


def kept_rows(out: str, work: str, manifest: Manifest, studies: Collection[str]) -> Iterator[Row]:
    """Yield the rows of some studies from the shards and leftovers of a bundle.

    Raises ShardError where one is missing or damaged: then the studies have to be read.
    """
    places = [(out, file) for file in manifest.files] + [(work, file) for file in manifest.rests.values()]
    for folder, file in places:
        with open_shard(folder, file.name) as shard:
            for group in range(shard.num_row_groups):
                table: pa.Table = shard.read_row_group(group, columns=SCHEMA.names, use_threads=False)
                for row in table.to_pylist():
                    if row["volume"] in studies:
                        check_row(row, file.name)
                        yield row


def check_row(row: Row, name: str) -> None:
    """Raise ShardError where the bytes of a row of a shard are not those that were written."""
    for column, checksum in (("voxels", "crc32"), ("label", "label_crc32")):
        if row[column] is not None and zlib.crc32(row[column]) != row[checksum]:
            raise ShardError(f"shard {name}: {column} of sample {row['sample_id']} with another checksum; {REPAIR}")
