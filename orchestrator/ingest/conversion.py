"""Conversion of a folder that an ingest wrote: its shards, and what an ingest keeps beside them.

So the same ingest goes on in the new folder: it reads new and changed studies, and no others.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from data.files import is_file, join, read_bytes
from data.shards.bundles import WORK
from data.shards.convert import Conversion, copy_shard
from data.shards.manifest import read_manifest, write_manifest
from data.shards.writer import ShardFile, split_address, write_atomically
from orchestrator.ingest.folder import IDENTITY, QUARANTINE, identity
from orchestrator.ingest.ledger import LEDGER, read_ledger
from orchestrator.ingest.plan import EARLIER_FORMAT, FORMAT


def convert(conversion: Conversion, out: str) -> Iterator[ShardFile]:
    """Copy a set of shards into a new folder and yield each new shard; the folder is a set once the last was taken.

    Raises ValueError where the folder holds shards, and ShardError for a shard that is damaged. The work of an ingest
    belongs to its newest set, so an earlier one (``folder@digest``) is copied without it.
    """
    conversion.check_new(out)
    folder, earlier = split_address(conversion.uri)
    copies: dict[str, ShardFile] = {}
    for file in conversion.files:
        copies[file.name] = copy_shard(folder, file, out)
        yield copies[file.name]
    if earlier is None:
        _copy_work(folder, out, copies)
    conversion.finish(out, list(copies.values()))


def _copy_work(folder: str, out: str, copies: Mapping[str, ShardFile]) -> None:
    """Copy the manifests of the bundles that the set holds, their leftovers, and the record of what was asked for.

    A bundle that was written again after the index has no manifest in the new folder: its studies will be read.
    """
    asked, before, work = identity(folder), join(folder, WORK), join(out, WORK)
    ledger = read_ledger(before)
    if not ledger or asked is None or asked.get("format") != str(EARLIER_FORMAT):
        return
    for number in range(len(ledger)):
        manifest = read_manifest(before, number)
        if manifest and all(file.name in copies for file in manifest.files):
            files = [copies[file.name] for file in manifest.files]
            rests = {split: copy_shard(before, file, work) for split, file in manifest.rests.items()}
            write_manifest(work, number, replace(manifest, files=files, rests=rests))
    write_atomically(join(work, LEDGER), read_bytes(join(before, LEDGER)))
    if is_file(join(folder, QUARANTINE)):
        write_atomically(join(out, QUARANTINE), read_bytes(join(folder, QUARANTINE)))
    write_atomically(join(out, IDENTITY), json.dumps(asked | {"format": str(FORMAT)}, indent=1))
