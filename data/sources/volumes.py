"""Layout ``volumes``: a tree of NIfTI, NRRD, MetaImage, MGH or MINC files, with label files if options name them.

Where no option says what is an image, a file that its name or folder calls a label map is no image: ``x_seg.nii.gz``
beside ``x.nii.gz``, ``masks/x.nii.gz`` beside other folders. It is refused, since nobody knows whose label it is.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import PurePosixPath

from data.files import File, join, list_tree
from data.quarantine import BadStudy, unpaired_label
from data.sources.pairing import Pattern, check_pair
from data.sources.study import VOLUME_SUFFIXES, SourceOptions, Study, suffix_of

_LABEL_NAME = re.compile(
    r"(.*?)[-_. ]?(seg|segs|segmentation|label|labels|labelmap|mask|masks|gt|roi|annotation|contour)"
)
_LABEL_FOLDERS = {
    *("label", "labels", "labelstr", "labelsts", "mask", "masks", "seg", "segmentation", "segmentations", "gt"),
}
_SEVERAL = BadStudy("several labels of one name", "one file", "keep one of them, or rename the others")
_LABEL_MAP = unpaired_label("by its name or folder")


def find_volumes(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per volume file; a file that is another's label is not a study of its own.

    A label that pairs with no image becomes a study with a ``fault``, so that it is reported.
    """
    files = [file for file in list_tree(source) if suffix_of(file.path, VOLUME_SUFFIXES)]
    paths = {file.path for file in files}
    label_of = _pair(files, options)
    studies = [_study(file, source, dataset, options, label_of[file.path]) for file in files if file.path in label_of]
    if options.label_suffix is not None:
        studies = [replace(one, fault=_SEVERAL) if _has_several(one.key, paths, options) else one for one in studies]
    if options.images is None and options.labels is None and options.label_suffix is None:
        maps = _label_maps(paths)
        studies = [replace(study, fault=_LABEL_MAP) if study.key in maps else study for study in studies]
    used = {label for label in label_of.values() if label}
    orphans = sorted(path for path in paths - set(label_of) - used if _is_orphan(path, paths, options))
    return studies + [_orphan(path, source, dataset, options) for path in orphans]


def _label_maps(paths: Collection[str]) -> set[str]:
    """Return the paths that their names or folders call label maps of others: ``x_seg`` beside ``x`` or ``x_t1``."""
    stems = {path[: -len(suffix_of(path, VOLUME_SUFFIXES) or "")].lower(): path for path in paths}
    owners = {stem: match[1] for stem in stems if (match := _LABEL_NAME.fullmatch(stem))}
    images = {stem[:end] for stem in stems.keys() - owners.keys() for end in _ends(stem)}
    named = {path for stem, path in stems.items() if stem in owners and owners[stem] in images}
    inside = {path for path in paths if _LABEL_FOLDERS & set(PurePosixPath(path.lower()).parts[:-1])}
    return named | (inside if len(inside) < len(paths) else set())


def _ends(stem: str) -> list[int]:
    """Return where a name may end: at its end, and at each separator within it."""
    return [*(match.start() for match in re.finditer(r"[-_. ]", stem)), len(stem)]


def _is_orphan(path: str, paths: set[str], options: SourceOptions) -> bool:
    """Tell whether a file is a label whose image, by the options, is missing."""
    if not _is_label(path, options) or options.label_suffix is None:
        return _is_label(path, options)
    suffix = suffix_of(path, VOLUME_SUFFIXES) or ""
    stem = path[: -len(suffix + options.label_suffix)]
    images = {stem + ending for ending in (suffix, *VOLUME_SUFFIXES)}
    wanted = options.images is None or any(Pattern(options.images).match(image) is not None for image in images)
    return wanted and not images & paths


def _is_label(path: str, options: SourceOptions) -> bool:
    if options.labels is not None:
        return Pattern(options.labels).match(path) is not None
    suffix = suffix_of(path, VOLUME_SUFFIXES)
    return bool(options.label_suffix and suffix and path[: -len(suffix)].endswith(options.label_suffix))


def _pair(files: list[File], options: SourceOptions) -> dict[str, str | None]:
    """Map the path of each image to its label's path, or to None."""
    paths = {file.path for file in files}
    if options.labels is not None:
        check_pair(options.images, options.labels)
    label_of: dict[str, str | None] = {}
    for path in sorted(paths):
        wildcards = Pattern(options.images).match(path) if options.images else ()
        if wildcards is not None and not _is_label(path, options):
            label_of[path] = next((label for label in _candidates(path, wildcards, options) if label in paths), None)
    return label_of


def _has_several(path: str, paths: Collection[str], options: SourceOptions) -> bool:
    """Tell whether an image has several labels of one name, but for those of images of its name and their suffix."""
    suffix = suffix_of(path, VOLUME_SUFFIXES) or ""
    stem = path[: len(path) - len(suffix)]
    free = {ending for ending in (suffix, *VOLUME_SUFFIXES) if ending == suffix or stem + ending not in paths}
    return sum(f"{stem}{options.label_suffix}{ending}" in paths for ending in free) > 1


def _candidates(path: str, wildcards: tuple[str, ...], options: SourceOptions) -> list[str]:
    """List the paths at which an image's label may lie."""
    if options.labels is not None:
        return [Pattern(options.labels).fill(wildcards)]
    if options.label_suffix is None:
        return []
    suffix = suffix_of(path, VOLUME_SUFFIXES) or ""
    stem = path[: len(path) - len(suffix)]
    return [stem + options.label_suffix + ending for ending in (suffix, *VOLUME_SUFFIXES)]


def _study(file: File, source: str, dataset: str, options: SourceOptions, label: str | None) -> Study:
    return Study(
        key=file.path,
        kind="volume",
        image=(file.uri,),
        patient=options.patient(file.path, dataset),
        dataset=dataset,
        label=join(source, label) if label else None,
        modality=options.modality,
        rescale=options.rescale,
    )


def _orphan(path: str, source: str, dataset: str, options: SourceOptions) -> Study:
    fault = BadStudy(
        "a label without an image",
        "an image at the path that the images pattern gives",
        "add the image, or narrow option labels so that it does not match this file",
    )
    return Study(
        key=path,
        kind="volume",
        image=(),
        patient=f"{dataset}/{path}",
        dataset=dataset,
        label=join(source, path),
        modality=options.modality,
        fault=fault,
    )
