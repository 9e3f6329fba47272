"""Photograph phantoms: colour pictures of a few objects, mostly of one class, with the boxes of all.

A folder of PNG files; a table of classes and patients, as the layout ``csv`` reads it; and the boxes as COCO's
``instances.json``. Colours, places, sizes and the background are drawn independently of the classes, which differ in
shape and in texture: plain, stripes along either axis, checks and grain.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image
from scipy import ndimage

from data.boxes import Boxes
from data.phantoms.pictures import write_table

OBJECTS = ("disc", "square", "triangle", "ring", "cross")
INSTANCES = "instances.json"
SIZE = 128
SMALLEST, LARGEST = 0.12, 0.5  # an object's sides, as shares of the picture's
MOST_OBJECTS, TRIES, STRAYS = 4, 20, 0.25  # strays are objects of any class
STRIPES, CONTRAST = 10, 0.25  # how often a texture repeats over a picture, and how far it departs from its colour


@dataclass(frozen=True)
class Photograph:
    """A synthetic photograph, the place of its class in ``OBJECTS``, and the boxes of its objects."""

    pixels: UInt8[np.ndarray, "H W 3"]
    label: int
    boxes: Boxes


def make_photograph(seed: int, patient: int, size: int = SIZE) -> Photograph:
    """Return a photograph with one to four objects that do not touch; the same arguments give the same pixels.

    The largest object and most of the others are of the photograph's class.
    """
    rng = np.random.default_rng((seed, patient, 5))
    image, label = _background(rng, size), int(rng.integers(len(OBJECTS)))
    corners = _places(rng, size, int(rng.integers(1, MOST_OBJECTS + 1)))
    strays = rng.random(len(corners)) < STRAYS
    kinds = np.where(strays, rng.integers(len(OBJECTS), size=len(corners)), label)
    kinds[(corners[:, 1] - corners[:, 0]).prod(axis=1).argmax()] = label
    for corner, kind in zip(corners, kinds.tolist(), strict=True):
        _paint(rng, image, corner, kind)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0)) + rng.normal(0, 0.02, image.shape)
    return Photograph(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), label, Boxes(corners, kinds))


def _background(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "H W 3"]:
    """Return a smooth mixture of two colours."""
    first, second = rng.uniform(0.05, 0.95, (2, 3)).astype(np.float32)
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), size / rng.uniform(6, 20))
    share = (1 / (1 + np.exp(-2 * noise / noise.std()))).astype(np.float32)[..., None]
    return first * share + second * (1 - share)


def _places(rng: np.random.Generator, size: int, number: int) -> Int64[np.ndarray, "n 2 2"]:
    """Draw the corners of at most so many objects, and at least of one, that do not touch each other."""
    places: list[np.ndarray] = []
    for _ in range(number * TRIES):
        side = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))) * size
        lengths = np.rint(side * np.exp(rng.uniform(-0.2, 0.2, 2))).astype(np.int64).clip(8, size - 4)
        low = rng.integers(1, size - lengths)
        corner = np.stack([low, low + lengths])
        if all(((corner[0] > other[1] + 1) | (corner[1] < other[0] - 1)).any() for other in places):
            places.append(corner)
        if len(places) == number:
            break
    return np.stack(places)


def _paint(rng: np.random.Generator, image: Float32[np.ndarray, "H W 3"], corner: np.ndarray, kind: int) -> None:
    """Paint an object that reaches all four sides of its box, in a colour that stands out from what it covers."""
    (top, left), (bottom, right) = corner.tolist()
    under = image[top:bottom, left:right]
    where = _shape(kind, bottom - top, right - left)
    colour = rng.uniform(0, 1, 3).astype(np.float32)
    while np.abs(colour - under[where].mean(axis=0)).max() < 0.35:
        colour = rng.uniform(0, 1, 3).astype(np.float32)
    painted = colour + np.float32(CONTRAST) * _texture(rng, kind, under.shape[:2], len(image) / STRIPES)[..., None]
    under[where] = painted[where]


def _texture(rng: np.random.Generator, kind: int, size: tuple[int, int], period: float) -> Float32[np.ndarray, "h w"]:
    """Return how much lighter (1) or darker (-1) each pixel of an object is than its colour."""
    y, x = np.meshgrid(*(np.arange(n) + rng.uniform(0, period) for n in size), indexing="ij")
    rows, columns = (np.sign(np.sin(2 * np.pi * axis / period)) for axis in (y, x))
    textures = {
        "disc": np.zeros(size),
        "square": rows,
        "triangle": columns,
        "ring": rows * columns,
        "cross": rng.choice([-1.0, 1.0], size),
    }
    return textures[OBJECTS[kind]].astype(np.float32)


def _shape(kind: int, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return which pixels of its box an object covers."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (height, width)), indexing="ij")
    radius = np.hypot(y, x)
    shapes = {
        "disc": radius <= 1,
        "square": np.ones_like(radius, dtype=bool),
        "triangle": np.abs(x) <= (y + 1) / 2 + 1 / width,
        "ring": (radius <= 1) & (radius > 0.55),
        "cross": (np.abs(x) < 0.35) | (np.abs(y) < 0.35),
    }
    return shapes[OBJECTS[kind]]


def write_photographs(
    folder: str | Path, num_patients: int, num_unlabelled: int = 0, seed: int = 0, size: int = SIZE
) -> Path:
    """Write a photograph of every patient, and return the folder; the same arguments give the same bytes.

    The photographs of ``num_unlabelled`` further patients have neither class nor boxes.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rows, images, annotations = list[tuple[str, str, str]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for patient in range(num_patients + num_unlabelled):
        photograph, file = make_photograph(seed, patient, size), f"phantom_{patient:03d}.png"
        Image.fromarray(photograph.pixels).save(root / file)
        is_labelled = patient < num_patients
        rows.append((file, OBJECTS[photograph.label] if is_labelled else "", f"phantom_{patient:03d}"))
        if is_labelled:
            images.append({"id": patient, "file_name": file, "height": size, "width": size})
            annotations += _annotations(photograph.boxes, patient, len(annotations) + 1)
    categories = [{"id": number, "name": name} for number, name in enumerate(OBJECTS, start=1)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (root / INSTANCES).write_text(json.dumps(instances, indent=1) + "\n")
    return write_table(root, rows)


def _annotations(boxes: Boxes, image: int, first: int) -> list[dict[str, Any]]:
    """Return boxes as COCO writes them: left, top, width and height."""
    found = []
    for number, (((top, left), (bottom, right)), kind) in enumerate(
        zip(boxes.corners.tolist(), boxes.classes.tolist(), strict=True), start=first
    ):
        height, width = bottom - top, right - left
        found.append(
            {
                "id": number,
                "image_id": image,
                "category_id": kind + 1,
                "bbox": [left, top, width, height],
                "area": height * width,
                "iscrowd": 0,
            }
        )
    return found
