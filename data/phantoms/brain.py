"""Brain phantoms: skull-stripped, in four MR sequences, some with a tumour of nested parts, as BraTS labels them.

In every sequence some healthy tissue is as bright as a tumour: fluid in T2w, grey matter in FLAIR, vessels in T1gd.
No single sequence suffices to tell a tumour from healthy tissue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt8
from scipy import ndimage

from data.phantoms.abdomen import ORIENTATIONS, Triple, save_volume, smooth_noise, warp, write_description

SEQUENCES = ("FLAIR", "T1w", "T1gd", "T2w")
CORE, OEDEMA, ENHANCING = 1, 2, 4
LABEL_NAMES = {CORE: "necrotic core", OEDEMA: "oedema", ENHANCING: "enhancing tumour"}
BRAIN_MM = np.array([62.0, 82.0, 66.0])  # half extents (z, y, x)
BODY, FLUID, GREY, WHITE, VESSEL = range(5)
# Brightness in each sequence; the parts of a tumour come by their label values.
_BRIGHTNESS = {
    FLUID: (0.15, 0.25, 0.25, 1.0),
    GREY: (0.72, 0.55, 0.58, 0.65),
    WHITE: (0.55, 0.80, 0.80, 0.45),
    VESSEL: (0.50, 0.60, 1.10, 0.40),
}
_TUMOUR = {CORE: (0.50, 0.35, 0.38, 0.95), OEDEMA: (0.86, 0.50, 0.52, 0.85), ENHANCING: (0.75, 0.50, 1.05, 0.70)}


@dataclass(frozen=True)
class Brain:
    """One synthetic patient: a volume per sequence and labels, in RAS, with spacing in mm."""

    voxels: Int16[np.ndarray, "C D H W"]
    label: UInt8[np.ndarray, "D H W"]
    spacing_mm: tuple[float, float, float]
    orientation: str


def make_brain(seed: int, patient: int, spacing_mm: Triple = (2.5, 2.5, 2.5), tumour: bool = True) -> Brain:
    """Return one patient of a cohort; the same arguments give the same voxels.

    One tumour in eight does not enhance.
    """
    rng = np.random.default_rng((seed, patient, 1))
    spacing = tuple(float(step) for step in np.round(np.array(spacing_mm) * rng.uniform(0.9, 1.1, 3), 3))
    half_mm = BRAIN_MM * rng.uniform(0.92, 1.08, 3)
    size = np.maximum(8, np.rint(2 * 1.12 * half_mm / np.array(spacing)).astype(int))
    axes = [np.linspace(-1.12, 1.12, n, dtype=np.float32) for n in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    place = grid + warp(rng, size, 4.0) / BRAIN_MM[:, None, None, None].astype(np.float32)
    tissue = _tissue(rng, place)
    label = _tumour(rng, place, tissue) if tumour else np.zeros(tissue.shape, np.uint8)
    voxels = np.stack([_sequence(rng, tissue, label, number) for number in range(len(SEQUENCES))])
    return Brain(
        voxels, label, (spacing[0], spacing[1], spacing[2]), ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))]
    )


def _tissue(rng: np.random.Generator, place: Float32[np.ndarray, "3 D H W"]) -> UInt8[np.ndarray, "D H W"]:
    """Paint a brain of radius 1: a folded cortex, white matter with deep grey nuclei, ventricles and vessels."""
    radius = np.linalg.norm(place, axis=0)
    folds = smooth_noise(rng, radius.shape, 1.2)
    z, y, x = place
    tissue = np.zeros(radius.shape, np.uint8)
    tissue[radius < 1] = GREY
    tissue[(radius < 1) & (radius > 0.93) & (folds > 0.4)] = FLUID
    tissue[radius < 0.82 + 0.06 * folds] = WHITE
    for side in (-1, 1):
        tissue[((z - 0.02) / 0.13) ** 2 + ((y + 0.05) / 0.3) ** 2 + ((x - 0.22 * side) / 0.1) ** 2 < 1] = GREY
        bend = x - side * (0.09 + 0.12 * np.abs(y))
        tissue[((z - 0.12) / 0.17) ** 2 + (y / 0.42) ** 2 + (bend / 0.06) ** 2 < 1] = FLUID
    tissue[(radius < 1) & (np.abs(x) < 0.02) & (radius > 0.6)] = FLUID
    tissue[(tissue > FLUID) & (np.abs(smooth_noise(rng, radius.shape, 1.0)) > 2.6)] = VESSEL
    return tissue


def _tumour(
    rng: np.random.Generator, place: Float32[np.ndarray, "3 D H W"], tissue: UInt8[np.ndarray, "D H W"]
) -> UInt8[np.ndarray, "D H W"]:
    """Return labels: oedema of an uneven border, in it a shell that enhances, in it a necrotic core."""
    seeds = np.flatnonzero((tissue == WHITE) & (np.linalg.norm(place, axis=0) < 0.7))
    index = int(seeds[int(rng.integers(seeds.size))])
    centre = np.array([axis.flat[index] for axis in place], np.float32)[:, None, None, None]
    radii = rng.uniform(0.2, 0.34, 3).astype(np.float32)[:, None, None, None]
    distance = np.linalg.norm((place - centre) / radii, axis=0) + 0.15 * smooth_noise(rng, tissue.shape, 2.0)
    inside: Bool[np.ndarray, "D H W"] = tissue > BODY
    shell, core = rng.uniform(0.55, 0.7), rng.uniform(0.3, 0.42)
    enhances = rng.random() >= 1 / 8
    label = np.zeros(tissue.shape, np.uint8)
    label[inside & (tissue != FLUID) & (distance < 1)] = OEDEMA
    label[inside & (distance < shell)] = ENHANCING if enhances else CORE
    label[inside & (distance < core)] = CORE
    return label


def _sequence(
    rng: np.random.Generator, tissue: UInt8[np.ndarray, "D H W"], label: UInt8[np.ndarray, "D H W"], number: int
) -> Int16[np.ndarray, "D H W"]:
    """Return a sequence: brightness varied a little per tissue, a bias field, blur and noise; 0 around the brain."""
    values = np.zeros(tissue.shape, np.float32)
    for part, brightness in _BRIGHTNESS.items():
        values[tissue == part] = brightness[number] * rng.uniform(0.93, 1.07)
    for part, brightness in _TUMOUR.items():
        values[label == part] = brightness[number] * rng.uniform(0.93, 1.07)
    bias = np.exp(0.1 * smooth_noise(rng, tissue.shape, min(tissue.shape) / 3))
    values = ndimage.gaussian_filter(values, 0.5) * bias + rng.normal(0, 0.05, tissue.shape).astype(np.float32)
    brain = np.clip(values * rng.uniform(250, 900), 1, 4000)
    return np.where(tissue > BODY, np.rint(brain), 0).astype(np.int16)


def write_brains(
    folder: str | Path,
    num_patients: int,
    num_unlabelled: int = 0,
    seed: int = 0,
    spacing_mm: Triple = (2.5, 2.5, 2.5),
    sequences: Sequence[str] = SEQUENCES,
) -> Path:
    """Write a cohort in nnU-Net's layout, a file per sequence, and return its folder; the same arguments, same bytes.

    The first ``num_patients`` have a tumour and labels; ``num_unlabelled`` more are healthy and have none.
    """
    root = Path(folder)
    images, labels = root / "imagesTr", root / "labelsTr"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    for patient in range(num_patients + num_unlabelled):
        brain = make_brain(seed, patient, spacing_mm, tumour=patient < num_patients)
        name, geometry = f"brain_{patient:03d}", (brain.spacing_mm, brain.orientation)
        for channel, sequence in enumerate(sequences):
            volume = brain.voxels[SEQUENCES.index(sequence)]
            save_volume(volume, *geometry, images / f"{name}_{channel:04d}.nii.gz")
        if patient < num_patients:
            save_volume(brain.label, *geometry, labels / f"{name}.nii.gz")
    write_description(root, sequences, LABEL_NAMES, num_patients)
    return root
