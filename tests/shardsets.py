"""Tiny shard sets for tests that need samples but no ingest: textured slices or volumes with two labelled organs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from data.boxes import Boxes
from data.scan import Scan
from data.shards.index import IndexCard, write_index
from data.shards.writer import Sample, to_row, write_shard

SLICES_PER_VOLUME = 6
ROWS_PER_GROUP = 4


def write_slices(
    folder: Path | str,
    num_patients: int = 8,
    size: int = 48,
    seed: int = 0,
    num_tested: int = 0,
    label_names: Mapping[int, str] = MappingProxyType({1: "liver", 2: "kidney"}),
) -> str:
    """Write labelled slices of some patients, the last quarter of them as ``val``; return the folder.

    ``num_tested`` is how many more patients there are in split ``test``.
    """
    rng = np.random.default_rng(seed)
    files = []
    num_train = num_patients - num_patients // 4
    splits = {"train": range(num_train), "val": range(num_train, num_patients)}
    if num_tested:
        splits["test"] = range(num_patients, num_patients + num_tested)
    for split, patients in splits.items():
        rows = [
            to_row(_slice(rng, patient, index, size, split))
            for patient in patients
            for index in range(SLICES_PER_VOLUME)
        ]
        order = rng.permutation(len(rows)) if split == "train" else np.arange(len(rows))
        groups = [[rows[i] for i in order[at : at + ROWS_PER_GROUP]] for at in range(0, len(rows), ROWS_PER_GROUP)]
        file = write_shard(str(folder), f"{split}-00000", groups)
        assert file is not None
        files.append(file)
    write_index(str(folder), files, IndexCard({"name": "test"}, dict(label_names)))
    return str(folder)


def write_volumes(folder: Path | str, num_patients: int = 8, size: int = 32) -> str:
    """Write labelled volumes, each of slices of one patient, the last quarter of them as ``val``."""
    rng = np.random.default_rng(0)
    num_train = num_patients - num_patients // 4
    files = []
    for split, patients in (("train", range(num_train)), ("val", range(num_train, num_patients))):
        rows = [to_row(_volume(rng, patient, size, split)) for patient in patients]
        if file := write_shard(str(folder), f"{split}-00000", [[row] for row in rows]):
            files.append(file)
    write_index(str(folder), files, IndexCard({"name": "test"}, {1: "liver", 2: "kidney"}))
    return str(folder)


def _volume(rng: np.random.Generator, patient: int, size: int, split: str) -> Sample:
    slices = [_slice(rng, patient, index, size, split) for index in range(size)]
    scan = replace(
        slices[0].scan,
        voxels=np.stack([one.scan.voxels for one in slices], axis=1),
        label=np.stack([one.scan.label for one in slices]),
        spacing_mm=(1.0, 1.0, 1.0),
        slice_index=None,
    )
    return replace(slices[0], scan=scan, sample_id=slices[0].volume)


def write_pictures(
    folder: Path | str,
    num_patients: int = 24,
    size: int = 40,
    num_classes: int = 2,
    tested: tuple[int, ...] = (),
    num_channels: int = 1,
) -> str:
    """Write pictures whose class is how bright their middle is, the last quarter of them as ``val``.

    ``tested`` are the classes of further pictures in split ``test``.
    """
    rng = np.random.default_rng(0)
    num_train = num_patients - num_patients // 4
    files = []
    for split, patients in (("train", range(num_train)), ("val", range(num_train, num_patients))):
        rows = [
            to_row(_picture(rng, patient, patient % num_classes, size, split, num_channels)) for patient in patients
        ]
        groups = [rows[at : at + ROWS_PER_GROUP] for at in range(0, len(rows), ROWS_PER_GROUP)]
        if file := write_shard(str(folder), f"{split}-00000", groups):
            files.append(file)
    if tested:
        rows = [to_row(_picture(rng, num_patients + n, number, size, "test")) for n, number in enumerate(tested)]
        if file := write_shard(str(folder), "test-00000", [rows]):
            files.append(file)
    names = {number: f"grade {number}" for number in range(num_classes)}
    write_index(str(folder), files, IndexCard({"name": "test"}, class_names=names))
    return str(folder)


def _picture(
    rng: np.random.Generator, patient: int, number: int, size: int, split: str, num_channels: int = 1
) -> Sample:
    voxels = rng.integers(0, 40, (num_channels, size, size), dtype=np.uint8)
    voxels[:, size // 4 : -size // 4, size // 4 : -size // 4] += np.uint8(60 + 60 * number)
    scan = Scan(voxels=voxels, spacing_mm=(1.0, 1.0), modality="XR", scale=1 / 255)
    return Sample(scan, f"x{patient:03d}", f"p{patient:03d}", f"x{patient:03d}", "test", split, (number,))


def write_findings(folder: Path | str, size: tuple[int, ...] = (48, 56), num_patients: int = 12) -> str:
    """Write pictures, or volumes, with a box of class 3 and in every other one of class 5; 4 are ``val``.

    The last sample of each split has no box.
    """
    rng = np.random.default_rng(0)
    files = []
    for split, patients in (("train", range(num_patients - 4)), ("val", range(num_patients - 4, num_patients))):
        rows = [
            to_row(_found(rng, patient, size, split, 0 if patient == patients[-1] else 1 + patient % 2))
            for patient in patients
        ]
        if file := write_shard(str(folder), f"{split}-00000", [rows[:2], rows[2:]]):
            files.append(file)
    write_index(str(folder), files, IndexCard({"name": "test"}, box_names={3: "nodule", 5: "mass"}))
    return str(folder)


def _found(rng: np.random.Generator, patient: int, size: tuple[int, ...], split: str, count: int) -> Sample:
    voxels = rng.integers(0, 40, (1, *size), dtype=np.uint8)
    corners = np.zeros((count, 2, len(size)), np.int64)
    for place, box in enumerate(corners):
        box[0] = [rng.integers(0, length // 2) for length in size]
        box[1] = box[0] + [rng.integers(length // 4, length // 2) for length in size]
        voxels[(0, *(slice(low, high) for low, high in box.T))] = 120 + 60 * place
    boxes = Boxes(corners, np.array([3, 5])[:count])
    scan = Scan(voxels=voxels, spacing_mm=(1.0,) * len(size), modality="CT", scale=1 / 255, boxes=boxes)
    return Sample(scan, f"f{patient:03d}", f"p{patient:03d}", f"f{patient:03d}", "test", split)


def write_odd_sizes(folder: Path | str) -> str:
    """Write 12 pictures for training and 6 for validation, a third of them small, MR and of dataset ``odd``."""
    rng = np.random.default_rng(0)
    files = []
    for split, numbers in (("train", range(12)), ("val", range(12, 18))):
        rows = [
            to_row(_odd(_picture(rng, n, n // 3 % 2, 20 if n % 3 == 0 else 40, split), n % 3 == 0)) for n in numbers
        ]
        file = write_shard(str(folder), f"{split}-00000", [rows[:4], rows[4:]])
        assert file is not None
        files.append(file)
    write_index(str(folder), files, IndexCard({"name": "test"}, class_names={0: "grade 0", 1: "grade 1"}))
    return str(folder)


def _odd(sample: Sample, is_odd: bool) -> Sample:
    if not is_odd:
        return sample
    return replace(sample, scan=replace(sample.scan, spacing_mm=(1.1, 1.1), modality="MR"), dataset="odd")


def _slice(rng: np.random.Generator, patient: int, index: int, size: int, split: str) -> Sample:
    rows, columns = np.mgrid[:size, :size]
    label = np.zeros((size, size), np.uint8)
    for value, centre in ((1, 0.35), (2, 0.7)):
        middle = (centre + rng.uniform(-0.05, 0.05)) * size
        label[(rows - middle) ** 2 + (columns - size / 2) ** 2 < (0.15 * size) ** 2] = value
    voxels = 40 + 60 * label + rng.integers(0, 40, label.shape)
    scan = Scan(
        voxels=voxels[None].astype(np.uint8),
        spacing_mm=(1.0, 1.0),
        modality="CT",
        label=label,
        scale=1 / 255,
        slice_index=index,
    )
    return Sample(scan, f"v{patient:03d}-{index:02d}", f"p{patient:03d}", f"v{patient:03d}", "test", split)
