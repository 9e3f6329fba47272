"""Cohort: synthetic scans that compress like CT (smooth anatomy, noise inside the body, constant air), made fast."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from data.scan import Scan
from data.shards.index import IndexCard, write_index
from data.shards.writer import Sample, to_row, write_shard

AIR_HU, NOISE_HU, CONTRAST_HU = -1000.0, 12.0, 300.0
COARSENESS = 8
NUM_TEXTURES = 8
SLICE_SHAPE = (300, 300)
VOLUME_SHAPE = (96, 184, 184)  # 6.5 MB
SLICES_PER_GROUP = 16
SCAN_SHAPE = (48, 128, 128)


def write_slice_shards(folder: Path, num_samples: int, shape: tuple[int, ...] = SLICE_SHAPE) -> str:
    """Write uint16 slices, by default of 300 x 300, in row groups of about 3 MB; return the folder."""
    return _write_shards(folder, _textures(shape, np.uint16), num_samples, SLICES_PER_GROUP)


def write_volume_shards(folder: Path, num_samples: int, shape: tuple[int, ...] = VOLUME_SHAPE) -> str:
    """Write int16 volumes, by default of 6.5 MB, one per row group; return the folder."""
    return _write_shards(folder, _textures(shape, np.int16), num_samples, 1)


def write_scans(folder: Path, num_scans: int) -> Path:
    """Write CT volumes as NIfTI files, no two alike; return the folder."""
    folder.mkdir(parents=True)
    affine = np.diag([-1.5, -1.5, 2.5, 1.0])
    textures = _textures(SCAN_SHAPE, np.int16)
    for index in range(num_scans):
        voxels = _variant(textures, index) - 1024
        nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), folder / f"scan{index:04d}.nii.gz")
    return folder


def _textures(shape: tuple[int, ...], dtype: type[np.generic]) -> list[np.ndarray]:
    """Return some scans of HU + 1024, as integers."""
    rng = np.random.default_rng(0)
    scans = []
    for _ in range(NUM_TEXTURES):
        coarse = rng.normal(size=[-(-size // COARSENESS) for size in shape])
        smooth = np.asarray(ndimage.zoom(coarse, COARSENESS, order=1))[tuple(slice(size) for size in shape)]
        inside = smooth * CONTRAST_HU + rng.normal(size=shape) * NOISE_HU
        hu = np.where(smooth > -0.3, inside, AIR_HU)
        scans.append(np.clip(hu + 1024, 0, 4095).astype(dtype))
    return scans


def _variant(textures: list[np.ndarray], index: int) -> np.ndarray:
    return np.roll(textures[index % NUM_TEXTURES], 1 + index // NUM_TEXTURES, axis=-1)


def _write_shards(folder: Path, textures: list[np.ndarray], num_samples: int, per_group: int) -> str:
    def groups() -> Iterator[list[dict[str, Any]]]:
        for start in range(0, num_samples, per_group):
            yield [_row(textures, index) for index in range(start, min(start + per_group, num_samples))]

    file = write_shard(str(folder), "train-00000", groups())
    assert file is not None, "there is at least one sample"
    write_index(str(folder), [file], IndexCard(recipe={"name": "bench"}))
    return str(folder)


def _row(textures: list[np.ndarray], index: int) -> dict[str, Any]:
    voxels = _variant(textures, index)[None]
    scan = Scan(voxels=voxels, spacing_mm=(1.0,) * (voxels.ndim - 1), modality="CT", offset=-1024.0)
    return to_row(Sample(scan, f"s{index:06d}", f"p{index:06d}", f"v{index:06d}", "bench", "train"))
