"""Report: draw a run's work as PNG bytes: views with their boxes, and masks and classes beside the truth.

Pictures hold no ids but pseudonymous ones. Volumes and their slices are drawn as ``panels.py`` says.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from data.boxes import Boxes
from data.views.batch import Batch
from data.views.boxes import box_iou
from methods.base import Views
from orchestrator.judging.images import JudgedImage, MaskedSlice
from orchestrator.judging.panels import (
    INK,
    PANEL_INCHES,
    PAPER,
    as_png,
    class_colours,
    empty_panels,
    grey_window,
    show_caption,
    show_frame,
    show_image,
)

VIEW_COLOURS = ("#4cc9f0", "#ffa94d", "#b197fc", "#69db7c", "#ff8787", "#ffe066")
PLANES = ("axial", "coronal", "sagittal")
MOST_VIEWS = 6  # of a sample; VoCo has twenty views
MASK_ALPHA = 0.6
RIGHT, WRONG = "#69db7c", "#ff8787"
JUDGED_COLUMNS = 4


def draw_views(batch: Batch, views: Views) -> bytes:
    """Draw samples with the boxes of their views, and the views, as a PNG (see ``views_figure``)."""
    return as_png(views_figure(batch, views))


def draw_masks(slices: Sequence[MaskedSlice], class_names: Sequence[str]) -> bytes:
    """Draw true and predicted masks over slices as a PNG (see ``masks_figure``)."""
    return as_png(masks_figure(slices, class_names))


def draw_judged(images: Sequence[JudgedImage], class_names: Sequence[str]) -> bytes:
    """Draw images with true and predicted classes as a PNG (see ``judged_figure``)."""
    return as_png(judged_figure(images, class_names))


def draw_confusions(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str]) -> bytes:
    """Draw a confusion matrix as a PNG (see ``confusions_figure``)."""
    return as_png(confusions_figure(counts, class_names))


def views_figure(batch: Batch, views: Views) -> Figure:
    """Draw each sample as stored with the boxes of its views, and the views beside it; one row per sample.

    A volume is shown in the three planes through the middle of its boxes; a box that such a plane misses is dashed. A
    volume's views are shown in their middle axial plane, and photographs whose colours are slices in colour. If there
    are many views, the first ones are shown. The true boxes of findings, where they are known, are thin and light,
    over the sample and where the first view has them.
    """
    stored_panels = 1 if batch.spatial_dims == 2 else 3
    images, outlined = views.images[:MOST_VIEWS], views.boxes[:MOST_VIEWS]
    figure, axes = empty_panels(len(batch), stored_panels + len(images))
    for index, row in enumerate(axes):
        image, upright = batch.sample(index).cpu().numpy(), batch.volumes[index] == batch.sample_ids[index]
        spacing = tuple(float(mm) for mm in batch.spacing_mm[index])
        boxes = [box[index] for box in outlined]
        limits = grey_window(image)
        if batch.spatial_dims == 2:
            show_image(row[0], image, limits, spacing, upright)
            _outline(row[0], [box.T for box in boxes], [True] * len(boxes))
        else:
            _show_planes(row[:3], image, limits, spacing, boxes)
        findings = batch.boxes[index] if batch.boxes else None
        if findings is not None:
            for normal, axis in enumerate(row[:stored_panels]):
                _outline_findings(axis, _in_panel(findings, boxes, image.shape[1:], normal))
        show_caption(row[0], _sample_title(batch, index, boxes) + _counted(findings))
        for number, (axis, view) in enumerate(zip(row[stored_panels:], images, strict=True)):
            voxels = view[index].detach().float().cpu().numpy()
            show_image(
                axis, _plane(voxels, batch.spatial_dims), limits, spacing[-2:], upright and batch.spatial_dims == 2
            )
            show_frame(axis, VIEW_COLOURS[number % len(VIEW_COLOURS)])
            shown = _in_view(views, index) if number == 0 else None
            if shown is not None:
                _outline_findings(axis, shown)
            show_caption(axis, f"view {number + 1}, {' x '.join(map(str, voxels.shape[1:]))}{_counted(shown)}")
    return figure


def masks_figure(slices: Sequence[MaskedSlice], class_names: Sequence[str]) -> Figure:
    """Draw image, truth and prediction of each slice, with a legend of the classes that occur; names start at 0."""
    figure, axes = empty_panels(len(slices), 3, legend=True)
    colours = class_colours(len(class_names))
    shown = sorted({int(c) for item in slices for c in np.union1d(item.truth, item.prediction) if c > 0})
    for item, row in zip(slices, axes, strict=True):
        image = item.image[None]
        for axis, mask, name in zip(
            row, (None, item.truth, item.prediction), ("", "truth", "prediction"), strict=True
        ):
            show_image(axis, image, grey_window(image), item.spacing_mm, item.upright)
            if mask is not None:
                _overlay(axis, mask, colours, item)
            show_caption(axis, name or item.title)
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
    figure, axes = empty_panels(-(-len(images) // columns), columns)
    for item, axis in zip(images, axes.flat, strict=False):
        show_image(axis, item.image, grey_window(item.image), item.spacing_mm, item.upright)
        show_frame(axis, RIGHT if item.truth == item.predicted else WRONG)
        told = [f"{class_names[k]} {item.probabilities[k]:.2f}" for k in item.predicted]
        if not told:
            told = [f"none, {class_names[int(item.probabilities.argmax())]} {item.probabilities.max():.2f}"]
        truth = ", ".join(class_names[k] for k in item.truth) or "none"
        show_caption(axis, f"{item.title}\ntruth: {truth}\nprediction: {', '.join(told)}")
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


def _show_planes(
    axes: Shaped[np.ndarray, "planes=3"],
    image: Float[np.ndarray, "c d h w"],
    limits: tuple[float, float],
    spacing_mm: tuple[float, ...],
    boxes: Sequence[Int[np.ndarray, "2 3"]],
) -> None:
    """Draw the three planes through the middle of all boxes."""
    middle = _middle(boxes, image.shape[1:])
    for normal, axis in enumerate(axes):
        kept = [k for k in range(3) if k != normal]
        show_image(
            axis, image.take(middle[normal], axis=normal + 1), limits, tuple(spacing_mm[k] for k in kept), False
        )
        cut = [bool(box[0, normal] <= middle[normal] < box[1, normal]) for box in boxes]
        _outline(axis, [box[:, kept].T for box in boxes], cut)
        if normal:
            show_caption(axis, PLANES[normal])


def _plane(view: Float[np.ndarray, "c *size"], spatial_dims: int) -> Float[np.ndarray, "k h w"]:
    """Return what is shown of a view: an image, the middle plane of a volume, or a photograph from its slices."""
    if view.ndim == 3:
        return view
    return view[0] if spatial_dims == 2 else view[:, view.shape[1] // 2]


def _middle(boxes: Sequence[Int[np.ndarray, "2 n"]], size: tuple[int, ...]) -> Int[np.ndarray, " n"]:
    """Return the voxel in the middle of all boxes, or of the sample."""
    middle = np.mean(boxes, axis=(0, 1)).astype(int) if boxes else np.array(size) // 2
    return np.minimum(middle, np.array(size) - 1)


def _in_panel(findings: Boxes, boxes: Sequence[Int[np.ndarray, "2 n"]], size: tuple[int, ...], normal: int) -> Boxes:
    """Return the findings of a picture, or those that the plane of a volume cuts that a panel shows."""
    if findings.spatial_dims == 2:
        return findings
    low, high = findings.corners[:, 0, normal], findings.corners[:, 1, normal]
    middle = _middle(boxes, size)[normal]
    cut = (low <= middle) & (middle < high)
    return Boxes(np.delete(findings.corners[cut], normal, axis=2), findings.classes[cut])


def _in_view(views: Views, index: int) -> Boxes | None:
    """Return the findings of a sample that its view shows, None where the views have none to predict."""
    if "boxes" not in views.targets:
        return None
    classes = views.targets["classes"][index].cpu().numpy()
    corners = views.targets["boxes"][index].cpu().numpy().astype(np.int64).reshape(-1, 2, 2)
    return Boxes(corners[classes >= 0], classes[classes >= 0])


def _counted(findings: Boxes | None) -> str:
    """Return how many findings a panel's sample or view has, where they are known."""
    return "" if findings is None else f", boxes: {len(findings)}"


def _outline_findings(axis: Axes, findings: Boxes) -> None:
    """Draw the outline of each box in a panel, light, whatever its class."""
    for (top, left), (bottom, right) in findings.corners.tolist():
        axis.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=INK, linewidth=1.0)
        )


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
