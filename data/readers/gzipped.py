"""Whole gzip streams: nibabel stops at the last voxel and so never sees a wrong checksum; this reads to the end."""

import gzip
import zlib

from data.quarantine import BadStudy

_MAGIC = b"\x1f\x8b"
_REMEDY = "copy the file again from its source"


def inflate(content: bytes) -> bytes:
    """Return a file's content, decompressed if it begins as gzip (suffixes may be wrong) and checked to the end."""
    if not content:
        raise BadStudy("an empty file (0 bytes)", "a volume", _REMEDY)
    if not content.startswith(_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except EOFError:
        raise BadStudy(
            f"a truncated gzip stream of {len(content)} bytes", "a stream up to its checksum", _REMEDY
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadStudy(f"a damaged gzip stream ({error})", "a stream that matches its checksum", _REMEDY) from None
