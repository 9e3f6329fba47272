"""Detection: fine-tune an encoder as a two-stage detector of boxes, in images or in key slices of volumes.

Paper:     Zhang et al. (SVD-Net, seed 003), section IV-E: lesions in CT, a key slice with its neighbours through a 3D
           encoder; Nguyen et al. (JSSL, seed 000), Table 5: chest X-rays.
Reference: urmagicsmine/MP3D @ 4ab3ea1 (DeepLesion): nine slices, boxes on the middle slice, a longer side drawn anew
           for each image, and flips.
Variants:  see ``methods/detection``.
Shapes:    B samples, C channels, D slices of H x W pixels, M boxes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from pydantic import PositiveInt
from torch import Tensor

from data.boxes import Boxes
from data.labels import BOXES
from data.views.augmentation import Augmentation, augment, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, Losses, Views
from methods.detection.canvas import Placement
from methods.detection.detections import Detections
from methods.detection.detector import Detector
from methods.detection.key_slices import KeySlices
from methods.detection.levels import slices_for
from methods.detection.mean_box import MeanBox
from methods.downstream.base import Evidence, Judgement, Task, TaskScores
from methods.downstream.detection_metrics import rows_of, score_detections
from methods.downstream.names import label_in_metrics
from methods.encoders import Encoder, SliceTransformerEncoder
from methods.parts.sizes import check_coarsest, check_stride, per_axis

Located = tuple[Boxes, Int64[np.ndarray, " n"]]
"""The boxes of a sample, and its size in voxels."""

JUDGED_AT_ONCE = 8
PADDING = -1


class Detection(Task):
    """A detector that is trained and judged on whole images, or on planes of volumes with their neighbours."""

    class Config(Detector.Config):
        """The detector's fields, and those of its images.

        size     pixels of the canvas along H and W, or one number for both: images are resized to fit, centred and
                 padded with 0
        scales   longer sides to which images are resized in training, one drawn for each; by default the longest that
                 fits
        scale    the longer side in evaluation; by default the longest that fits
        slices   slices that a 3D encoder sees, around a key slice; beyond a volume's end, its last slice is repeated.
                 By default 9, or the next number that the encoder takes
        augment  what is changed of an image, or of all its slices; boxes move with it
        score    the metric that selects the best checkpoint, see ``detection_metrics.py``

        The key slices of a volume are the planes that its boxes cut: in training one is drawn, in evaluation each is
        scored. Of a volume without boxes any plane is drawn, and the middle one is scored.
        """

        name: Literal["detection"] = "detection"
        size: PositiveInt | tuple[PositiveInt, ...] = 512
        scales: tuple[PositiveInt, ...] | None = None
        scale: PositiveInt | None = None
        slices: PositiveInt | None = None
        augment: Augmentation = Augmentation(flip_prob=0.5)
        score: Literal["ap50", "ap", "mfroc"] = "ap50"

    needs = BOXES
    why_no_constant = "its loss counts anchors and regions that its own proposals choose, and a constant has none"
    network: Detector | MeanBox

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(encoder)
        self.config = config
        self.class_numbers = tuple(sorted(facts.names))
        self.class_names = tuple(facts.names[number] for number in self.class_numbers)
        if not self.class_names:
            raise ValueError(
                "detection: the shards name 0 classes of boxes, expected at least 1; ingest with boxes (`raydiology "
                "shards show` lists them)"
            )
        height, width = per_axis(config.size, 2, "downstream.task.size")
        self.canvas = (height, width)
        self.key_slices, slices = self.seen(encoder)
        self.view_size = (*([self.key_slices.slices] if self.key_slices.slices else []), *self.canvas)
        _check_sizes(config, self.canvas if slices is None else (slices, *self.canvas), encoder)
        self.network = Detector(config, encoder, len(self.class_names), slices)  # pyright: ignore[reportIncompatibleVariableOverride]

    def seen(self, encoder: Encoder) -> tuple[KeySlices, int | None]:
        """Return which images of samples are seen, and as how many slices the encoder sees one; None in 2D."""
        slices = slices_for(encoder, self.config.slices)
        return KeySlices(slices), slices

    def prepared(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *t"]:
        """Return augmented images as the network takes them; by default as they are."""
        return images

    @staticmethod
    def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the rows of both: detections do not add up as counts do."""
        return np.concatenate([first, second])

    def card(self) -> dict[str, Any]:
        """Describe the number of each class, and the size of what the network sees."""
        return {**super().card(), "class_numbers": list(self.class_numbers), "size": list(self.view_size)}

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples have another number of axes than the encoder; any size can be resized."""
        per_axis(extent, len(self.view_size), "samples of size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Place and augment an image of each sample, with its boxes.

        ``targets`` are ``boxes`` (B, M, 4) and ``classes`` (B, M), padded, the ``windows`` (B, 4) that the images
        cover, and ``seeds`` (B,), from which the losses draw their samples.
        """
        findings, key_slices = self._findings(batch), self.key_slices
        planes = key_slices.drawn(findings, batch.extents, rng.fold("plane"))
        scales = np.array(self.config.scales or (max(self.canvas),))
        placements = self._placements(batch, scales[rng.fold("scale").integers(len(scales))].tolist())
        shown = list(zip(range(len(batch)), planes, placements, strict=True))
        images = torch.stack([place.paint(key_slices.image(batch, number, plane)) for number, plane, place in shown])
        drawn = draw(self.config.augment, self.view_size, rng.fold("augmentation"))
        planar = [key_slices.boxes(findings[number], plane) for number, plane, _ in shown]
        to_canvas = np.stack([place.to_canvas for place in placements])
        boxes, classes = self._padded(key_slices.moved(planar, drawn, self.view_size, to_canvas))
        windows = key_slices.moved([place.window for place in placements], drawn, self.view_size)
        seeds = torch.from_numpy(rng.fold("sampled").words().view(np.int64))
        targets = {"boxes": boxes, "classes": classes, "windows": _windows(windows), "seeds": seeds}
        regions = np.stack([key_slices.region(batch.extents[number], plane) for number, plane, _ in shown])
        on_device = {name: target.to(images.device) for name, target in targets.items()}
        return Views((self.prepared(augment(images, drawn)),), (regions,), on_device)

    def loss(self, views: Views) -> Losses:
        """Compute the sum of four losses: whether there is something, the class, and two of boxes."""
        assert isinstance(self.network, Detector), "a mean box learns nothing"
        targets = views.targets
        found = self.network.losses(
            views.images[0], targets["boxes"], targets["classes"], targets["seeds"], targets["windows"]
        )
        total = torch.stack([*found.values()]).sum()
        return Losses(total, {name: value.detach() for name, value in found.items()})

    @torch.no_grad()
    def judge(self, batch: Batch) -> Judgement:
        """Detect in each image or key slice; a unit's evidence has the rows of ``detection_metrics.py``.

        To be shown are, for each sample, the rows of its true boxes and those of its detections, with the plane of
        each before them; the plane of an image is 0.
        """
        findings, key_slices = self._findings(batch), self.key_slices
        placements = self._placements(batch, [self.config.scale or max(self.canvas)] * len(batch))
        units = [
            (number, plane)
            for number, own in enumerate(findings)
            for plane in key_slices.judged(own, batch.extents[number])
        ]
        evidence: Evidence = {}
        shown: list[list[Float64[Tensor, "n 8"]]] = [[] for _ in findings]
        for start in range(0, len(units), JUDGED_AT_ONCE):
            some = units[start : start + JUDGED_AT_ONCE]
            images = torch.stack([placements[n].paint(key_slices.image(batch, n, plane)) for n, plane in some])
            windows = _windows([placements[number].window for number, _ in some]).to(images)
            for (number, plane), found in zip(some, self.network.detect(self.prepared(images), windows), strict=True):
                own = key_slices.boxes(findings[number], plane)
                rows = self._rows(own, found, placements[number])
                evidence[key_slices.unit(batch.sample_ids[number], plane)] = rows
                shown[number].append(torch.from_numpy(np.insert(rows, 0, plane, axis=1)))
        seen = [(number, torch.cat(rows)) for number, rows in enumerate(shown)]
        return Judgement(evidence, [(number, rows[rows[:, 1] == 1], rows[rows[:, 1] == 0]) for number, rows in seen])

    def scores(self, evidence: Evidence) -> TaskScores:
        """Return ``score`` and all metrics; characters of class names that MLflow refuses become underscores.

        The cases have a row for each unit, see ``DetectionScores``. Raises ValueError where no unit has a true box.
        """
        names = [label_in_metrics(name) for name in self.class_names]
        found = score_detections(evidence, names)
        metrics = {"score": found.metrics[self.config.score], **found.metrics}
        return TaskScores(metrics, found.remarks, {"case": list(evidence), **found.cases})

    def mean_box(self, batches: Iterable[Batch]) -> MeanBox:
        """Return the trivial detector of training samples, to be judged in place of ``network``."""
        return self._mean_box(
            [pair for batch in batches for pair in zip(self._findings(batch), batch.extents, strict=True)]
        )

    def mean_box_scores(self, trained: Sequence[Located], judged: Mapping[str, Located]) -> TaskScores:
        """Score the trivial detector of training samples on others, given by their ids; no voxel is needed.

        Raises ValueError where the training samples have no box, or the others have none.
        """
        mean = self._mean_box(trained)
        evidence: Evidence = {}
        for sample, (own, extent) in judged.items():
            height, width = extent[-2:].tolist()
            found = mean.within(torch.tensor([[0.0, 0.0, height, width]]))[0]
            unmoved = Placement.of((height, width), max(height, width), (height, width))
            for plane in self.key_slices.judged(own, extent):
                rows = self._rows(self.key_slices.boxes(own, plane), found, unmoved)
                evidence[self.key_slices.unit(sample, plane)] = rows
        return self.scores(evidence)

    def _mean_box(self, samples: Iterable[Located]) -> MeanBox:
        found, extents = [], []
        for own, extent in samples:
            for plane in self.key_slices.judged(own, extent):
                planar = self.key_slices.boxes(own, plane)
                found.append(Boxes(planar.corners, self._places(planar.classes)))
                extents.append((int(extent[-2]), int(extent[-1])))
        return MeanBox(found, extents)

    def _findings(self, batch: Batch) -> list[Boxes]:
        """Return the boxes of each sample; raise ValueError where they are unknown, or of a class without a name."""
        unknown = 0 if batch.boxes is None else sum(own is None for own in batch.boxes)
        if batch.boxes is None or unknown:
            raise ValueError(
                f"detection: {unknown or len(batch)} of the {len(batch)} samples of a batch have unknown boxes; "
                "expected boxes for each, or none where there is nothing; ingest with boxes, or select samples that "
                "have them"
            )
        findings = [own for own in batch.boxes if own is not None]
        for sample, own in zip(batch.sample_ids, findings, strict=True):
            if unnamed := set(own.classes.tolist()) - set(self.class_numbers):
                raise ValueError(
                    f"detection: sample {sample} has a box of class {min(unnamed)}, the shards name "
                    f"{', '.join(map(str, self.class_numbers))}; ingest again, with a name for each class"
                )
        return findings

    def _placements(self, batch: Batch, sides: Sequence[int]) -> list[Placement]:
        planes = [(int(height), int(width)) for height, width in batch.extents[:, -2:]]
        return [Placement.of(plane, side, self.canvas) for plane, side in zip(planes, sides, strict=True)]

    def _places(self, classes: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return the places of classes among ``class_names``."""
        return np.searchsorted(self.class_numbers, classes)

    def _padded(self, findings: Sequence[Boxes]) -> tuple[Float[Tensor, "b M 4"], Int64[Tensor, "b M"]]:
        """Return boxes and classes of all images, padded to the most that one has."""
        most = max(len(own) for own in findings)
        boxes = torch.zeros(len(findings), most, 4)
        classes = torch.full((len(findings), most), PADDING)
        for number, own in enumerate(findings):
            boxes[number, : len(own)] = torch.from_numpy(own.corners).flatten(1)
            classes[number, : len(own)] = torch.from_numpy(self._places(own.classes))
        return boxes, classes

    def _rows(self, own: Boxes, found: Detections, place: Placement) -> np.ndarray:
        """Return the evidence of a unit, in pixels of the stored sample."""
        boxes = place.back(found.boxes.double()).cpu().numpy()
        truth = (own.corners.reshape(-1, 4).astype(np.float64), self._places(own.classes))
        return rows_of(*truth, boxes, found.classes.cpu().numpy(), found.scores.double().cpu().numpy())


def _windows(windows: Sequence[Boxes]) -> Float[Tensor, "b 4"]:
    """Return the one box of each image; none of it is left where the augmentation has moved all of it away."""
    corners = [own.corners[0] if len(own) else np.zeros((2, 2), np.int64) for own in windows]
    return torch.from_numpy(np.stack(corners)).flatten(1).float()


def _check_sizes(config: Detection.Config, size: tuple[int, ...], encoder: Encoder) -> None:
    """Raise ValueError where an encoder cannot see images of this size, or a longer side does not fit."""
    *_, height, width = size
    check_stride((height, width), encoder.strides[-2:], "downstream.task.size")
    check_coarsest(size, encoder.strides, "downstream.task.size")
    if isinstance(encoder, SliceTransformerEncoder):
        encoder.check_size(size, "downstream.task.slices")
    for field, sides in (("scales", config.scales or ()), ("scale", (config.scale or 1,))):
        if max(sides, default=1) > max(height, width):
            raise ValueError(
                f"downstream.task.{field} {max(sides)} exceeds the longer side of downstream.task.size, "
                f"{max(height, width)}; lower it, or raise downstream.task.size"
            )
