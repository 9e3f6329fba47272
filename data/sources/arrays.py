"""Layout ``npz``: arrays ``<split>_images`` and ``<split>_labels`` in one file, as MedMNIST is handed out."""

import zipfile

import numpy as np
from numpy.lib import format as npy

from data.files import File, is_file, list_tree, open_file, shown
from data.sources.study import SPLIT_NAMES, SourceOptions, Study

_IMAGES, _LABELS = "_images", "_labels"


def find_npz(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image of the source's .npz files; the source may be such a file itself.

    Raises ValueError where a file has no such arrays, or labels that are not one class per image.
    """
    studies = []
    for file in _files(source):
        with open_file(file.uri) as opened, np.load(opened, allow_pickle=False) as arrays:
            splits = [name.removesuffix(_IMAGES) for name in arrays.files if name.endswith(_IMAGES)]
            labels = {split: _classes(arrays, split) for split in splits}
        if not splits:
            raise ValueError(
                f"source {shown(source)}: an .npz file without an array named like train{_IMAGES}; expected "
                "MedMNIST's names; rename its arrays"
            )
        for split in splits:
            number = _length(file.uri, split + _IMAGES)
            studies += [_study(file, dataset, options, split, index, labels[split]) for index in range(number)]
    return studies


def _files(source: str) -> list[File]:
    if is_file(source):
        return [File(source.rsplit("/", 1)[-1], source, 0)]
    return [file for file in list_tree(source) if file.path.lower().endswith(".npz")]


def _classes(arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray | None:
    if split + _LABELS not in arrays.files:
        return None
    labels = arrays[split + _LABELS]
    if labels.size != len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"array {split}{_LABELS}: shape {labels.shape}, {labels.dtype}; expected one whole number per image; "
            "keep one column"
        )
    return labels.reshape(-1)


def _length(uri: str, name: str) -> int:
    """Return the first size of an array, from its header alone."""
    with open_file(uri) as file, zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as array:
        version = npy.read_magic(array)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return header(array)[0][0]


def _study(
    file: File, dataset: str, options: SourceOptions, split: str, index: int, labels: np.ndarray | None
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
        class_label=None if labels is None else int(labels[index]),
        class_name=None if labels is None else str(labels[index]),
    )
