"""Layout ``coco``: pictures with boxes, described by JSON files of COCO's form.

A description has ``images``, ``annotations`` and ``categories``, and lies in the source or in its folder
``annotations``; it may be the source itself. A word for a split in its name is its images' split
(``instances_val2017.json``). Images lie anywhere in the source, under ``file_name``.

A box is [x, y, width, height]: its left and upper border, in pixels from those of the image, and its size. Classes
are the categories, numbered from 0 in order of their ids. Every image that is listed was looked at: without
annotations it has no findings. A box of a crowd (``iscrowd``), which holds several objects, is left out and counted.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from data.files import File, folder_of, is_file, list_tree, read_bytes, shown, state_of
from data.quarantine import BadStudy
from data.sources.boxes import FoundBox
from data.sources.imagefiles import find_image_files
from data.sources.pictures import study_of_file
from data.sources.study import PICTURE_SUFFIXES, SPLIT_NAMES, SourceOptions, Split, Study

ANNOTATIONS = "annotations"
_PARTS = ("images", ANNOTATIONS, "categories")
_SUFFIX = ".json"
_NO_FILE = BadStudy(
    "an image of a JSON file without its picture",
    "one picture in the source under its file_name",
    "add it, correct the file_name, or delete the image from the JSON file",
)


@dataclass(frozen=True)
class _Image:
    """An image as a description lists it; ``fault`` is what is wrong with one of its annotations."""

    path: str
    size: tuple[int, int]
    boxes: tuple[tuple[tuple[float, ...], int], ...]
    fault: BadStudy | None = None


@dataclass(frozen=True)
class _Description:
    """A description: its images, the names of its categories in order of their ids, and how many crowds it has."""

    images: tuple[_Image, ...]
    names: tuple[str, ...]
    num_crowds: int
    num_boxes: int


def find_coco(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image that a description lists.

    Raises ValueError, which names file and entry, where a description is no JSON of COCO's form, where descriptions
    differ in their categories, and where two describe one image.
    """
    root, described = _described(source)
    files = list_tree(root)
    studies: list[Study] = []
    for file, description in described:
        found = find_image_files([one.path for one in description.images], files, PICTURE_SUFFIXES, root)
        split = _split(file.path)
        for image, place in zip(description.images, found, strict=True):
            is_there = isinstance(place, File)
            study = study_of_file(place if is_there else File(image.path, "", 0), dataset, options)
            boxes = tuple(
                FoundBox(corners[:2], corners[2:], number, description.names[number])
                for corners, number in image.boxes
            )
            fault = image.fault if is_there else _NO_FILE
            studies.append(replace(study, split=split, boxes=boxes, size=image.size, fault=fault))
    _check_once(studies, described)
    return studies


def describe_coco(source: str) -> str:
    """Say how many boxes of how many classes a source has, and how many crowds are left out."""
    _, described = _described(source)
    boxes, crowds = (sum(getattr(one, name) for _, one in described) for name in ("num_boxes", "num_crowds"))
    left_out = f"; {crowds} boxes of crowds (iscrowd) are left out" if crowds else ""
    return f"boxes from {len(described)} JSON files: {boxes} boxes of {len(described[0][1].names)} classes{left_out}"


def root_of(source: str) -> str:
    """Return the folder in which images lie: the source, or what holds the description that the source is."""
    if not is_file(source):
        return source
    folder = folder_of(source)
    return folder_of(folder) if folder.rstrip("/").rpartition("/")[2] == ANNOTATIONS else folder


def descriptions(source: str) -> list[str]:
    """Return the addresses of a source's descriptions."""
    return [file.uri for file, _ in _described(source)[1]]


def _described(source: str) -> tuple[str, list[tuple[File, _Description]]]:
    root = root_of(source)
    files = [File(source.rpartition("/")[2], source, *state_of(source))] if is_file(source) else list_tree(root)
    places = [file for file in files if _may_describe(file.path)]
    found = [(file, one) for file in places if (one := _read(file.uri, file.num_bytes, file.mtime_ns))]
    if not found:
        raise ValueError(
            f"source {shown(source)}: {len(places)} JSON files, none of which has {', '.join(_PARTS)}; expected "
            f"COCO's form, in the source or in its folder {ANNOTATIONS}; give the path of the JSON file as the source"
        )
    names = {one.names for _, one in found}
    if len(names) > 1:
        raise ValueError(
            f"source {shown(source)}: {len(found)} JSON files with {len(names)} different lists of categories; "
            "expected the same in all; ingest each for itself, with the path of the JSON file as the source"
        )
    return root, found


def _may_describe(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name.lower().endswith(_SUFFIX) and folder in ("", ANNOTATIONS)


def _split(path: str) -> Split | None:
    """Return the split that the name of a description tells: ``instances_train2017.json``."""
    words = re.findall(r"[a-z]+", path.rpartition("/")[2].lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _check_once(studies: Sequence[Study], described: Sequence[tuple[File, _Description]]) -> None:
    twice = sum(count > 1 for count in Counter(study.key for study in studies).values())
    if twice:
        names = ", ".join(file.path.rpartition("/")[2] for file, _ in described)
        raise ValueError(
            f"{twice} images are listed more than once in {names}; expected each once; give the path of the one JSON "
            "file that is meant as the source"
        )


# Of the files of one ingest, each of which is looked at several times.
@lru_cache(maxsize=4)
def _read(uri: str, num_bytes: int, mtime_ns: int) -> _Description | None:
    """Return a description; None where a JSON text has another form. Raises ValueError where it is none."""
    name = shown(uri).rpartition("/")[2]
    try:
        tree = json.loads(read_bytes(uri))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}); expected COCO's form; "
            "correct it there, or copy the file again from its source"
        ) from None
    except (ValueError, RecursionError):  # other bytes than UTF-8, numbers of thousands of digits
        raise ValueError(f"{name}: not JSON in UTF-8; expected COCO's form; save it again") from None
    if not isinstance(tree, dict) or not all(isinstance(tree.get(part), list) for part in _PARTS):
        return None
    return _parsed(tree, name)


def _parsed(tree: Mapping[str, Any], name: str) -> _Description:
    ids, names = _categories(tree["categories"], name)
    listed = {_entry(one, "id", name, f"images[{n}]"): (n, one) for n, one in enumerate(tree["images"])}
    if len(listed) < len(tree["images"]):
        raise _refusal(name, "images", "two entries with one id", "an id for each", "number them anew")
    boxes: dict[Any, list[tuple[tuple[float, ...], int]]] = defaultdict(list)
    faults: dict[Any, BadStudy] = {}
    crowds = 0
    for number, one in enumerate(tree[ANNOTATIONS]):
        where = f"{ANNOTATIONS}[{number}]"
        image, category = (_entry(one, key, name, where) for key in ("image_id", "category_id"))
        if image not in listed:
            raise _refusal(name, where, "an image_id that images lacks", "one of its ids", "add the image")
        if category not in ids:
            raise _refusal(name, where, "a category_id that categories lacks", "one of its ids", "add the category")
        corners = _corners(one.get("bbox"))
        if corners is None:
            faults.setdefault(image, _no_box(where))
        elif one.get("iscrowd"):
            crowds += 1
        else:
            boxes[image].append((corners, ids[category]))
    images = tuple(
        _Image(*_file(one, name, f"images[{n}]"), tuple(boxes[key]), faults.get(key))
        for key, (n, one) in listed.items()
    )
    return _Description(images, names, crowds, sum(map(len, boxes.values())))


def _categories(entries: Sequence[Any], name: str) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Return the class of each category by its id, and the names of the classes."""
    named = {
        _entry(one, "id", name, f"categories[{n}]"): str(_entry(one, "name", name, f"categories[{n}]"))
        for n, one in enumerate(entries)
    }
    if len(named) < len(entries) or len(set(named.values())) < len(named):
        raise _refusal(name, "categories", "an id or a name that two have", "one each", "correct the list")
    order = sorted(named, key=lambda key: (isinstance(key, str), key))
    return {key: number for number, key in enumerate(order)}, tuple(named[key] for key in order)


def _file(entry: Mapping[str, Any], name: str, where: str) -> tuple[str, tuple[int, int]]:
    """Return an image's path and its size (H, W)."""
    path, height, width = (_entry(entry, key, name, where) for key in ("file_name", "height", "width"))
    if not isinstance(path, str) or not isinstance(height, int) or not isinstance(width, int):
        raise _refusal(
            name, where, "file_name, height or width of another type", "a text and two whole numbers", "correct them"
        )
    return path, (height, width)


def _corners(bbox: Any) -> tuple[float, float, float, float] | None:
    """Return (y, x) of the low and of the high corner; None where a bbox is none."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        return None
    x, y, width, height = map(float, bbox)
    return (y, x, y + height, x + width) if all(map(math.isfinite, bbox)) and width > 0 and height > 0 else None


def _no_box(where: str) -> BadStudy:
    return BadStudy(
        f"{where} of the JSON file without a box",
        "a bbox of four numbers: x, y, and a width and a height above 0",
        "correct the annotation, or delete it",
    )


def _entry(entry: Any, key: str, name: str, where: str) -> Any:
    """Return a field of an entry; ids are numbers or texts."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise _refusal(name, where, f"no {key}", "a number or a text", "add it")
    return value


def _refusal(name: str, where: str, found: str, expected: str, remedy: str) -> ValueError:
    return ValueError(f"{name}: {where}: {found}; expected {expected}; {remedy}")
