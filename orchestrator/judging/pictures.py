"""Report: draw a run's work as PNG bytes: views with their boxes, and masks and classes beside the truth.

Pictures hold no ids but pseudonymous ones. Volumes and their slices are drawn to scale as radiologists look at them:
anterior or superior up, the patient's right (or anterior) on the left. Other images are drawn as they are stored.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from data.views.batch import Batch
from data.views.boxes import box_iou
from methods.base import Views

PAPER, INK = "#12151a", "#e8eaed"
VIEW_COLOURS = ("#4cc9f0", "#ffa94d", "#b197fc", "#69db7c", "#ff8787", "#ffe066")
PLANES = ("axial", "coronal", "sagittal")
PANEL_INCHES = 2.3
MOST_VIEWS = 6  # of a sample; VoCo has twenty views
MASK_ALPHA = 0.6
RIGHT, WRONG = "#69db7c", "#ff8787"
JUDGED_COLUMNS = 4


@dataclass(frozen=True)
class MaskedSlice:
    """One slice with its true and predicted class indices (0 is background).

    ``spacing_mm`` is the spacing of (rows, columns); ``upright`` says that row 0 is the top, as in a photograph.
    """

    title: str
    image: Float[np.ndarray, "h w"]
    truth: Int[np.ndarray, "h w"]
    prediction: Int[np.ndarray, "h w"]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    upright: bool = False


@dataclass(frozen=True)
class JudgedImage:
    """One slice or picture with its true and its predicted classes, by index.

    ``probabilities`` has one value per class; ``spacing_mm`` and ``upright`` are as in ``MaskedSlice``.
    """

    title: str
    image: Float[np.ndarray, "c h w"]
    truth: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: Float[np.ndarray, " k"]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    upright: bool = False


def draw_views(batch: Batch, views: Views) -> bytes:
    """Draw samples with the boxes of their views, and the views, as a PNG (see ``views_figure``)."""
    return _png(views_figure(batch, views))


def draw_masks(slices: Sequence[MaskedSlice], class_names: Sequence[str]) -> bytes:
    """Draw true and predicted masks over slices as a PNG (see ``masks_figure``)."""
    return _png(masks_figure(slices, class_names))


def draw_judged(images: Sequence[JudgedImage], class_names: Sequence[str]) -> bytes:
    """Draw images with true and predicted classes as a PNG (see ``judged_figure``)."""
    return _png(judged_figure(images, class_names))


def draw_confusions(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str]) -> bytes:
    """Draw a confusion matrix as a PNG (see ``confusions_figure``)."""
    return _png(confusions_figure(counts, class_names))


def views_figure(batch: Batch, views: Views) -> Figure:
    """Draw each sample as stored with the boxes of its views, and the views beside it; one row per sample.

    A volume is shown in the three planes through the middle of its boxes; a box that such a plane misses is dashed. A
    volume's views are shown in their middle axial plane. If there are many views, the first ones are shown.
    """
    stored_panels = 1 if batch.spatial_dims == 2 else 3
    images, outlined = views.images[:MOST_VIEWS], views.boxes[:MOST_VIEWS]
    figure, axes = _panels(len(batch), stored_panels + len(images))
    for index, row in enumerate(axes):
        image, upright = batch.sample(index).cpu().numpy(), batch.volumes[index] == batch.sample_ids[index]
        spacing = tuple(float(mm) for mm in batch.spacing_mm[index])
        boxes = [box[index] for box in outlined]
        limits = _window(image)
        if batch.spatial_dims == 2:
            _show(row[0], image, limits, spacing, upright)
            _outline(row[0], [box.T for box in boxes], [True] * len(boxes))
        else:
            _show_planes(row[:3], image, limits, spacing, boxes)
        _caption(row[0], _sample_title(batch, index, boxes))
        for number, (axis, view) in enumerate(zip(row[stored_panels:], images, strict=True)):
            voxels = view[index].detach().float().cpu().numpy()
            plane = voxels if batch.spatial_dims == 2 else voxels[:, voxels.shape[1] // 2]
            _show(axis, plane, limits, spacing[-2:], upright and batch.spatial_dims == 2)
            _frame(axis, VIEW_COLOURS[number % len(VIEW_COLOURS)])
            _caption(axis, f"view {number + 1}, {' x '.join(map(str, voxels.shape[1:]))}")
    return figure


def masks_figure(slices: Sequence[MaskedSlice], class_names: Sequence[str]) -> Figure:
    """Draw image, truth and prediction of each slice, with a legend of the classes that occur; names start at 0."""
    figure, axes = _panels(len(slices), 3, legend=True)
    colours = class_colours(len(class_names))
    shown = sorted({int(c) for item in slices for c in np.union1d(item.truth, item.prediction) if c > 0})
    for item, row in zip(slices, axes, strict=True):
        image = item.image[None]
        for axis, mask, name in zip(
            row, (None, item.truth, item.prediction), ("", "truth", "prediction"), strict=True
        ):
            _show(axis, image, _window(image), item.spacing_mm, item.upright)
            if mask is not None:
                _overlay(axis, mask, colours, item)
            _caption(axis, name or item.title)
    handles = [Patch(facecolor=colours[c], label=class_names[c]) for c in shown]
    if handles:
        figure.legend(
            handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8, title="label",
            title_fontproperties={"size": 8, "weight": "bold"},
        ).get_title().set_color(INK)  # fmt: skip
    return figure


def judged_figure(images: Sequence[JudgedImage], class_names: Sequence[str]) -> Figure:
    """Draw each image in a frame that is green if the prediction is right, else red; the captions give both."""
    columns = min(len(images), JUDGED_COLUMNS)
    figure, axes = _panels(-(-len(images) // columns), columns)
    for item, axis in zip(images, axes.flat, strict=False):
        _show(axis, item.image, _window(item.image), item.spacing_mm, item.upright)
        _frame(axis, RIGHT if item.truth == item.predicted else WRONG)
        told = [f"{class_names[k]} {item.probabilities[k]:.2f}" for k in item.predicted]
        if not told:
            told = [f"none, {class_names[int(item.probabilities.argmax())]} {item.probabilities.max():.2f}"]
        truth = ", ".join(class_names[k] for k in item.truth) or "none"
        _caption(axis, f"{item.title}\ntruth: {truth}\nprediction: {', '.join(told)}")
    return figure


def confusions_figure(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str]) -> Figure:
    """Draw how many samples of each true class (rows) are predicted as each class, shaded by share of the row."""
    side = max(PANEL_INCHES, 0.55 * len(class_names) + 1.2)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained", facecolor=PAPER)
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axis.set(xticks=range(len(class_names)), yticks=range(len(class_names)), facecolor=PAPER)
    axis.set_xticklabels(class_names, rotation=45, ha="right", color=INK, fontsize=8)
    axis.set_yticklabels(class_names, color=INK, fontsize=8)
    axis.set_xlabel("prediction", color=INK, fontsize=8)
    axis.set_ylabel("truth", color=INK, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for (row, column), count in np.ndenumerate(counts):
        dark = shares[row, column] > 0.6
        axis.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=PAPER if dark else INK)
    return figure


def class_colours(num_classes: int) -> list[str]:
    """Return one colour per class that stays the same between pictures; class 0 is transparent."""
    base = [*colormaps["tab10"].colors, *colormaps["Set2"].colors]  # pyright: ignore[reportAttributeAccessIssue]
    # Steps of the golden ratio keep the hues of neighbouring classes far apart, however many classes there are.
    more = [colormaps["hsv"](number * 0.618034 % 1) for number in range(num_classes - 1 - len(base))]
    return ["#00000000", *(to_hex(colour) for colour in (base + more)[: max(0, num_classes - 1)])]


def _panels(num_rows: int, num_columns: int, legend: bool = False) -> tuple[Figure, np.ndarray]:
    width = PANEL_INCHES * num_columns + (1.4 if legend else 0)
    figure = Figure(figsize=(width, PANEL_INCHES * num_rows), layout="constrained", facecolor=PAPER)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor=PAPER)
        axis.spines[:].set_visible(False)
    return figure, axes


def _window(image: Float[np.ndarray, "c *size"]) -> tuple[float, float]:
    """Choose what is drawn black and white: the lowest value, and the 99.5th percentile of all voxels above it."""
    body = image[image > image.min()]
    low, high = (float(image.min()), float(np.percentile(body, 99.5))) if body.size else (0.0, 1.0)
    return low, max(high, low + 1e-6)


def _show(
    axis: Axes,
    image: Float[np.ndarray, "c h w"],
    limits: tuple[float, float],
    spacing_mm: tuple[float, ...],
    upright: bool,
) -> None:
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


def _show_planes(
    axes: Shaped[np.ndarray, "planes=3"],
    image: Float[np.ndarray, "c d h w"],
    limits: tuple[float, float],
    spacing_mm: tuple[float, ...],
    boxes: Sequence[Int[np.ndarray, "2 3"]],
) -> None:
    """Draw the three planes through the middle of all boxes."""
    middle = np.mean(boxes, axis=(0, 1)).astype(int) if boxes else np.array(image.shape[1:]) // 2
    middle = np.minimum(middle, np.array(image.shape[1:]) - 1)
    for normal, axis in enumerate(axes):
        kept = [k for k in range(3) if k != normal]
        _show(axis, image.take(middle[normal], axis=normal + 1), limits, tuple(spacing_mm[k] for k in kept), False)
        cut = [bool(box[0, normal] <= middle[normal] < box[1, normal]) for box in boxes]
        _outline(axis, [box[:, kept].T for box in boxes], cut)
        if normal:
            _caption(axis, PLANES[normal])


def _outline(axis: Axes, spans: Sequence[Int[np.ndarray, "axes ends"]], solid: Sequence[bool]) -> None:
    """Draw rectangles given as ((row low, row high), (column low, column high)) around their pixels."""
    for number, (((top, bottom), (left, right)), is_cut) in enumerate(zip(spans, solid, strict=True)):
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, linewidth=1.6,
                edgecolor=VIEW_COLOURS[number % len(VIEW_COLOURS)], linestyle="-" if is_cut else (0, (2, 2)),
                clip_on=False,
            )
        )  # fmt: skip


def _frame(axis: Axes, colour: str) -> None:
    axis.spines[:].set(visible=True, color=colour, linewidth=2)


def _overlay(axis: Axes, mask: Int[np.ndarray, "h w"], colours: list[str], item: MaskedSlice) -> None:
    axis.imshow(
        mask, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest",
        alpha=MASK_ALPHA * (mask > 0), origin="upper" if item.upright else "lower",
        aspect=item.spacing_mm[0] / item.spacing_mm[1],
    )  # fmt: skip


def _sample_title(batch: Batch, index: int, boxes: Sequence[Int[np.ndarray, "2 n"]]) -> str:
    size = " x ".join(str(int(extent)) for extent in batch.extents[index])
    if len(boxes) != 2:
        return f"stored, {size}"
    iou = float(box_iou(boxes[0][None], boxes[1][None])[0])
    return f"stored, {size}, IoU {iou:.2f}"


def _caption(axis: Axes, text: str) -> None:
    axis.set_title(text, color=INK, fontsize=8, pad=4)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return buffer.getvalue()
