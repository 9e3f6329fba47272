"""Layout ``nnunet``: nnU-Net and Medical Segmentation Decathlon folders (imagesTr, labelsTr, imagesTs, dataset.json).

nnU-Net writes one file per channel (``liver_007_0000.nii.gz``), the Decathlon one file per study, with channels as
its last axis. Folders named ``images`` and ``labels`` are accepted too.
"""

import json
import re
from dataclasses import replace
from typing import Any

from data.files import File, is_file, join, list_tree, read_bytes
from data.quarantine import BadStudy
from data.sources.study import (
    VOLUME_SUFFIXES,
    SourceOptions,
    Split,
    Study,
    normal_modality,
    stem_of,
    suffix_of,
)

_FOLDERS: dict[str, tuple[str, Split | None]] = {
    "imagesTr": ("labelsTr", None),
    "imagesTs": ("labelsTs", "test"),
    "images": ("labels", None),
}
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_NO_IMAGE = BadStudy(
    "a label without an image", "an image of the same name", "add the image, or remove the label from the source"
)
_UNLISTED = BadStudy(
    "an image that dataset.json lists but is not there", "its file", "add it or correct dataset.json"
)


def find_nnunet(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image name; imagesTs is the test split; the other studies are split by patient later.

    A study without a label keeps None. A label without an image, a missing channel, and an image that dataset.json
    lists but the disk lacks become studies with a ``fault``.
    """
    files = [file for file in list_tree(source) if suffix_of(file.path, VOLUME_SUFFIXES)]
    description = read_description(source)
    names = _channel_names(description)
    modality = options.modality or (normal_modality(names[0]) if names else None)
    blank = Study("", "volume", (), "", dataset, modality=modality, rescale=options.rescale)
    studies = []
    for folder, (label_folder, split) in _FOLDERS.items():
        labels = {stem_of(file.path): file.uri for file in files if file.path.startswith(f"{label_folder}/")}
        groups = _group([file for file in files if file.path.startswith(f"{folder}/")], set(labels))
        num_channels = len(names) or max((len(uris) for uris in groups.values()), default=1)
        for name, uris in groups.items():
            wanted = replace(blank, image=uris, label=labels.get(name), split=split, num_channels=num_channels)
            studies.append(replace(wanted, key=f"{folder}/{name}", fault=_missing_channel(uris, num_channels)))
        orphans = sorted(set(labels) - set(groups))
        studies += [replace(blank, key=f"{label_folder}/{name}", fault=_NO_IMAGE) for name in orphans]
    have = {study.key for study in studies}
    studies += [replace(blank, key=key, fault=_UNLISTED) for key in _listed(description) if key not in have]
    return [replace(study, patient=options.patient(study.key.split("/")[-1], dataset)) for study in studies]


def label_names(source: str) -> dict[int, str]:
    """Return dataset.json's name of each label id except the background; empty without a dataset.json."""
    labels = read_description(source).get("labels", {})
    ids = {}
    for key, value in labels.items():
        if str(key).isdigit():
            ids[int(key)] = str(value)
        elif isinstance(value, int):
            ids[value] = str(key)
    return {number: name for number, name in sorted(ids.items()) if number}


def read_description(source: str) -> dict[str, Any]:
    """Return dataset.json, or an empty mapping where the source has none."""
    uri = join(source, "dataset.json")
    return json.loads(read_bytes(uri)) if is_file(uri) else {}


def _channel_names(description: dict[str, Any]) -> list[str]:
    names = description.get("channel_names") or description.get("modality") or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def _group(images: list[File], labelled: set[str]) -> dict[str, tuple[str, ...]]:
    """Map the name of a study to its files, ordered by the channel numbers in their names, if any."""
    stems = {stem_of(file.path): file.uri for file in images}
    channels = {stem: _CHANNEL.fullmatch(stem) for stem in stems}
    if not stems or labelled & set(stems) or not all(channels.values()):
        return {stem: (uri,) for stem, uri in sorted(stems.items())}
    groups: dict[str, tuple[str, ...]] = {}
    for stem in sorted(stems):
        match = channels[stem]
        assert match is not None
        groups[match[1]] = (*groups.get(match[1], ()), stems[stem])
    return groups


def _missing_channel(uris: tuple[str, ...], num_channels: int) -> BadStudy | None:
    if len(uris) == num_channels or not _CHANNEL.fullmatch(stem_of(uris[0].partition("?")[0])):
        return None
    return BadStudy(f"{len(uris)} of {num_channels} channels", "all of them", "add the missing channel's file")


def _listed(description: dict[str, Any]) -> list[str]:
    """List the keys of the images that a Decathlon dataset.json names."""
    entries = [entry.get("image", "") for entry in description.get("training", []) if isinstance(entry, dict)]
    entries += [entry for entry in description.get("test", []) if isinstance(entry, str)]
    paths = [entry.removeprefix("./") for entry in entries if entry]
    return [f"{path.split('/')[0]}/{stem_of(path)}" for path in paths]
