"""Leftout: what of a source is neither read nor quarantined, by suffix, and what to do to have it read.

An unfamiliar suffix may be part of a name, and so may an example: it is a private path, shown where names may be.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from data.files import File, Tree
from data.sources.study import DICOM_SUFFIXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES, suffix_of

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".7z", ".rar", ".bz2", ".xz", ".zst")
_SCANS_WITHOUT_READER = (
    ".dcm.gz", ".img.gz", ".gz", ".raw", ".zraw", ".img", ".npy", ".mat", ".h5", ".hdf5", ".pt", ".pkl", ".svs",
    ".ndpi", ".par", ".rec", ".mif", ".jp2", ".gif", ".webp", ".heic", ".vtk", ".avi", ".mp4",
)  # fmt: skip
_TABLES = (".csv", ".tsv")
_DOCUMENTS = (
    ".json", ".txt", ".md", ".html", ".pdf", ".xml", ".xls", ".xlsx", ".doc", ".docx", ".yaml", ".yml", ".log", ".py",
    ".ipynb", ".sh", ".ini", ".bval", ".bvec", ".db",
)  # fmt: skip
_KNOWN = (
    *VOLUME_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES, ".npz", *_ARCHIVES, *_SCANS_WITHOUT_READER, *_TABLES,
    *_DOCUMENTS,
)  # fmt: skip
_ODD = {
    "broken link": "restore the file that it leads to, or delete the link",
    "file that cannot be reached": "give permission to enter its folder",
    "folder that cannot be listed": "give permission to read and enter it",
    "link to a folder that is listed anyway": "nothing to do: it is read where it lies",
    "hidden file or folder": "its name begins with a dot; rename it if it holds scans",
    "name that is not UTF-8": "rename it",
    "device or pipe": "replace it by a file",
}
_VOXELS = {".img": ".hdr", ".img.gz": ".hdr", ".raw": ".mhd or .nhdr", ".zraw": ".mhd"}
_HEADERS = {".hdr": (".img", ".img.gz"), ".mhd": (".raw", ".zraw", ".raw.gz"), ".nhdr": (".raw", ".raw.gz", ".gz")}


@dataclass(frozen=True)
class LeftOutFiles:
    """Files of one suffix that are neither read nor quarantined: their number, the path of one, and what to do."""

    kind: str
    count: int
    example: str
    remedy: str

    def describe(self, with_name: bool) -> str:
        """Return a line; without names the example tells how deep it lies and no more."""
        parts = PurePosixPath(self.example).parts
        suffix = self.kind if self.kind.startswith(".") else ""
        example = self.example if with_name else "/".join(["*"] * len(parts)) + suffix
        return f"{self.count} {self.kind}, such as {example}: {self.remedy}"


def left_out(tree: Tree, used: Collection[str], layout: str) -> list[LeftOutFiles]:
    """Group the files of a source whose addresses are not ``used``, and the odd places, by kind."""
    used = {*used, *companions(tree.files, used)}
    places = [(_kind(file.path), file.path) for file in tree.files if file.uri not in used]
    found: dict[str, list[str]] = {}
    for kind, path in (*places, *((odd.kind, odd.path) for odd in tree.odd)):
        found.setdefault(kind, []).append(path)
    return [LeftOutFiles(kind, len(found[kind]), found[kind][0], _remedy(kind, layout)) for kind in sorted(found)]


def companions(files: Iterable[File], used: Collection[str]) -> dict[str, str]:
    """Map the address of each file of voxels beside a header that is used (x.img beside x.hdr) to the header's."""
    by_path = {file.path.lower(): file.uri for file in files}
    found = {}
    for path, uri in by_path.items():
        suffix = suffix_of(path, tuple(_HEADERS))
        if suffix and uri in used:
            stem = path[: -len(suffix)]
            found |= {by_path[stem + end]: uri for end in _HEADERS[suffix] if stem + end in by_path}
    return found


def may_be_scan(path: str) -> bool:
    """Tell whether a name is one of a scan: by its suffix, or without one, as DICOM files and folders have it."""
    suffix = suffix_of(path, (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES))
    return suffix is not None or not PurePosixPath(path).suffix


def describe_tree(tree: Tree, layout: str) -> str:
    """Say in a few words what a source without studies holds, and which layout reads it."""
    kinds = left_out(tree, (), layout)
    if not kinds:
        return "it is empty"
    return "it holds " + "; ".join(f"{one.count} {one.kind} ({one.remedy})" for one in kinds[:4])


def _kind(path: str) -> str:
    suffix = suffix_of(path, _KNOWN)
    if suffix:
        return suffix.lower()
    return "other" if PurePosixPath(path).suffix else "without suffix"


def _remedy(kind: str, layout: str) -> str:
    if kind in _ODD:
        return _ODD[kind]
    if kind in (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES):
        return _scan_remedy(kind, layout)
    if kind == ".npz":
        return "ingest it by --layout npz"
    if kind in _ARCHIVES:
        return "unpack it if it holds scans"
    if kind in _TABLES:
        return "no scan; a table of images is read by --layout csv, with the table as --source"
    if kind in _DOCUMENTS:
        return "no scan: nothing to do"
    if kind in _VOXELS:
        return f"voxels without a header of their name: add its {_VOXELS[kind]}"
    if kind in (".gz", ".dcm.gz"):
        return "decompress it (gunzip) if it holds a scan" + (
            "" if kind == ".gz" else ", or ingest it by --layout dicom"
        )
    if kind == "without suffix":
        return "if it is DICOM, ingest it by --layout dicom; else give it its format's suffix"
    return "no reader knows it; convert scans to NIfTI, NRRD, DICOM, PNG or TIFF"


def _scan_remedy(suffix: str, layout: str) -> str:
    if layout in ("csv", "deeplesion"):
        return "no row of the table names it: add a row"
    if layout == "coco":
        return "no JSON file lists it: add it to its images"
    if layout == "voc" and suffix in PICTURE_SUFFIXES:
        return "put it into JPEGImages beside Annotations"
    if suffix in VOLUME_SUFFIXES:
        home = ("volumes", "class_folders", "nnunet")
    else:
        home = ("class_folders",) if suffix in PICTURE_SUFFIXES else ("dicom",)
    if layout not in home:
        also = " or csv" if suffix in PICTURE_SUFFIXES else ""
        if layout == "nnunet" and also:
            also += ", without the labels (--images 'imagesTr/*'): nnunet reads volumes"
        return f"ingest it by --layout {home[0]}{also}"
    return {
        "volumes": "the patterns of images and labels leave it out: widen them if it is a scan",
        "nnunet": "put it into imagesTr, imagesTs or images, or ingest it by --layout volumes",
        "class_folders": "put it into a folder of its class, or widen the pattern of images",
        "dicom": "not of the modality or folders asked for: change --modality or --images",
    }[layout]
