"""Picture phantoms: fundus photographs graded by their lesions, and chest films with and without pneumonia.

A folder of PNG files with a table of labels and patients, as the layout ``csv`` reads it. Colour, brightness and
contrast differ from picture to picture and are independent of the label.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from scipy import ndimage

TABLE = "labels.csv"
NUM_GRADES = 5
# The number of lesions in a retina of each grade: from, to.
LESIONS = ((0, 0), (2, 4), (7, 11), (16, 22), (32, 44))
FILMS = ("normal", "pneumonia")
EYES = ("right", "left")


@dataclass(frozen=True)
class Picture:
    """A synthetic picture, its class, and where its lesions are."""

    pixels: UInt8[np.ndarray, "H W *C"]
    label: int
    lesions: Bool[np.ndarray, "H W"]


def make_fundus(seed: int, patient: int, eye: int = 0, size: int = 256) -> Picture:
    """Return a retina in colour, its grade drawn uniformly from 0 to 4; the same arguments give the same pixels.

    The optic disc lies towards the nose, so on the right in a right eye (0) and on the left in a left one (1).
    """
    rng = np.random.default_rng((seed, patient, eye, 2))
    grade = int(rng.integers(NUM_GRADES))
    y, x = _grid(size)
    side = 1 - 2 * eye
    depth = np.full((size, size), rng.uniform(0.75, 1.0), np.float32)  # 1 is the bright retina, 0 black
    depth *= 1 - 0.35 * (x**2 + y**2) + 0.05 * _smooth(rng, size, size / 10)
    depth -= 0.3 * np.exp(-((x + 0.12 * side) ** 2 + y**2) / 0.02)
    vessels = _vessels(rng, size, 0.45 * side)
    depth -= 0.3 * vessels
    disc = np.exp(-((((x - 0.45 * side) / 0.13) ** 2 + (y / 0.15) ** 2) ** 2))
    red, yellow, where = _retinal_lesions(rng, grade, size)
    colour = np.array([rng.uniform(0.75, 0.95), rng.uniform(0.36, 0.5), rng.uniform(0.12, 0.25)], np.float32)
    image = depth[..., None] * colour + disc[..., None] * np.array([0.15, 0.35, 0.25], np.float32)
    image += yellow[..., None] * np.array([0.2, 0.35, 0.1], np.float32)
    image *= 1 - red[..., None] * np.array([0.35, 0.75, 0.6], np.float32)
    image += rng.normal(0, 0.015, image.shape).astype(np.float32)
    image[x**2 + y**2 > 0.94**2] = 0.01
    return Picture(_bytes(image * rng.uniform(0.8, 1.1)), grade, where)


def make_film(seed: int, patient: int, size: int = 256) -> Picture:
    """Return a frontal chest film in grey, normal (0) or with one to three opacities in the lungs (1)."""
    rng = np.random.default_rng((seed, patient, 3))
    label = int(rng.integers(len(FILMS)))
    y, x = (axis + np.float32(rng.uniform(-0.06, 0.06)) for axis in _grid(size))
    width, top, bottom = rng.uniform(0.8, 0.95), rng.uniform(-0.85, -0.7), rng.uniform(0.45, 0.65)
    body = 1 / (1 + np.exp((np.abs(x) - width - 0.1 * np.maximum(y, 0)) / 0.03))
    lungs = np.zeros((size, size), bool)
    for side, wide in ((-1, 0.3), (1, 0.34)):  # the heart takes up space on the image's right
        middle = side * rng.uniform(0.4, 0.44)
        arch = ((x - middle) / wide) ** 2 + ((y - bottom) / (top - bottom)) ** 2 < 1
        lungs |= arch & (y < bottom - 0.12 * (((x - middle) / wide) ** 2))
    heart = ((x - 0.12) / 0.26) ** 2 + ((y - 0.3) / 0.3) ** 2 < 1
    lungs &= ~heart
    ribs = np.maximum(0, np.cos(2 * np.pi * (y + 0.25 * x**2) * rng.uniform(5.5, 7))) ** 4
    image = body * (0.62 - 0.42 * ndimage.gaussian_filter(lungs.astype(np.float32), 2) + 0.05 * ribs)
    image += 0.2 * body * np.exp(-((x / 0.07) ** 2)) + 0.03 * _smooth(rng, size, size / 64) * lungs
    where = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(1, 4)) if label else 0):
        cloud, spot = _opacity(rng, lungs)
        image += cloud
        where |= spot
    image = ndimage.gaussian_filter(image, 0.8) + rng.normal(0, 0.012, image.shape)
    gain, floor = rng.uniform(0.7, 1.25), rng.uniform(0.0, 0.12)
    return Picture(_bytes((image * gain + floor).astype(np.float32)), label, where)


def _grid(size: int) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """Return the y and x of every pixel, from -1 to 1."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _smooth(rng: np.random.Generator, size: int, sigma: float) -> Float32[np.ndarray, "H W"]:
    """Return noise of deviation 1 that is smooth over about ``sigma`` pixels."""
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)).astype(np.float32), sigma)
    return noise / np.float32(noise.std())


def _vessels(rng: np.random.Generator, size: int, disc_x: float) -> Float32[np.ndarray, "H W"]:
    """Paint eight vessels that leave the optic disc and turn towards the macula."""
    mask = np.zeros((size, size), np.float32)
    for number in range(8):
        angle = number * np.pi / 4 + rng.uniform(-0.3, 0.3)
        at, heading = np.array([0.0, disc_x]), angle
        for step in range(size):
            at = at + np.array([np.sin(heading), np.cos(heading)]) * 2.2 / size
            heading += rng.normal(0, 0.05) - 0.008 * np.sin(heading) * np.sign(disc_x) * np.sign(np.cos(heading))
            row, column = np.rint((at + 1) / 2 * (size - 1)).astype(int)
            if not (0 <= row < size and 0 <= column < size):
                break
            mask[row, column] = 1.6 - step / size
    return np.clip(ndimage.gaussian_filter(mask, size / 190) * 3.5, 0, 1)


def _retinal_lesions(
    rng: np.random.Generator, grade: int, size: int
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Return how red (bleeding) and how yellow (exudate) each pixel is, and the pixels of either; none overlap."""
    y, x = _grid(size)
    red, yellow = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    places: list[np.ndarray] = []
    low, high = LESIONS[grade]
    wanted = int(rng.integers(low, high + 1))
    while len(places) < wanted:
        angle, distance = rng.uniform(0, 2 * np.pi), 0.8 * np.sqrt(rng.uniform(0.02, 1))
        place = distance * np.array([np.sin(angle), np.cos(angle)])
        if any(np.hypot(*(place - other)) < 0.09 for other in places):
            continue
        places.append(place)
        spot = np.exp(-(((y - place[0]) ** 2 + (x - place[1]) ** 2) / rng.uniform(0.018, 0.028) ** 2))
        layer = yellow if rng.random() < 0.3 else red
        layer += spot
    return red, yellow, (red > 0.5) | (yellow > 0.5)


def _opacity(
    rng: np.random.Generator, lungs: Bool[np.ndarray, "H W"]
) -> tuple[Float32[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Return a cloud somewhere in the lungs, and where it is dense."""
    y, x = _grid(len(lungs))
    places = np.argwhere(lungs)
    row, column = places[int(rng.integers(len(places)))]
    distance = ((y - y[row, column]) / rng.uniform(0.14, 0.24)) ** 2 + (
        (x - x[row, column]) / rng.uniform(0.12, 0.2)
    ) ** 2
    cloud = np.exp(-distance) * np.clip(1 + 0.3 * _smooth(rng, len(lungs), len(lungs) / 64), 0, None) * lungs
    return (rng.uniform(0.16, 0.28) * cloud).astype(np.float32), cloud > 0.4


def _bytes(image: Float32[np.ndarray, "H W *C"]) -> UInt8[np.ndarray, "H W *C"]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def write_fundus(
    folder: str | Path, num_patients: int, num_unlabelled: int = 0, seed: int = 0, size: int = 256
) -> Path:
    """Write both eyes of every patient, labelled by their grades, and return the folder; same seed, same bytes.

    The pictures of ``num_unlabelled`` further patients have no label.
    """
    eyes = {name: partial(make_fundus, seed, eye=eye, size=size) for eye, name in enumerate(EYES)}
    grades = [str(grade) for grade in range(NUM_GRADES)]
    return _write(Path(folder), num_patients, num_unlabelled, eyes, grades)


def write_films(
    folder: str | Path, num_patients: int, num_unlabelled: int = 0, seed: int = 0, size: int = 256
) -> Path:
    """Write a chest film of every patient, labelled normal or pneumonia, and return the folder.

    The films of ``num_unlabelled`` further patients have no label.
    """
    return _write(Path(folder), num_patients, num_unlabelled, {"film": partial(make_film, seed, size=size)}, FILMS)


def _write(
    root: Path,
    num_patients: int,
    num_unlabelled: int,
    makers: Mapping[str, Callable[[int], Picture]],
    class_names: Sequence[str],
) -> Path:
    """Write the pictures that each patient has, and the table."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(num_patients + num_unlabelled):
        for name, make in makers.items():
            picture, file = make(patient), f"phantom_{patient:03d}_{name}.png"
            Image.fromarray(picture.pixels).save(root / file)
            label = class_names[picture.label] if patient < num_patients else ""
            rows.append((file, label, f"phantom_{patient:03d}"))
    return write_table(root, rows)


def write_table(root: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """Write the table of a folder's files, their classes and patients; return the folder."""
    with (root / TABLE).open("w", newline="") as table:
        csv.writer(table).writerows([("file", "label", "patient"), *rows])
    return root
