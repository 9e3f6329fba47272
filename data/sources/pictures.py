"""Layout ``class_folders``: pictures (or volumes) in a folder per class, with splits above or below."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from data.files import File, list_tree
from data.sources.labels import in_numeric_order
from data.sources.pairing import Pattern
from data.sources.study import (
    OTHER_SPLITS,
    PICTURE_SUFFIXES,
    SPLIT_NAMES,
    VOLUME_SUFFIXES,
    SourceOptions,
    Study,
    suffix_of,
)

_SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)


def find_class_folders(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per picture (or volume); its folder is its class, numbered in order of the names (2 before 10).

    Folders named train, val or test, above or below the classes, are splits, not classes. Raises ValueError where a
    folder stands in the place of a split but has another name.
    """
    files = [file for file in list_tree(source) if suffix_of(file.path, _SUFFIXES) and "/" in file.path]
    if options.images:
        files = [file for file in files if Pattern(options.images).match(file.path) is not None]
    folders = {file.path: file.path.split("/")[:-1] for file in files}
    class_of = {path: "/".join(p for p in parts if p.lower() not in SPLIT_NAMES) for path, parts in folders.items()}
    _check_splits(folders.values())
    names = sorted({name for name in class_of.values() if name}, key=in_numeric_order)
    studies = []
    for file in files:
        split = next((SPLIT_NAMES[part.lower()] for part in folders[file.path] if part.lower() in SPLIT_NAMES), None)
        study = replace(study_of_file(file, dataset, options), split=split)
        name = class_of[file.path]
        studies.append(replace(study, class_names=(name,), classes=(names.index(name),)) if name else study)
    return studies


def _check_splits(folders: Iterable[Sequence[str]]) -> None:
    """Raise ValueError for dev, holdout and the like beside train, and for folders beside it with its classes."""
    paths = {tuple(parts) for parts in folders}
    places = {parts[:depth] for parts in paths for depth, part in enumerate(parts) if part.lower() in SPLIT_NAMES}
    words = set()
    for place in places:
        depth = len(place)
        inside: dict[str, set[tuple[str, ...]]] = {}
        for parts in paths:
            if len(parts) > depth and parts[:depth] == place:
                inside.setdefault(parts[depth], set()).add(parts[depth + 1 :])
        classes = {rest for name, rests in inside.items() if name.lower() in SPLIT_NAMES for rest in rests if rest}
        others = {name: rests for name, rests in inside.items() if name.lower() not in SPLIT_NAMES}
        words |= {name for name, rests in others.items() if name.lower() in OTHER_SPLITS or rests & classes}
    if words:
        raise ValueError(
            f"folders {', '.join(sorted(words))} beside those of splits: no split; expected one of "
            f"{', '.join(SPLIT_NAMES)}; rename them, or leave them out by option images"
        )


def study_of_file(file: File, dataset: str, options: SourceOptions) -> Study:
    is_volume = suffix_of(file.path, VOLUME_SUFFIXES) is not None
    return Study(
        key=file.path,
        kind="volume" if is_volume else "picture",
        image=(file.uri,) if file.uri else (),
        patient=options.patient(file.path, dataset),
        dataset=dataset,
        modality=options.modality,
        rescale=options.rescale,
    )
