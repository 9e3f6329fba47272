"""Panels: what all pictures are made of: a dark figure of panels, an image in a panel, its frame and its caption.

Volumes and their slices are drawn to scale as radiologists look at them: anterior or superior up, the patient's right
(or anterior) on the left. Other images are drawn as they are stored.
"""

import io

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

PAPER, INK = "#12151a", "#e8eaed"
PANEL_INCHES = 2.3


def class_colours(num_classes: int) -> list[str]:
    """Return one colour per class that stays the same between pictures; class 0 is transparent."""
    base = [*colormaps["tab10"].colors, *colormaps["Set2"].colors]  # pyright: ignore[reportAttributeAccessIssue]
    # Steps of the golden ratio keep the hues of neighbouring classes far apart, however many classes there are.
    more = [colormaps["hsv"](number * 0.618034 % 1) for number in range(num_classes - 1 - len(base))]
    return ["#00000000", *(to_hex(colour) for colour in (base + more)[: max(0, num_classes - 1)])]


def empty_panels(num_rows: int, num_columns: int, legend: bool = False) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels (rows, columns), with room for a legend on the right."""
    width = PANEL_INCHES * num_columns + (1.4 if legend else 0)
    figure = Figure(figsize=(width, PANEL_INCHES * num_rows), layout="constrained", facecolor=PAPER)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor=PAPER)
        axis.spines[:].set_visible(False)
    return figure, axes


def grey_window(image: Float[np.ndarray, "c *size"]) -> tuple[float, float]:
    """Choose what is drawn black and white: the lowest value, and the 99.5th percentile of all voxels above it."""
    body = image[image > image.min()]
    low, high = (float(image.min()), float(np.percentile(body, 99.5))) if body.size else (0.0, 1.0)
    return low, max(high, low + 1e-6)


def show_image(
    axis: Axes,
    image: Float[np.ndarray, "c h w"],
    limits: tuple[float, float],
    spacing_mm: tuple[float, ...],
    upright: bool,
) -> None:
    """Draw an image, one channel in grey, three as colours; ``upright`` says that row 0 is the top."""
    grey = image.shape[0] != 3
    unit = np.clip((image - limits[0]) / (limits[1] - limits[0]), 0, 1)
    pixels = unit[0] if grey else unit.transpose(1, 2, 0)
    axis.imshow(
        pixels, cmap="gray", vmin=0, vmax=1, origin="upper" if upright else "lower", interpolation="nearest",
        aspect=spacing_mm[0] / spacing_mm[1],
    )  # fmt: skip
    if not upright:
        axis.invert_xaxis()
    axis.autoscale(False)  # a mask drawn over it would turn the axis back


def show_frame(axis: Axes, colour: str) -> None:
    """Draw the panel's border."""
    axis.spines[:].set(visible=True, color=colour, linewidth=2)


def show_caption(axis: Axes, text: str) -> None:
    """Write above the panel."""
    axis.set_title(text, color=INK, fontsize=8, pad=4)


def as_png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return buffer.getvalue()
