"""Whole gzip streams: nibabel stops at the last voxel and so never sees a wrong checksum; this reads to the end."""

import gzip
import zlib

from pyarrow import NativeFile

from data.quarantine import BadStudy, damaged

MAGIC = b"\x1f\x8b"
TWICE = BadStudy(
    "a file that was compressed twice (gzip in gzip)",
    "one gzip stream",
    "decompress it once (gunzip), and keep its suffix",
)


def inflate(content: bytes) -> bytes:
    """Return a file's content, decompressed if it begins as gzip (suffixes may be wrong) and checked to the end."""
    if not content:
        raise damaged("an empty file (0 bytes)", "a volume")
    if not content.startswith(MAGIC):
        return content
    try:
        plain = gzip.decompress(content)
    except EOFError:
        raise damaged(f"a truncated gzip stream of {len(content)} bytes", "a stream up to its checksum") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise damaged(f"a damaged gzip stream ({error})", "a stream that matches its checksum") from None
    if plain.startswith(MAGIC):
        raise TWICE
    return plain


def peek(file: NativeFile, num_bytes: int = 4096) -> bytes:
    """Return the first bytes of a file, or of what was gzipped into it; raise BadStudy for gzip in gzip."""
    head = file.read(num_bytes)
    if not head.startswith(MAGIC):
        return head
    file.seek(0)
    try:
        plain = gzip.GzipFile(fileobj=file).read(num_bytes)
    except (OSError, EOFError, zlib.error):
        return head
    if plain.startswith(MAGIC):
        raise TWICE
    return plain
