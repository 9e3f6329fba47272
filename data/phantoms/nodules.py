"""Nodule phantoms: cubes of lung CT around a candidate, which is a nodule or a vessel that looks like one in a slice.

A folder of NIfTI files with a table of labels and patients, as the layout ``csv`` reads it. Sizes, places and HU of
nodules and vessels are drawn alike, so that only the shape along the depth tells them apart.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from data.phantoms.abdomen import save_volume, smooth_noise
from data.phantoms.pictures import write_table

CANDIDATES = ("vessel", "nodule")
SIZE = (32, 64, 64)
SPACING_MM = (1.0, 1.0, 1.0)
LUNG_HU, TISSUE_HU = -850.0, 40.0


@dataclass(frozen=True)
class Candidate:
    """A cube in HU around a candidate, and its place among ``CANDIDATES``."""

    voxels: Int16[np.ndarray, "D H W"]
    label: int


def make_candidate(seed: int, patient: int, label: int) -> Candidate:
    """Return a cube of one patient; the same arguments give the same voxels.

    A nodule is a ball near the middle, a vessel a tube of the same width that runs along the depth, a little tilted.
    """
    rng = np.random.default_rng((seed, patient, label))
    centre = np.array(SIZE) / 2 + rng.uniform(-4, 4, 3)
    z, y, x = (np.arange(length) - middle for length, middle in zip(SIZE, centre, strict=True))
    tilt_y, tilt_x = rng.uniform(-0.3, 0.3, 2)
    depth = z[:, None, None]
    across = (y[:, None] - (0 if label else tilt_y * depth)) ** 2 + (x - (0 if label else tilt_x * depth)) ** 2
    radius = rng.uniform(4, 9)
    inside = across + (depth**2 if label else 0) < radius**2
    hu = np.where(inside, rng.normal(TISSUE_HU, 20), rng.normal(LUNG_HU, 20)) + 40 * smooth_noise(rng, SIZE, 1.5)
    return Candidate(np.rint(hu).astype(np.int16), label)


def write_candidates(folder: str | Path, num_patients: int, num_unlabelled: int = 0, seed: int = 0) -> Path:
    """Write a nodule and a vessel of every patient, and return the folder; the same arguments give the same voxels.

    The cubes of ``num_unlabelled`` further patients have no label.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(num_patients + num_unlabelled):
        for label, name in enumerate(CANDIDATES):
            file = f"phantom_{patient:03d}_{label}.nii.gz"
            save_volume(make_candidate(seed, patient, label).voxels, SPACING_MM, "RAS", root / file)
            rows.append((file, name if patient < num_patients else "", f"phantom_{patient:03d}"))
    return write_table(root, rows)
