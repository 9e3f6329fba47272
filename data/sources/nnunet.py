"""Layout ``nnunet``: nnU-Net and Medical Segmentation Decathlon folders (imagesTr, labelsTr, imagesTs, dataset.json).

nnU-Net writes one file per channel (``liver_007_0000.nii.gz``), the Decathlon one file per study, with channels as
its last axis. Folders named ``images`` and ``labels`` are accepted too, and so are folders inside them. An image's
label is the one that dataset.json pairs it with, else the one of the same name.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from data.files import File, list_tree
from data.quarantine import BadStudy
from data.sources.channels import Group, group_channels
from data.sources.description import read_description
from data.sources.study import (
    VOLUME_SUFFIXES,
    SourceOptions,
    Split,
    Study,
    normal_modality,
    suffix_of,
)

_FOLDERS: dict[str, tuple[str, Split | None]] = {
    "imagesTr": ("labelsTr", None),
    "imagesTs": ("labelsTs", "test"),
    "images": ("labels", None),
}
_BOTH = tuple(name for folder, (labels, _) in _FOLDERS.items() for name in (folder, labels))
_NO_IMAGE = BadStudy(
    "a label without an image",
    "an image of the same name, or one that dataset.json pairs with it",
    "add the image, or remove the label from the source",
)
_UNLISTED = BadStudy(
    "an image that dataset.json lists but is not there", "its file", "add it or correct dataset.json"
)
_NO_LABEL = BadStudy(
    "an image whose label dataset.json lists but is not there", "the label's file", "add it or correct dataset.json"
)


def _several(number: int, what: str) -> BadStudy:
    return BadStudy(f"{number} {what} of one name", "one file", "keep one of them, or rename them")


Files = dict[str, list[File]]
"""Files of a folder by their path in it without their suffix."""


def find_nnunet(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image name; imagesTs is the test split; the other studies are split by patient later.

    A study without a label keeps None. A label without an image, a missing channel, two files of one name, and an
    image or a label that dataset.json lists but the disk lacks become studies with a ``fault``.
    """
    files = [file for file in list_tree(source) if suffix_of(file.path, VOLUME_SUFFIXES)]
    description = read_description(source, _BOTH)
    channels = description.channels
    modality = options.modality or (normal_modality(channels[0]) if channels else None)
    blank = Study("", "volume", (), "", dataset, modality=modality, rescale=options.rescale)
    listed = {path: label for path, label in description.pairs.items() if label}
    by_path = {file.path: [file] for file in files}
    studies, used = [], set()
    for folder, (label_folder, split) in _FOLDERS.items():
        images, labels = _inside(folder, files), _inside(label_folder, files)
        for name, group in _groups(folder, images, labels, description.pairs, len(channels)).items():
            pair = next((listed[p] for p in _keys(folder, name, group) if p in listed), None)
            found = by_path.get(pair or "", []) or labels.get(name, [])
            used.update(file.path for file in found)
            fault = group.fault or (_NO_LABEL if pair and not found else None)
            if len(found) > 1:
                fault = _several(len(found), "labels")
            study = replace(blank, split=split, num_channels=group.num_channels, fault=fault)
            study = replace(study, label=found[0].uri if found else None)
            studies += _with_files(study, f"{folder}/{name}", [images[stem] for stem in group.stems])
        for name in sorted(labels):
            orphans = [file for file in labels[name] if file.path not in used]
            keys = [_stem(file) if len(orphans) == 1 else file.path for file in orphans]
            studies += [
                replace(blank, key=key, label=file.uri, fault=_NO_IMAGE)
                for key, file in zip(keys, orphans, strict=True)
            ]
    have = {study.key for study in studies} | {_stem(file) for file in files}
    names = {study.key.partition("/")[2] for study in studies}  # a list may give names without folders
    missing = [key for key in description.pairs if key not in have and key.removeprefix("/") not in names]
    studies += [replace(blank, key=key, fault=_UNLISTED) for key in missing]
    return [replace(study, patient=options.patient(study.key.split("/", 1)[-1], dataset)) for study in studies]


def label_names(source: str) -> dict[int, str]:
    """Return dataset.json's name of each label id except the background; empty without a dataset.json."""
    return read_description(source, _BOTH).labels


def _stem(file: File) -> str:
    return file.path[: -len(suffix_of(file.path, VOLUME_SUFFIXES) or "")]


def _inside(folder: str, files: Iterable[File]) -> Files:
    found: Files = defaultdict(list)
    for file in files:
        if file.path.startswith(f"{folder}/"):
            found[_stem(file)[len(folder) + 1 :]].append(file)
    return dict(found)


def _keys(folder: str, name: str, group: Group) -> list[str]:
    return [f"{folder}/{stem}" for stem in (name, *group.stems)]


def _groups(
    folder: str, images: Files, labels: Files, pairs: dict[str, str | None], num_named: int
) -> dict[str, Group]:
    """Return the studies of a folder: names of labels and of single images in dataset.json are not channels."""
    whole = {stem for stem in images if stem in labels or f"{folder}/{stem}" in pairs}
    if labels.keys() & images.keys() and not num_named:
        whole = set(images)
    return group_channels(images, whole, set(labels), num_named)


def _with_files(study: Study, key: str, channels: list[list[File]]) -> list[Study]:
    """Return the study with its files; where a channel has several files, one bad study for each of them."""
    most = max(map(len, channels))
    if most == 1:
        return [replace(study, key=key, image=tuple(file.uri for (file,) in channels))]
    fault = _several(most, "files")
    return [replace(study, key=file.path, image=(file.uri,), fault=fault) for files in channels for file in files]
