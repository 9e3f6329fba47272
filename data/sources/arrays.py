"""Layout ``npz``: arrays ``<split>_images`` and ``<split>_labels`` in one file, as in MedMNIST's files.

Labels of shape (n,) or (n, 1) hold each image's class; in shape (n, k), a 1 in column c means class c.
"""

import math
import zipfile

import numpy as np
from numpy.lib import format as npy

from data.files import File, StorageError, is_file, list_tree, open_file, shown
from data.quarantine import BadStudy
from data.sources.study import SPLIT_NAMES, SourceOptions, Study

_IMAGES, _LABELS = "_images", "_labels"


def find_npz(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image of the source's .npz files; the source may be such a file itself.

    A damaged file is one study with a fault. Raises ValueError where a file has no such arrays, or labels of neither
    shape.
    """
    studies, files = [], _files(source)
    for file in files:
        try:
            splits = _splits(file.uri)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 (a damaged archive may raise anything)
            studies.append(_damaged(file, dataset, options, error))
            continue
        if not splits and len(files) > 1:
            studies.append(_damaged(file, dataset, options, LookupError(_IMAGES)))
            continue
        if not splits:
            raise ValueError(
                f"source {shown(source)}: an .npz file without an array named like train{_IMAGES}; expected "
                "MedMNIST's names; rename its arrays"
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


def _damaged(file: File, dataset: str, options: SourceOptions, error: Exception) -> Study:
    return Study(
        key=file.path,
        kind="array",
        image=(file.uri, "", "0"),
        patient=options.patient(file.path, dataset),
        dataset=dataset,
        fault=BadStudy(
            f"a damaged .npz file, or one of other arrays ({type(error).__name__}), all of whose images are left out",
            f"a whole one with arrays named like train{_IMAGES}",
            "copy the file again from its source, rename its arrays, or remove it",
        ),
    )


def _files(source: str) -> list[File]:
    if is_file(source):
        return [File(source.rsplit("/", 1)[-1], source, 0)]
    return [file for file in list_tree(source) if file.path.lower().endswith(".npz")]


def _classes(labels: np.ndarray, split: str, number: int) -> list[tuple[int, ...]]:
    """Return the classes of each image of a split."""
    several = labels.ndim == 2 and labels.shape[1] > 1
    found = f"array {split}{_LABELS}: shape {labels.shape}, {labels.dtype}"
    if labels.shape[:1] != (number,):
        raise ValueError(f"{found}; expected a row for each of the {number} images; correct the array")
    if not (several or labels.size == len(labels)) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{found}; expected a whole number per image, or a 0 or 1 for each class; keep one of the two"
        )
    if not several:
        return [(number,) for number in labels.reshape(-1).tolist()]
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"{found}, up to {labels.max()}; expected 0 or 1 in each of several columns; keep the column that is the "
            "class"
        )
    return [tuple(np.flatnonzero(row).tolist()) for row in labels]


def _length(uri: str, name: str) -> int:
    """Return the first size of an array, from its header alone; raise ValueError where it holds fewer bytes."""
    with open_file(uri) as file, zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as array:
        version = npy.read_magic(array)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(array)
        if archive.getinfo(f"{name}.npy").file_size < math.prod(shape) * dtype.itemsize:
            raise ValueError(f"array {name}: fewer bytes than its shape {shape} needs")
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
