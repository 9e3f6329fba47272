"""Layout ``npz``: arrays ``<split>_images`` and ``<split>_labels`` in one file, as in MedMNIST's files.

Labels of shape (n,) or (n, 1) hold each image's class; in shape (n, k), a 1 in column c means class c.
"""

import math
import zipfile

import numpy as np
from numpy.lib import format as npy

from data.files import File, StorageError, is_file, list_tree, open_file, shown
from data.quarantine import BadStudy
from data.sources.labels import LARGEST_CLASS
from data.sources.study import OTHER_SPLITS, SPLIT_NAMES, SourceOptions, Study

_IMAGES, _LABELS = "_images", "_labels"


def find_npz(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image of the source's .npz files; the source may be such a file itself.

    A damaged file is one study with a fault, and so is one of other arrays or labels among several files. Raises
    ValueError where a single file is such a one.
    """
    studies, files = [], _files(source)
    for file in files:
        try:
            studies += _studies(file, dataset, options)
        except StorageError:
            raise
        except BadStudy as fault:
            if len(files) == 1:
                raise ValueError(f"source {shown(source)}: {fault}") from None
            studies.append(_faulty(file, dataset, options, fault))
        except Exception as error:  # noqa: BLE001 (a damaged archive may raise anything)
            studies.append(_faulty(file, dataset, options, _damaged(error)))
    return studies


def _studies(file: File, dataset: str, options: SourceOptions) -> list[Study]:
    splits = _splits(file.uri)
    if not splits:
        raise BadStudy(
            f"an .npz file without an array named like train{_IMAGES}", "MedMNIST's names", "rename its arrays"
        )
    studies = []
    unknown = {name for name in splits if name.lower() not in SPLIT_NAMES}
    if unknown and (len(unknown) < len(splits) or any(name.lower() in OTHER_SPLITS for name in unknown)):
        raise BadStudy(
            f"arrays {', '.join(sorted(name + _IMAGES for name in unknown))}: no split",
            f"one of {', '.join(SPLIT_NAMES)} before {_IMAGES}",
            "rename the arrays, or put them into a file of their own",
        )
    for split, (number, labels) in splits.items():
        classes = [None] * number if labels is None else _classes(labels, split, number)
        studies += [_study(file, dataset, options, split, index, classes[index]) for index in range(number)]
    return studies


def _splits(uri: str) -> dict[str, tuple[int, np.ndarray | None]]:
    """Return for each split of a file the number of images, and its labels or None."""
    with open_file(uri) as opened, np.load(opened, allow_pickle=False) as arrays:
        names = [name.removesuffix(_IMAGES) for name in arrays.files if name.endswith(_IMAGES)]
        labels = {name: arrays[name + _LABELS] if name + _LABELS in arrays.files else None for name in names}
    return {name: (_length(uri, name + _IMAGES), labels[name]) for name in names}


def _damaged(error: Exception) -> BadStudy:
    return BadStudy(
        f"a damaged .npz file ({type(error).__name__}), all of whose images are left out",
        f"a whole one with arrays named like train{_IMAGES}",
        "copy the file again from its source, or remove it",
    )


def _faulty(file: File, dataset: str, options: SourceOptions, fault: BadStudy) -> Study:
    image, patient = (file.uri, "", "0"), options.patient(file.path, dataset)
    return Study(key=file.path, kind="array", image=image, patient=patient, dataset=dataset, fault=fault)


def _files(source: str) -> list[File]:
    if is_file(source):
        return [File(source.rsplit("/", 1)[-1], source, 0)]
    return [file for file in list_tree(source) if file.path.lower().endswith(".npz")]


def _classes(labels: np.ndarray, split: str, number: int) -> list[tuple[int, ...]]:
    """Return the classes of each image of a split."""
    several = labels.ndim == 2 and labels.shape[1] > 1
    found = f"array {split}{_LABELS}: shape {labels.shape}, {labels.dtype}"
    if labels.shape[:1] != (number,):
        raise BadStudy(found, f"a row for each of the {number} images", "correct the array")
    if not (several or labels.size == len(labels)) or not np.issubdtype(labels.dtype, np.integer):
        raise BadStudy(found, "a whole number per image, or a 0 or 1 for each class", "keep one of the two")
    if several and not np.isin(labels, (0, 1)).all():
        raise BadStudy(
            f"{found}, up to {labels.max()}",
            "0 or 1 in each of several columns",
            "keep the column that is the class",
        )
    if several:
        return [tuple(np.flatnonzero(row).tolist()) for row in labels]
    if labels.size and not 0 <= labels.min() <= labels.max() <= LARGEST_CLASS:
        raise BadStudy(
            f"{found}, from {labels.min()} to {labels.max()}", f"classes from 0 to {LARGEST_CLASS}", "renumber them"
        )
    return [(number,) for number in labels.reshape(-1).tolist()]


def _length(uri: str, name: str) -> int:
    """Return the first size of an array, from its header alone; raise ValueError where it holds fewer bytes."""
    with open_file(uri) as file, zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as array:
        version = npy.read_magic(array)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(array)
        if dtype.hasobject:
            raise BadStudy(
                f"array {name} of Python objects", "numbers (uint8)", "save it again as an array of numbers"
            )
        needed = math.prod(shape) * dtype.itemsize
        if not needed or archive.getinfo(f"{name}.npy").file_size < needed:
            raise ValueError(f"array {name}: no bytes, or fewer than its shape {shape} needs")
        return shape[0]


def _study(
    file: File, dataset: str, options: SourceOptions, split: str, index: int, classes: tuple[int, ...] | None
) -> Study:
    key = f"{file.path}/{split}/{index:07d}"
    return Study(
        key=key,
        kind="array",
        image=(file.uri, f"{split}{_IMAGES}", str(index)),
        patient=options.patient(key, dataset),
        dataset=dataset,
        modality=options.modality,
        split=SPLIT_NAMES.get(split.lower()),
        classes=classes,
        class_names=tuple(map(str, classes or ())),
    )
