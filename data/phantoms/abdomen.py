"""Phantom: a seeded cohort of synthetic abdomens with labelled organs and lesions; it needs no download.

Positions are those of an adult lying in a scanner; shapes are ellipsoids and tubes bent by a smooth random warp.
Liver, spleen, pancreas, muscle and unlabelled bowel share a range of HU: intensity alone does not tell them apart.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt8
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

AIR_HU, GAS_HU, FAT_HU, MUSCLE_HU, BONE_HU = -1000.0, -800.0, -100.0, 55.0, 420.0
BODY_MM = np.array([150.0, 112.0, 168.0])  # half extents (z, y, x) of the standard body
WARP_MOST_MM = 40.0
Triple = tuple[float | int, float | int, float | int]
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI")


@dataclass(frozen=True)
class Organ:
    """An ellipsoid in a standard body: centre and radii in mm as (z, y, x) with x to the right, y to anterior.

    ``hu`` is the mean over patients, ``spread_hu`` its deviation from patient to patient.
    """

    name: str
    centre_mm: Triple
    radii_mm: Triple
    hu: float | int
    spread_hu: float | int
    tilt_deg: float | int = 0.0


ORGANS = (
    Organ("liver", (35, 12, 72), (62, 68, 72), 105, 12, 12),
    Organ("spleen", (42, -42, -105), (42, 34, 22), 112, 12, 20),
    Organ("right kidney", (-25, -52, 58), (46, 24, 23), 150, 20, 8),
    Organ("left kidney", (-12, -52, -60), (46, 24, 23), 150, 20, -8),
    Organ("stomach", (38, 38, -58), (44, 34, 42), 45, 15, 25),
    Organ("pancreas", (5, 8, -18), (13, 13, 52), 92, 12, -12),
    Organ("gallbladder", (0, 48, 55), (24, 13, 12), 12, 5, 10),
    Organ("aorta", (0, -38, -8), (400, 10.5, 10.5), 150, 20),
    Organ("vena cava", (0, -36, 18), (400, 9.5, 12), 115, 15),
    Organ("bladder", (-118, 30, 0), (30, 28, 36), 8, 4),
    Organ("spine", (0, -72, 0), (400, 19, 22), 210, 30),
)
UNLABELLED = (
    Organ("right lung", (155, 0, 75), (75, 78, 62), -830, 30),
    Organ("left lung", (155, 0, -75), (75, 78, 62), -830, 30),
    Organ("heart", (140, 25, -20), (48, 42, 52), 140, 20, 20),
)
LESION = len(ORGANS) + 1
LABEL_NAMES = {i + 1: organ.name for i, organ in enumerate(ORGANS)} | {LESION: "lesion"}
_NUMBER = {name: number for number, name in LABEL_NAMES.items()}


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient: HU as int16 and labels, both (D, H, W) in RAS, with spacing in mm."""

    voxels: Int16[np.ndarray, "D H W"]
    label: UInt8[np.ndarray, "D H W"]
    spacing_mm: tuple[float, float, float]
    orientation: str


def make_phantom(seed: int, patient: int, spacing_mm: Triple = (5.0, 3.0, 3.0)) -> Phantom:
    """Return one patient of a cohort; the same arguments give the same voxels.

    Spacing varies by up to 15 %, and the field of view by up to 15 % around one that holds the body.
    """
    rng = np.random.default_rng((seed, patient))
    spacing = tuple(float(step) for step in np.round(np.array(spacing_mm) * rng.uniform(0.85, 1.15, 3), 3))
    body = BODY_MM * rng.uniform(0.88, 1.12, 3)
    half_mm = body * np.array([rng.uniform(0.8, 1.0), *rng.uniform(1.05, 1.2, 2)])
    size = np.maximum(8, np.rint(2 * half_mm / np.array(spacing)).astype(int))
    shift_mm = np.array([rng.uniform(-10, 10), *rng.uniform(-6, 6, 2)])
    axes = [np.linspace(-h, h, n, dtype=np.float32) + s for h, n, s in zip(half_mm, size, shift_mm, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    radius = np.hypot(grid[1] / np.float32(body[1]), grid[2] / np.float32(body[2]))
    bent = grid / (body / BODY_MM)[:, None, None, None].astype(np.float32) + warp(rng, size, 9.0)
    canvas = _Canvas(rng, bent, radius)
    canvas.surroundings()
    canvas.organs()
    canvas.details()
    texture = smooth_noise(rng, size, 2.0) * 6 + ndimage.gaussian_filter(
        rng.normal(0, rng.uniform(18, 28), size).astype(np.float32), (0, 0.6, 0.6)
    )
    texture *= np.where(radius < 1, 1, 0.4).astype(np.float32)
    voxels = ndimage.gaussian_filter(canvas.voxels, (0, 0.5, 0.5)) + texture
    return Phantom(
        np.clip(np.rint(voxels), -1024, 3071).astype(np.int16),
        canvas.label,
        (spacing[0], spacing[1], spacing[2]),
        ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))],
    )


class _Canvas:
    """One patient while it is painted: HU without noise, labels, and where in a standard body each voxel lies."""

    def __init__(
        self,
        rng: np.random.Generator,
        place_mm: Float32[np.ndarray, "3 D H W"],
        radius: Float32[np.ndarray, "D H W"],
    ) -> None:
        self.rng = rng
        self.place_mm = place_mm
        self.voxels = np.full(radius.shape, AIR_HU, np.float32)
        self.voxels[radius < 1] = FAT_HU
        self.voxels[(radius < 0.92) & (radius > 0.83)] = MUSCLE_HU
        self.label = np.zeros(radius.shape, np.uint8)
        self.inside = radius < 0.83

    def organs(self) -> None:
        """Paint labelled organs in their order: a later one covers an earlier one."""
        for number, organ in enumerate(ORGANS, start=1):
            where = self._ellipsoid(organ)
            self.label[where] = number
            self.voxels[where] = self.rng.normal(organ.hu, organ.spread_hu)

    def surroundings(self) -> None:
        """Paint organs without labels: lungs and heart above, and loops of bowel, some with air, in front below."""
        for organ in UNLABELLED:
            self.voxels[self._ellipsoid(organ)] = self.rng.normal(organ.hu, organ.spread_hu)
        for _ in range(int(self.rng.integers(12, 20))):
            z, y, x = (float(self.rng.uniform(low, high)) for low, high in ((-120, 10), (5, 70), (-90, 90)))
            tilt = float(self.rng.uniform(-90, 90))
            where = self._ellipsoid(Organ("bowel", (z, y, x), self._radii(11.0, 26.0), 0, 0, tilt))
            self.voxels[where] = self.rng.uniform(25, 110)
            if self.rng.random() < 0.4:
                self.voxels[where & (self.place_mm[1] > y + 4)] = GAS_HU

    def details(self) -> None:
        """Paint structures inside organs: gas in the stomach, the kidneys' cortex, vertebrae, vessels, lesions."""
        stomach = ORGANS[_NUMBER["stomach"] - 1]
        gas_above_mm = stomach.centre_mm[1] + self.rng.uniform(2, 14)
        self.voxels[self._in("stomach") & (self.place_mm[1] > gas_above_mm)] = GAS_HU
        for side in ("right kidney", "left kidney"):
            kidney = self._in(side)
            self.voxels[kidney & ~ndimage.binary_erosion(kidney, iterations=2)] += 45
        z, y, x = self.place_mm
        disc = np.cos(z * np.float32(2 * np.pi / 34) + self.rng.uniform(0, 6)) > 0.8
        self.voxels[self._in("spine") & disc] = 90
        self.voxels[self._in("spine") & ~disc & (np.hypot(y + 72, x) > 14)] = BONE_HU
        vessels = smooth_noise(self.rng, self.label.shape, 1.6)
        self.voxels[self._in("liver") & (vessels > 1.9)] += 40
        for host, hu in (("liver", 52.0), ("right kidney", 18.0), ("spleen", 70.0)):
            for _ in range(int(self.rng.integers(0, 3))):
                self._lesion(self._in(host), hu)

    def _lesion(self, host: Bool[np.ndarray, "D H W"], hu: float) -> None:
        places = np.flatnonzero(host)
        if places.size == 0:  # the organ is outside this patient's field of view
            return
        index = int(places[int(self.rng.integers(places.size))])
        z, y, x = (float(axis.flat[index]) for axis in self.place_mm)
        where = self._ellipsoid(Organ("lesion", (z, y, x), self._radii(8.0, 18.0), hu, 8)) & host
        self.label[where] = LESION
        self.voxels[where] = self.rng.normal(hu, 8)

    def _in(self, organ: str) -> Bool[np.ndarray, "D H W"]:
        return self.label == _NUMBER[organ]

    def _radii(self, low: float, high: float) -> tuple[float, float, float]:
        z, y, x = self.rng.uniform(low, high, 3)
        return float(z), float(y), float(x)

    def _ellipsoid(self, organ: Organ) -> Bool[np.ndarray, "D H W"]:
        """Return where an organ is, its centre, radii and tilt varied a little."""
        is_tube = organ.radii_mm[0] > 200
        centre = np.array(organ.centre_mm) + self.rng.normal(0, 4, 3) * (not is_tube)
        radii = (np.array(organ.radii_mm) * self.rng.uniform(0.85, 1.15, 3)).astype(np.float32)
        angle = np.deg2rad(organ.tilt_deg + self.rng.normal(0, 6))
        _, rows, columns = self.inside.shape
        middle = self.place_mm[0, :, rows // 2, columns // 2]
        near = np.abs(middle - centre[0]) < radii[0] + WARP_MOST_MM
        z, y, x = (axis[near] - np.float32(c) for axis, c in zip(self.place_mm, centre, strict=True))
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        y, x = cos * y + sin * x, cos * x - sin * y
        where = np.zeros_like(self.inside)
        where[near] = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2 < 1
        return where & self.inside


def smooth_noise(
    rng: np.random.Generator, size: Sequence[int] | np.ndarray, sigma: float
) -> Float32[np.ndarray, "D H W"]:
    """Return noise of deviation 1 that is smooth over about ``sigma`` voxels."""
    noise = ndimage.gaussian_filter(rng.normal(size=tuple(size)).astype(np.float32), sigma)
    return noise / np.float32(noise.std())


def warp(rng: np.random.Generator, size: np.ndarray, amount_mm: float) -> Float32[np.ndarray, "3 D H W"]:
    """Return a displacement field in mm, drawn on a coarse grid and interpolated."""
    coarse = rng.normal(0, amount_mm * 0.7, (3, 5, 6, 6)).astype(np.float32)
    factors = size / np.array(coarse.shape[1:])
    out = np.empty((3, *size), np.float32)
    for axis, field in enumerate(coarse):
        out[axis] = ndimage.zoom(field, factors, order=2, mode="nearest", grid_mode=True)
    return out


def write_cohort(
    folder: str | Path,
    num_patients: int,
    num_unlabelled: int = 0,
    seed: int = 0,
    spacing_mm: Triple = (5.0, 3.0, 3.0),
    names: Sequence[str] | None = None,
) -> Path:
    """Write a cohort in nnU-Net's layout and return its folder; the same arguments give the same bytes.

    The first ``num_patients`` have labels; ``num_unlabelled`` more lie in imagesTr without a label file.
    ``names`` plants one name per patient in file names and NIfTI descriptions, for tests of de-identification.
    """
    root = Path(folder)
    images, labels = root / "imagesTr", root / "labelsTr"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    for patient in range(num_patients + num_unlabelled):
        phantom = make_phantom(seed, patient, spacing_mm)
        geometry = phantom.spacing_mm, phantom.orientation
        name, described = (names[patient], names[patient]) if names else (f"phantom_{patient:03d}", "")
        save_volume(phantom.voxels, *geometry, images / f"{name}_0000.nii.gz", described)
        if patient < num_patients:
            save_volume(phantom.label, *geometry, labels / f"{name}.nii.gz")
    write_description(root, ["CT"], LABEL_NAMES, num_patients)
    return root


def save_volume(
    array: np.ndarray, spacing_mm: tuple[float, float, float], orientation: str, path: Path, description: str = ""
) -> None:
    """Write an array, (D, H, W) in RAS, as a NIfTI file in another orientation; NIfTI keeps (x, y, z)."""
    affine = np.diag([*spacing_mm[::-1], 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(array.shape[::-1]) - 1) / 2
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))
    image = image.as_reoriented(turn.tolist())
    image.header["descrip"] = description.encode()[:79]
    nib.save(image, path)


def write_description(
    root: Path, channel_names: Sequence[str], label_names: dict[int, str], num_labelled: int
) -> None:
    """Write an nnU-Net folder's dataset.json."""
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channel_names)},
        "labels": {"background": 0} | {name: number for number, name in label_names.items()},
        "numTraining": num_labelled,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
