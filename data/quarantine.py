"""BadStudy: why a study cannot be used, without any name, identifier or date. The usual reasons are here."""

import os
import re
from collections.abc import Iterable

# Remedies that several reasons share. To export again helps where a part of a series was lost, and nowhere else.
COPY_AGAIN = "copy the file again from its source"
EXPORT_SERIES = "export the whole series, and only it"
SPLIT_SERIES = "split it into a series for each, or remove it from the source if it only plans a scan"
CONVERT_AGAIN = "convert the study again from its source"
CORRECT_HEADER = "correct the header"
SPLIT_VOLUMES = "split times or channels into volumes, one file each"
GIVE_PICTURE = "give a plane as a picture"
REPAIR = "open it with another tool, and repair it or remove it from the source"


class BadStudy(ValueError):  # noqa: N818 (a study is bad; the code is not in error)
    """A study that goes to the quarantine list while the others go on.

    ``found`` gives the offending values, ``expected`` the right ones, ``remedy`` what to do. None of
    them may hold a file name, a patient's identifier or a date: they are written beside the shards.
    """

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(found, expected, remedy)
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.found}; expected {self.expected}; {self.remedy}"

    def about(self, part: str) -> "BadStudy":
        """Return the same complaint about a part of the study, such as its label."""
        return BadStudy(f"{part}: {self.found}", self.expected, self.remedy)


class NoScan(BadStudy):
    """A file of a source that is no scan to learn from, such as a localizer: named, not counted as bad."""


def damaged(found: str, expected: str = "a whole file") -> BadStudy:
    """Return the reason for a file that was cut off or changed on its way here."""
    return BadStudy(found, expected, COPY_AGAIN)


def undecoded(codec: str, known: str, remedy: str) -> BadStudy:
    """Return the reason for sound voxels in a compression that nothing here decodes."""
    return BadStudy(f"{codec}, which nothing here decodes", known, remedy)


def missing(what: str, expected: str, remedy: str) -> BadStudy:
    """Return the reason for a sound file that lacks a field which nothing else can tell."""
    return BadStudy(f"no {what}", expected, remedy)


def unpaired_label(sign: str) -> BadStudy:
    """Return the reason for a label map among images, and by what it is known."""
    return BadStudy(
        f"a label map ({sign}) that is paired with no image",
        "an image",
        "pair it by --label-suffix or by --images and --labels, or leave it out by --images",
    )


FATAL = BadStudy(
    "a file that ended, twice, the process that read it",
    "a file that its library can read or refuse, in the memory and within the minutes that there are",
    REPAIR,
)

_FOREIGN = (
    (re.compile(rb"\s*(<!--.*?-->\s*)*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html|head|body)\b", re.I | re.S),
     "a web page", "download the file again: the server sent a page, such as a login or an error, in its place"),
    (re.compile(rb"\s*<\?xml|\s*<error>", re.I),
     "an XML text", "download the file again, or remove it: the server may have sent an error in its place"),
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"),
     "a Git LFS pointer", "fetch the file that it points to (git lfs pull)"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive", "unpack it"),
    (re.compile(rb"BZh[1-9]"), "a bzip2 stream", "decompress it (bunzip2)"),
    (re.compile(rb"\xfd7zXZ\x00"), "an xz stream", "decompress it (unxz)"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd stream", "decompress it (unzstd)"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive", "unpack it"),
    (re.compile(rb"\x1f\x8b"), "a gzip stream", "decompress it (gunzip)"),
    (re.compile(rb"%PDF-"), "a PDF document", "remove it from the source"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|BM.{4}\x00{4}|II\*\x00|MM\x00\*", re.S),
     "a picture", "give it the suffix of its true format"),
    (re.compile(rb".{128}DICM", re.S), "a DICOM file", "give it the suffix .dcm, and ingest it by layout dicom"),
    (re.compile(rb"NRRD\d{4}"), "a NRRD file", "give it the suffix of its true format"),
    (re.compile(rb"(\x5c\x01\x00\x00|\x00\x00\x01\x5c|\x1c\x02\x00\x00|\x00\x00\x02\x1c)"),
     "a NIfTI file", "give it the suffix of its true format"),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file", "convert it to NIfTI"),
    (re.compile(rb"\s*[{\[]\s*\""), "a JSON text", "remove it from the source"),
)  # fmt: skip


def foreign(head: bytes, expected: str) -> BadStudy | None:
    """Return the reason for a file of another kind than its suffix promises, told by its first bytes, or None."""
    head = head.removeprefix(b"\xef\xbb\xbf")  # the mark of UTF-8 before a web page
    if not head:
        return damaged("an empty file (0 bytes)", expected)
    if not head.strip(b"\0"):
        return damaged(f"nothing but zeros in the first {len(head)} bytes", expected)
    for pattern, kind, remedy in _FOREIGN:
        if pattern.match(head):
            return BadStudy(f"{kind} under another format's suffix", expected, remedy)
    return None


_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_TELLING = re.compile(r"\S*[/\\^@]\S*|\S*\d{5,}\S*")
_MOST_LETTERS = 160


def told(error: Exception, private: Iterable[str] = ()) -> str:
    """Return an error's type, and its text without what could be a name, an identifier or a date.

    ``private`` are the study's own names. Quoted words are kept only where Python quotes code.
    """
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else " ".join(str(error).split())
    if not isinstance(error, (AttributeError, TypeError, NameError)):
        text = _QUOTED.sub("…", text)
    text = _TELLING.sub("…", text)
    words = {word for name in private for word in re.findall(r"[^\W_]{3,}", name)}
    if words:
        hidden = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        text = re.sub(hidden, "…", text, flags=re.I)
    return type(error).__name__ + (f": {text[:_MOST_LETTERS]}" if text.strip(" …") else "")


def unforeseen(error: Exception, private: Iterable[str]) -> BadStudy:
    """Return the reason for an error that no reader foresaw; ``private`` are the study's own names."""
    return BadStudy(
        f"an error when it was read ({told(error, private)})",
        "a scan that can be read whole",
        REPAIR,
    )
