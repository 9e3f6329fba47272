"""Small folders of pictures with boxes, in the forms in which COCO, Pascal VOC and DeepLesion are released."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# A name and a box: x_min, y_min, x_max, y_max in the numbers of the form.
Named = tuple[str, tuple[float, float, float, float]]
_DEEPLESION = (
    *("File_name", "Patient_index", "Study_index", "Series_ID", "Key_slice_index", "Bounding_boxes"),
    *("Possibly_noisy", "Slice_range", "Spacing_mm_px_", "Train_Val_Test", "Patient_age"),
)


def write_picture(path: Path, size: tuple[int, int], seed: int = 0, sixteen_bit: bool = False) -> Path:
    """Write a picture of noise of a size (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, size, np.uint8)
    if sixteen_bit:
        pixels = rng.integers(32768 - 1000, 32768 + 1000, size).astype(np.uint16)
    Image.fromarray(pixels).save(path)
    return path


def write_coco(
    path: Path,
    images: Mapping[str, tuple[int, int]],
    categories: Sequence[str],
    annotations: Sequence[dict[str, Any]],
) -> None:
    """Write a description of images by their sizes (H, W); ids of images and categories are tens, in their order.

    An annotation has ``image_id``, ``category_id``, ``bbox`` and the like, as COCO's.
    """
    listed = [
        {"id": 10 * number, "file_name": name, "height": height, "width": width}
        for number, (name, (height, width)) in enumerate(images.items())
    ]
    named = [{"id": 10 * number, "name": name} for number, name in enumerate(categories)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": listed, "annotations": list(annotations), "categories": named}))


def write_voc(path: Path, size: tuple[int, int], objects: Sequence[Named], difficult: Sequence[Named] = ()) -> None:
    """Write an XML file of an image of a size (H, W)."""
    parts = [f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"]
    for number, (name, (left, upper, right, lower)) in enumerate((*objects, *difficult)):
        borders = f"<xmin>{left}</xmin><ymin>{upper}</ymin><xmax>{right}</xmax><ymax>{lower}</ymax>"
        flag = int(number >= len(objects))
        parts.append(f"<object><name>{name}</name><difficult>{flag}</difficult><bndbox>{borders}</bndbox></object>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{''.join(parts)}</annotation>")


def lesion(name: str, box: tuple[float, ...] = (2, 3, 5, 6), **changes: str) -> dict[str, str]:
    """Return a row of DL_info.csv; the number of the key slice is that at the end of the file's name."""
    patient, _, _, key = name.removesuffix(".png").split("_")
    row = {
        "File_name": name,
        "Patient_index": str(int(patient)),
        "Key_slice_index": str(int(key)),
        "Bounding_boxes": ", ".join(map(str, box)),
        "Possibly_noisy": "0",
        "Slice_range": f"{int(key) - 1}, {int(key) + 2}",
        "Spacing_mm_px_": "0.8, 0.9, 5",
        "Train_Val_Test": "1",
        "Patient_age": "61",
    }
    return {**row, **changes}


def write_deeplesion(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, _DEEPLESION, restval="1")
        table.writeheader()
        table.writerows(rows)


def write_slices_of(folder: Path, series: str, numbers: Sequence[int], size: tuple[int, int] = (8, 9)) -> None:
    """Write the 16-bit slices of a series as DeepLesion has them."""
    for number in numbers:
        seed = 1000 * int(series.partition("_")[0]) + number
        write_picture(folder / "Images_png" / series / f"{number:03d}.png", size, seed, sixteen_bit=True)
