"""Probe: how well a frozen encoder's features tell classes, by a linear model and by the nearest neighbours.

A sample's features are the encoder's last map, averaged over space, of the whole sample resized to one size. For the
linear model, a logistic regression, they are scaled to mean 0 and deviation 1 over the training samples. For the
neighbours they are scaled to length 1, and the nearest neighbours vote with weight exp(cosine / 0.07) (Wu et al.,
"Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.labels import CLASSES
from data.shards.index import ShardSet
from methods.base import Method
from methods.downstream.classification_metrics import score_multi_label, score_single
from methods.encoders import Encoder
from methods.parts.fitting import Fitting
from methods.parts.flat_map import mean_features
from methods.parts.sizes import check_stride
from orchestrator.config.parts import Probe
from orchestrator.judging.health import Evenly, from_all_ranks, spread_out
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World

TEMPERATURE = 0.07
MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class ProbeResult:
    """Metrics such as ``probe/linear_auc``, and remarks on them."""

    metrics: dict[str, float]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ProbeSet:
    """The labelled samples of a probe: their rows in training and validation, and their classes."""

    config: Probe
    shards: ShardSet
    train: Int[np.ndarray, " n"]
    val: Int[np.ndarray, " m"]

    @classmethod
    def open(cls, config: Probe) -> "ProbeSet":
        """Open the set; raise ValueError if it is too small to learn from."""
        shards = ShardSet.open(config.shards)
        rows = []
        for split in (config.train_split, config.val_split):
            selection = config.kept(shards, split, having=CLASSES)
            held = {number for classes in shards.patients(selection).values() for number in classes}
            if len(held) < 2:
                raise ValueError(
                    f"probe.shards {config.shards}: split {split!r} has {selection.num_samples} samples of "
                    f"{len(held)} classes, expected at least 2 classes; see `raydiology shards show`, and choose "
                    "probe.train_split and probe.val_split"
                )
            rows.append(spread_out(selection.row_ids, config.samples))
        return cls(config, shards, *rows)

    def check(self, encoder: Encoder) -> None:
        """Raise ValueError if the encoder cannot see these samples."""
        for field, have in (("spatial_dims", self.shards.spatial_dims), ("in_channels", self.shards.num_channels)):
            given = getattr(encoder, field)
            if given != have:
                raise ValueError(
                    f"encoder.{field} is {given}, probe.shards have {have}; probe on samples like those that the "
                    "encoder is pretrained on"
                )
        check_stride(self.fitting(encoder.spatial_dims).size, encoder.strides, "probe.size")

    def fitting(self, spatial_dims: int) -> Fitting:
        """Return how whole samples are resized to the size that the encoder sees."""
        return Fitting.of(self.config.size, None, spatial_dims, "probe")

    @torch.no_grad()
    def measure(self, encoder: Encoder, world: World) -> ProbeResult:
        """Probe an encoder that is in evaluation mode; the same on all ranks."""
        numbers = sorted(self.shards.class_names)
        sides = [self._features(encoder, rows, numbers, world) for rows in (self.train, self.val)]
        (train, train_classes), (val, val_classes) = sides
        names = [self.shards.class_names[number] for number in numbers]
        grades = numbers if self.config.grades else None
        metrics: dict[str, float] = {}
        remarks: list[str] = []
        for name, probabilities in (
            ("linear", linear_probabilities(train, train_classes, val)),
            ("knn", neighbour_probabilities(train, train_classes, val, self.config.neighbours)),
        ):
            if bool((train_classes.sum(1) == 1).all() and (val_classes.sum(1) == 1).all()):
                scores = score_single(val_classes.argmax(1), probabilities, names, grades=grades)
            else:
                scores = score_multi_label(val_classes, probabilities, names)
            metrics |= {f"probe/{name}_{key}": value for key, value in scores.metrics.items() if "/" not in key}
            remarks += [f"{name} probe: {remark}" for remark in scores.remarks]
        return ProbeResult(metrics, tuple(remarks))

    def _features(
        self, encoder: Encoder, rows: Int[np.ndarray, " n"], numbers: list[int], world: World
    ) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n k"]]:
        """Return the features of some rows, and which classes each has."""
        features: list[torch.Tensor] = []
        classes: list[torch.Tensor] = []
        for batch in batches_of(self.shards, rows, world, CLASSES):
            assert batch.classes is not None, "selected for having classes"
            images, _ = self.fitting(batch.spatial_dims).apply(batch, None)
            features.append(mean_features(encoder, images).cpu())
            classes.append((batch.classes.cpu()[:, :, None] == torch.tensor(numbers)).any(1))
        return from_all_ranks(features, world).double().numpy(), from_all_ranks(classes, world).numpy()


@dataclass(frozen=True)
class ProbeWatch:
    """Probes the encoder at intervals while it is pretrained."""

    samples: ProbeSet
    rhythm: Evenly

    def due(self, step: int) -> bool:
        return self.rhythm.due(step)

    def run(self, method: Method, world: World) -> dict[str, float]:
        """Return ``probe/...``, equal on all ranks."""
        return self.samples.measure(method.encoder, world).metrics


def linear_probabilities(
    train: Float[np.ndarray, "n d"], classes: Bool[np.ndarray, "n k"], val: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "m k"]:
    """Fit a logistic regression; return each class's probability, 0 for a class that no training sample has."""
    single = bool((classes.sum(1) == 1).all())
    regression = LogisticRegression(max_iter=MOST_ITERATIONS)
    model = make_pipeline(StandardScaler(), regression if single else OneVsRestClassifier(regression))
    known, probabilities = classes.any(0), np.zeros((len(val), classes.shape[1]))
    model.fit(train, classes[:, known].argmax(1) if single else classes[:, known])
    probabilities[:, known] = model.predict_proba(val)
    return probabilities


def neighbour_probabilities(
    train: Float[np.ndarray, "n d"], classes: Bool[np.ndarray, "n k"], val: Float[np.ndarray, "m d"], neighbours: int
) -> Float[np.ndarray, "m k"]:
    """Return the weighted share of each sample's nearest training samples that have each class."""
    voters = KNeighborsRegressor(
        min(neighbours, len(train)),
        metric="cosine",
        weights=lambda distance: np.exp(-distance / TEMPERATURE),  # pyright: ignore[reportArgumentType, reportUnknownLambdaType]
    )
    return voters.fit(train, classes.astype(float)).predict(val)
