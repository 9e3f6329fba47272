"""Case panels: a judged slice or picture as a report shows it, with its truth and what a network makes of it."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from orchestrator.judging.images import BoxedImage, JudgedImage, MaskedSlice
from orchestrator.judging.panels import class_colours, grey_window
from orchestrator.judging.pictures import RIGHT, WRONG

OPACITY, LEAST_PIXELS = 0.5, 200
FRAME, LINE = 4, 2
TRUE_BOX, HALO = "#ffe066", "#000000"
Seen = MaskedSlice | JudgedImage | BoxedImage
Legend = tuple[tuple[str, str], ...]
"""Names with their colours."""


@dataclass(frozen=True)
class Panel:
    """A picture as the address of an image, and what it shows."""

    image: str
    words: str


def truth_of(item: Seen, names: Sequence[str]) -> list[Panel]:
    """Return what is shown before the rows: the image and its truth."""
    if isinstance(item, MaskedSlice):
        return [Panel(_address(_shown(item)), "image"), Panel(_address(_masked(item, item.truth, names)), "truth")]
    if isinstance(item, JudgedImage):
        return [Panel(_address(_shown(item)), f"truth: {_listed(item.truth, names)}")]
    return [Panel(_address(_boxed(item, names, detected=False)), f"truth: {_counted(len(item.true), 'box')}")]


def panel_of(item: Seen, row: str, score: float, names: Sequence[str]) -> Panel:
    """Return what a row's network makes of an image; ``score`` is the case's mean over the row's runs."""
    if isinstance(item, MaskedSlice):
        return Panel(_address(_masked(item, item.prediction, names)), f"{row}: {score:.3f}")
    if isinstance(item, JudgedImage):
        right = item.truth == item.predicted
        told = _listed(item.predicted, names)
        told += "".join(f" {item.probabilities[number]:.2f}" for number in item.predicted[:1])
        return Panel(_address(_framed(_shown(item), RIGHT if right else WRONG)), f"{row}: {told}")
    drawn = f", {item.num_drawn} drawn" if item.num_drawn < len(item.scores) else ""
    told = f"{_counted(len(item.scores), 'box')} detected{drawn}"
    return Panel(_address(_boxed(item, names, detected=True)), f"{row}: {told}")


def legend_of(items: Sequence[Seen], names: Sequence[str]) -> Legend:
    """Return the names and colours of the labels or classes of boxes that occur."""
    occur: set[int] = set()
    colours = class_colours(len(names) + 1)[1:]
    for item in items:
        if isinstance(item, MaskedSlice):
            occur |= {int(label) for label in np.union1d(item.truth, item.prediction)} - {0}
            colours = class_colours(len(names))
        elif isinstance(item, BoxedImage):
            occur |= {*item.detected_classes[: item.num_drawn].tolist()}
    true = (("true box", TRUE_BOX),) if any(isinstance(item, BoxedImage) for item in items) else ()
    return true + tuple((names[number], colours[number]) for number in sorted(occur))


def _listed(classes: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(names[number] for number in classes) or "none"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 'es'}"


def _masked(item: MaskedSlice, mask: Int[np.ndarray, "h w"], names: Sequence[str]) -> Image.Image:
    colours = np.array([to_rgb(colour) for colour in class_colours(len(names))])
    share = OPACITY * (mask > 0)[..., None]
    return _turned((1 - share) * _unit(item) + share * colours[mask], item)


def _shown(item: Seen) -> Image.Image:
    return _turned(_unit(item), item)


def _unit(item: Seen) -> Float[np.ndarray, "h w 3"]:
    """Return the image's grey levels or colours between 0 and 1."""
    image = item.image[None] if item.image.ndim == 2 else item.image
    image = image if len(image) == 3 else image[:1].repeat(3, axis=0)
    low, high = grey_window(image)
    return np.clip((image.transpose(1, 2, 0) - low) / (high - low), 0, 1)


def _turned(pixels: Float[np.ndarray, "h w 3"], item: Seen) -> Image.Image:
    """Return a slice as it is looked at, with square pixels: a patient's left is on the right."""
    turned = pixels if item.upright else pixels[::-1, ::-1]
    height, width = turned.shape[0] * item.spacing_mm[0], turned.shape[1] * item.spacing_mm[1]
    zoom = max(1.0, LEAST_PIXELS / max(turned.shape[:2])) * max(turned.shape[:2]) / max(height, width)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    image = Image.fromarray((255 * turned).round().astype(np.uint8))
    return image.resize(size, Image.Resampling.BILINEAR)


def _framed(image: Image.Image, colour: str) -> Image.Image:
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=colour, width=FRAME)
    return image


def _boxed(item: BoxedImage, names: Sequence[str], detected: bool) -> Image.Image:
    """Draw the true boxes, and over them the likeliest detections with their scores."""
    image = _shown(item)
    draw, colours = ImageDraw.Draw(image), class_colours(len(names) + 1)[1:]
    for left, top, right, bottom in _placed(item, item.true, image.size):
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=HALO, width=LINE + 2)
        draw.rectangle((left, top, right, bottom), outline=TRUE_BOX, width=LINE)
    if detected:
        kinds, scores = item.detected_classes.tolist(), item.scores.tolist()
        for corners, kind, score in zip(
            _placed(item, item.detected[: item.num_drawn], image.size), kinds, scores, strict=False
        ):
            draw.rectangle(corners, outline=colours[kind], width=LINE)
            draw.text((corners[0] + LINE + 1, corners[1] + LINE), f"{score:.2f}", fill=colours[kind])
    return image


def _placed(
    item: BoxedImage, boxes: Float[np.ndarray, "n 4"], size: tuple[int, int]
) -> Iterator[tuple[float, float, float, float]]:
    """Yield left, top, right and bottom of boxes on the image as it is shown."""
    rows, columns = item.image.shape[-2:]
    down, right = size[1] / rows, size[0] / columns
    for top, left, bottom, end in boxes.tolist():
        if not item.upright:
            top, bottom, left, end = rows - bottom, rows - top, columns - end, columns - left
        yield left * right, top * down, max(end * right - 1, left * right), max(bottom * down - 1, top * down)


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
