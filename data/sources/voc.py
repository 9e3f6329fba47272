"""Layout ``voc``: pictures in ``JPEGImages`` with boxes in XML files of Pascal VOC's form in ``Annotations``.

Both folders lie side by side, in the source or anywhere below it (``VOCdevkit/VOC2012``). In ``ImageSets/Main``
beside them, ``train.txt``, ``val.txt`` and ``test.txt`` list the images of a split.

A box is xmin, ymin, xmax and ymax: the first and the last pixel in each direction, counted from 1. Classes are the
names of the objects, numbered from 0 in alphabetical order over the whole source. An image without an XML file is
unlabelled; an XML file without objects says that there are none. Objects that are marked as ``difficult``, which
VOC's own score leaves out, are left out and counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from xml.etree import ElementTree

from data.files import File, list_tree, read_bytes
from data.quarantine import BadStudy
from data.sources.boxes import FoundBox
from data.sources.labels import in_numeric_order
from data.sources.pictures import study_of_file
from data.sources.study import PICTURE_SUFFIXES, SourceOptions, Split, Study, stem_of, suffix_of

ANNOTATIONS, IMAGES, SETS = "Annotations", "JPEGImages", "ImageSets/Main"
_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_BORDERS = ("ymin", "xmin", "ymax", "xmax")
_NO_IMAGE = BadStudy(
    "an XML file without its image",
    f"a picture of its name in {IMAGES} beside {ANNOTATIONS}",
    "add it, or delete the XML",
)
_SEVERAL = BadStudy("an XML file whose name several pictures have", "one picture", "rename or delete the others")


@dataclass(frozen=True)
class _Objects:
    """The objects of an XML file by their names, with their corners (y, x) to (y, x), and the image's size (H, W)."""

    names: tuple[str, ...] = ()
    corners: tuple[tuple[float, ...], ...] = ()
    size: tuple[int, int] | None = None
    num_difficult: int = 0


def find_voc(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per picture, and one with a ``fault`` per XML file without a picture.

    Raises ValueError where lists of two splits name one image.
    """
    files = list_tree(source)
    pictures = _by_stem(
        [file for file in files if _folder(file.path) == IMAGES and suffix_of(file.path, PICTURE_SUFFIXES)]
    )
    described = {file.path: _read(file.uri, file.num_bytes, file.mtime_ns) for file in annotations(files)}
    names = {name for one in described.values() if isinstance(one, _Objects) for name in one.names}
    numbers = {name: number for number, name in enumerate(sorted(names, key=in_numeric_order))}
    splits = _splits(files)
    studies: list[Study] = []
    for path, objects in described.items():
        place = (_base(path), stem_of(path, (".xml",)))
        found = pictures.pop(place, [])
        study = study_of_file(found[0] if found else File(path, "", 0), dataset, options)
        fault = objects if isinstance(objects, BadStudy) else None
        fault = _NO_IMAGE if not found else _SEVERAL if len(found) > 1 else fault
        if isinstance(objects, _Objects):
            boxes = tuple(
                FoundBox(corners[:2], corners[2:], numbers[name], name)
                for name, corners in zip(objects.names, objects.corners, strict=True)
            )
            study = replace(study, boxes=boxes, size=objects.size)
        studies.append(replace(study, split=splits.get(place), fault=fault))
    bare = [(place, file) for place, left in pictures.items() for file in left]
    studies += [replace(study_of_file(file, dataset, options), split=splits.get(place)) for place, file in bare]
    return sorted(studies, key=lambda study: study.key)


def describe_voc(source: str) -> str:
    """Say how many boxes of how many classes a source has, and how many difficult ones are left out."""
    read = [_read(file.uri, file.num_bytes, file.mtime_ns) for file in annotations(list_tree(source))]
    found = [one for one in read if isinstance(one, _Objects)]
    classes, difficult = {name for one in found for name in one.names}, sum(one.num_difficult for one in found)
    left_out = f"; {difficult} difficult objects are left out" if difficult else ""
    boxes = sum(len(one.names) for one in found)
    return f"boxes from {len(read)} XML files: {boxes} boxes of {len(classes)} classes{left_out}"


def annotations(files: Sequence[File]) -> list[File]:
    """Return the XML files in folders called ``Annotations``."""
    return [file for file in files if _folder(file.path) == ANNOTATIONS and file.path.lower().endswith(".xml")]


def _folder(path: str) -> str:
    return path.rpartition("/")[0].rpartition("/")[2]


def _base(path: str) -> str:
    """Return the folder above the one in which a file lies."""
    return path.rpartition("/")[0].rpartition("/")[0]


def _by_stem(files: Sequence[File]) -> dict[tuple[str, str], list[File]]:
    found: dict[tuple[str, str], list[File]] = {}
    for file in files:
        found.setdefault((_base(file.path), stem_of(file.path, PICTURE_SUFFIXES)), []).append(file)
    return found


def _splits(files: Sequence[File]) -> dict[tuple[str, str], Split]:
    """Return the split of each image that a list names, by base folder and stem."""
    found: dict[tuple[str, str], Split] = {}
    for file in files:
        for split in _SPLITS:
            end = f"{SETS}/{split}.txt"
            if file.path != end and not file.path.endswith(f"/{end}"):
                continue
            base = file.path[: -len(end)].rstrip("/")
            for line in read_bytes(file.uri).decode("utf-8", "replace").splitlines():
                if (stem := line.partition(" ")[0].strip()) and found.setdefault((base, stem), split) != split:
                    raise ValueError(
                        f"{SETS}: {split}.txt and {found[base, stem]}.txt name one image (not shown); expected one "
                        "split for each; delete it from one of the lists"
                    )
    return found


# Each file is read for its studies, and again to be described.
@lru_cache(maxsize=2**17)
def _read(uri: str, num_bytes: int, mtime_ns: int) -> _Objects | BadStudy:
    """Return the objects of an XML file, or what is wrong with it."""
    content = read_bytes(uri)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities may grow without end
        return BadStudy("an XML file with a document type", "VOC's form, which has none", "delete its <!DOCTYPE ...>")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        line = error.position[0]
        return BadStudy(f"an annotation that is no XML (line {line})", "VOC's form", "correct it, or copy it again")
    except (ValueError, LookupError):  # an encoding that nobody knows
        return BadStudy("an annotation that is no XML in UTF-8", "VOC's form", "save it again")
    names, corners, difficult = list[str](), list[tuple[float, ...]](), 0
    for number, one in enumerate(root.iter("object"), 1):
        name = (one.findtext("name") or "").strip()
        borders = [_number(one.findtext(f"bndbox/{border}")) for border in _BORDERS]
        known = [value for value in borders if value is not None]
        if not name or len(known) < 4 or known[0] > known[2] or known[1] > known[3]:
            return BadStudy(
                f"object {number} of the XML file without a name or a box",
                "a name, and a bndbox with xmin up to xmax and ymin up to ymax",
                "correct the object, or delete it",
            )
        if (one.findtext("difficult") or "").strip() == "1":
            difficult += 1
            continue
        names.append(name)
        corners.append((known[0] - 1, known[1] - 1, known[2], known[3]))
    size = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    known_size = (int(size[0]), int(size[1])) if size[0] and size[1] else None
    return _Objects(tuple(names), tuple(corners), known_size, difficult)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
