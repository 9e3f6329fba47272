"""Earlier sets of a folder: their indices stay beside the current one, each under the name of its digest."""

import hashlib
import re

from pyarrow import fs

from data.files import join, locate, reaching, read_bytes
from data.shards.writer import ShardError, write_atomically

INDEX = "index.parquet"
EARLIER_INDEX = re.compile(r"index-([0-9a-f]{16})\.parquet")


def earlier_indices(folder: str) -> dict[str, str]:
    """Return the names of the indices of a folder's earlier sets by the first 16 digits of their digests."""
    filesystem, base = locate(folder)
    with reaching(folder):
        infos = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
    return {match[1]: match[0] for info in infos if (match := EARLIER_INDEX.fullmatch(info.base_name))}


def read_earlier(folder: str, wanted: str) -> bytes:
    """Return the index of a folder's earlier set by its digest; raise ShardError where there is none."""
    there = earlier_indices(folder)
    names = [name for digest, name in there.items() if digest.startswith(wanted[:16])]
    if len(names) != 1:
        raise ShardError(
            f"shards {folder}: no set of digest {wanted}; expected that of {INDEX}"
            f"{''.join(f' or {digest}' for digest in sorted(there))}; see `raydiology shards show`"
        )
    return read_bytes(join(folder, names[0]))


def keep_index(folder: str, replaced_by: str) -> None:
    """Keep a folder's index under the name of its digest, unless the digest is that of the index to be written."""
    try:
        content = read_bytes(join(folder, INDEX))
    except FileNotFoundError:
        return
    digest = hashlib.sha256(content).hexdigest()
    if digest != replaced_by:
        write_atomically(join(folder, f"index-{digest[:16]}.parquet"), content)
