"""Classification: fine-tune an encoder with a head to predict the classes of a picture or a volume.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 4.3:
           grades of diabetic retinopathy from fundus photographs.
Reference: HealthML/self-supervised-3d-tasks @ 902d9f8 (configs/finetune) and 6a1494c (data/kaggle_retina_data.py).
Variants:  the flag is a field of the config and can be set on its own.
           kind     paper: single, the grades "define a classification task"; released: ordinal, grade k of K is
                    k + 1 ones and then zeros, each learnt by binary cross-entropy, and the predicted grade is the
                    number of outputs above one half, less 1
           Head, flips and zoom are the released ones: the paper describes none. The released zoom is per axis.
Shapes:    B samples, K classes, C channels, *s spatial axes (D, H, W) or (H, W).
"""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data.labels import CLASSES
from data.views.augmentation import Augmentation, augment, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Views
from methods.downstream.base import Cases, Evidence, Judgement, Task, TaskScores
from methods.downstream.class_losses import (
    Kind,
    balanced_weights,
    multi_label_loss,
    ordinal_loss,
    read_grades,
    single_loss,
)
from methods.downstream.classification_metrics import THRESHOLD, count_pairs, score_multi_label, score_single
from methods.downstream.constants import class_loss_of_constant
from methods.downstream.names import label_in_metrics
from methods.encoders import Encoder
from methods.parts.class_numbers import check_single, held, single
from methods.parts.classification import classifier
from methods.parts.fitting import Fitting
from methods.parts.flat_map import flat_dim, flat_features, mean_features
from methods.parts.precision import Head
from methods.parts.sizes import check_stride, per_axis
from methods.parts.variants import with_flags

Metric = Literal[
    "accuracy", "label_accuracy", "auc", "f1", "precision", "recall", "specificity", "kappa", "kappa_quadratic"
]
ALLOW_SEVERAL = "set downstream.task.kind to multi_label, or "
VARIANTS: dict[str, dict[str, Any]] = {"paper": {"kind": "single"}, "released": {"kind": "ordinal"}}


class Classifier(nn.Module):
    """An encoder and a head on its last map, averaged over space or flattened."""

    def __init__(self, encoder: Encoder, head: Head, pooled: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooled = pooled

    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k"]:
        """Return logits."""
        return self.head((mean_features if self.pooled else flat_features)(self.encoder, images))


class Classification(Task):
    """A classifier that is trained on augmented samples, whole or crops of them, and judged on their middle."""

    class Config(FrozenConfig):
        """``variant`` fills in the flag that is not given.

        kind           single: each sample has one class; ordinal: each has one, and classes are grades in order of
                       their numbers; multi_label: each has any number of classes
        grades         whether classes are grades in order of their numbers, however they are learnt:
                       ``kappa_quadratic`` then weighs how far off a prediction is; without grades, ``kappa`` counts
                       all errors alike. True by default for ``kind: ordinal`` only
        size           voxels per axis that the network sees
        resize_to      size of a whole sample after resizing, before ``size`` is cut out of it: anywhere in training,
                       in the middle in evaluation; by default ``size``, so that the whole sample is seen. None for
                       an axis keeps its voxels; if it is shorter than ``size``, it is padded with 0
        feature        the encoder's last map, averaged over space or flattened
        hidden_dims    widths of the head's hidden layers; none: the head is linear
        class_weights  none, ``balanced`` by each class's frequency in training, or one number per class, in order of
                       the class numbers: see the losses
        score          the metric that selects the best checkpoint, see ``classification_metrics.py``
        """

        name: Literal["classification"] = "classification"
        variant: Literal["paper", "released"] = "paper"
        kind: Kind = "single"
        grades: bool = False
        size: PositiveInt | tuple[PositiveInt, ...] = 224
        resize_to: PositiveInt | tuple[PositiveInt | None, ...] | None = None
        augment: Augmentation = Augmentation(zoom=(0.85, 1.15), zoom_prob=1.0, flip_prob=0.5)
        feature: Literal["pooled", "flattened"] = "pooled"
        hidden_dims: tuple[PositiveInt, ...] = (1024,)
        dropout: float = Field(default=0.5, ge=0, lt=1)
        class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] | None = None
        score: Metric = "auc"

        @model_validator(mode="before")
        @classmethod
        def _resolve(cls, fields: Any) -> Any:
            flags = with_flags(fields, VARIANTS)
            return {"grades": flags.get("kind") == "ordinal", **flags} if isinstance(flags, dict) else flags

        @model_validator(mode="after")
        def _has_its_score(self) -> "Classification.Config":
            if self.grades == {"ordinal": False, "multi_label": True}.get(self.kind):
                raise ValueError(
                    f"grades {str(self.grades).lower()} with kind {self.kind!r}: {self.kind} classes are "
                    f"{'not in an order' if self.grades else 'grades'}; leave grades out, or choose kind single"
                )
            if self.score in self.lacks:
                own = (
                    "label_accuracy" if self.kind == "multi_label" else "kappa_quadratic" if self.grades else "kappa"
                )
                raise ValueError(
                    f"score {self.score!r} with kind {self.kind!r} and grades {str(self.grades).lower()}: no such "
                    f"metric is defined; choose {own}, accuracy, auc, f1 or another that these classes have"
                )
            return self

        @property
        def lacks(self) -> tuple[str, ...]:
            """The metrics that are not defined for classes of this kind."""
            if self.kind == "multi_label":
                return ("kappa", "kappa_quadratic")
            return ("label_accuracy", "kappa" if self.grades else "kappa_quadratic")

    needs = CLASSES
    numbers: Tensor
    weights: Tensor
    frequencies: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(encoder)
        self.config = config
        self.class_numbers = tuple(sorted(facts.names))
        self.class_names = tuple(facts.names[number] for number in self.class_numbers)
        _check_classes(config, self.class_names)
        self.fitting = Fitting.of(config.size, config.resize_to, encoder.spatial_dims, "downstream.task")
        if not encoder.rounds_up:
            check_stride(self.fitting.size, encoder.strides, "downstream.task.size")
        pooled = config.feature == "pooled"
        in_dim = encoder.channels[-1] if pooled else flat_dim(encoder, self.fitting.size)
        head = classifier(in_dim, config.hidden_dims, len(self.class_names), config.dropout)
        self.network = Classifier(encoder, head, pooled)
        given = config.class_weights if isinstance(config.class_weights, tuple) else [1.0] * len(self.class_names)
        self.register_buffer("weights", torch.tensor(given), persistent=False)
        self.register_buffer("numbers", torch.tensor(self.class_numbers), persistent=False)
        even = torch.full((len(self.class_names),), 1 / len(self.class_names))
        self.register_buffer("frequencies", even, persistent=False)
        self.balanced = config.class_weights != "balanced"

    def see_classes(self, trained_on: Int[np.ndarray, "n m"], judged_on: Int[np.ndarray, "k l"]) -> None:
        """Set balanced class weights, if the config asks for them, from the classes of the training samples.

        Raises ValueError where a sample does not have exactly one class although classes exclude each other, or where
        ``score`` is not defined on the samples that are judged.
        """
        for split, classes in (("trained", trained_on), ("judged", judged_on)):
            if self.config.kind != "multi_label":
                used = f"that are {split} on "
                check_single(classes, self.class_numbers, "classification", used, ALLOW_SEVERAL)
        trained, judged = (
            (classes[:, :, None] == np.array(self.class_numbers)).any(1) for classes in (trained_on, judged_on)
        )
        if self.config.score in ("auc", "kappa", "kappa_quadratic") and not (judged.any(0) & ~judged.all(0)).any():
            raise _undefined(self.config.score, len(judged), ("no class tells any two of them apart",))
        self.frequencies.copy_(torch.from_numpy(trained.mean(0)))
        if self.config.class_weights == "balanced":
            weights = balanced_weights(trained.sum(0), len(trained), self.config.kind)
            self.weights.copy_(torch.from_numpy(weights))
            self.balanced = True

    def card(self) -> dict[str, Any]:
        """Describe the number of each class, and the meaning of the outputs."""
        return {**super().card(), "class_numbers": list(self.class_numbers), "kind": self.config.kind}

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples have another number of axes than the encoder; any size can be resized."""
        per_axis(extent, len(self.fitting.size), "samples of size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Fit and augment the samples; ``targets["classes"]`` is (B, K), true for the classes that a sample has."""
        images, boxes = self.fitting.apply(batch, rng.fold("window"))
        images = augment(images, draw(self.config.augment, self.fitting.size, rng.fold("augmentation")))
        return Views((images,), (boxes,), {"classes": self._decode(batch)})

    def loss(self, views: Views) -> Losses:
        """Compute the loss of the config's kind; ``training_accuracy`` is the share of correct predictions."""
        assert self.balanced, "`see_classes` sets the weights before training"
        logits = self.network(views.images[0])
        has = views.targets["classes"]
        of_constant = class_loss_of_constant(has, self.frequencies, self.weights, self.config.kind)
        if self.config.kind == "multi_label":
            found = (logits.detach() > 0) == has
            total = multi_label_loss(logits, has, self.weights)
            return Losses(total, {"training_accuracy": found.to(logits).mean()}, of_constant)
        classes = has.int().argmax(1)
        if self.config.kind == "ordinal":
            total, predicted = ordinal_loss(logits, classes, self.weights), read_grades(logits.detach().sigmoid())[0]
        else:
            total, predicted = single_loss(logits, classes, self.weights), logits.detach().argmax(1)
        return Losses(total, {"training_accuracy": (predicted == classes).to(logits).mean()}, of_constant)

    @torch.no_grad()
    def judge(self, batch: Batch) -> Judgement:
        """Predict each sample from its middle.

        To be shown are the true classes (K,), and the predicted classes with their probabilities (2, K). A sample's
        evidence is one row: its class, the predicted class and the probabilities; or, where it may have several
        classes, 0 or 1 for each class and the probabilities.
        """
        has = self._decode(batch)
        logits = self.network(self.fitting.apply(batch, None)[0]).double()
        if self.config.kind == "multi_label":
            probabilities = logits.sigmoid()
            told = probabilities > THRESHOLD
            rows = torch.cat([has.double(), probabilities], dim=1)
        else:
            predicted, probabilities = logits.argmax(1), logits.softmax(1)
            if self.config.kind == "ordinal":
                predicted, probabilities = read_grades(logits.sigmoid())
            told = F.one_hot(predicted, len(self.class_names))
            chosen = torch.stack([has.int().argmax(1), predicted], dim=1)
            rows = torch.cat([chosen.double(), probabilities], dim=1)
        evidence = dict(zip(batch.sample_ids, rows.cpu().numpy(), strict=True))
        predictions = torch.stack([told.double(), probabilities], dim=1)
        return Judgement(evidence, list(zip(range(len(batch)), has, predictions, strict=True)))

    def scores(self, evidence: Evidence) -> TaskScores:
        """Return ``score`` and all metrics defined on the samples; characters that MLflow refuses become underscores.
        Cases have ``true``, ``predicted`` and ``probability/<class>``, or for several classes each ``true/<class>``
        and so on. Raises ValueError where ``score`` is not defined.
        """
        names, rows = [label_in_metrics(name) for name in self.class_names], np.stack([*evidence.values()])
        probabilities = rows[:, -len(names) :]
        cases: Cases = {"case": list(evidence)}
        if self.config.kind == "multi_label":
            has = rows[:, : len(names)] > 0
            found = score_multi_label(has, probabilities, names)
            cases |= self._by_class("true", has) | self._by_class("predicted", probabilities > THRESHOLD)
        else:
            truth, predicted = rows[:, :2].astype(np.int64).T
            grades = self.class_numbers if self.config.grades else None
            found = score_single(truth, probabilities, names, predicted, grades)
            called = np.array(self.class_names)
            cases |= {"true": called[truth].tolist(), "predicted": called[predicted].tolist()}
        if self.config.score not in found.metrics:
            raise _undefined(self.config.score, len(rows), found.remarks)
        metrics = {"score": found.metrics[self.config.score], **found.metrics}
        return TaskScores(metrics, found.remarks, cases | self._by_class("probability", probabilities))

    def _by_class(self, column: str, values: Shaped[np.ndarray, "n k"]) -> Cases:
        return {f"{column}/{name}": own for name, own in zip(self.class_names, values.T, strict=True)}

    def confusions(self, evidence: Evidence) -> Int[np.ndarray, "true predicted"] | None:
        """Count samples by true and predicted class; None where a sample may have several."""
        if self.config.kind == "multi_label":
            return None
        truth, predicted = np.stack(list(evidence.values()))[:, :2].astype(np.int64).T
        return count_pairs(truth, predicted, len(self.class_names))

    def _decode(self, batch: Batch) -> Bool[Tensor, "b k"]:
        """Return the classes of each sample as (B, K) booleans."""
        has = held(batch, self.numbers, "classification")
        if self.config.kind != "multi_label":
            single(has, batch, "classification", ALLOW_SEVERAL)
        return has


def _undefined(metric: str, num_samples: int, remarks: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"downstream.task.score {metric}: it is not defined on these {num_samples} samples ({'; '.join(remarks)}); "
        "choose another score, or validate on samples of several classes"
    )


def _check_classes(config: Classification.Config, names: tuple[str, ...]) -> None:
    """Raise ValueError where classes are too few, or not as many as weights."""
    least = 1 if config.kind == "multi_label" else 2
    if len(names) < least:
        raise ValueError(
            f"classification: the shards name {len(names)} classes, expected at least {least}; ingest with classes "
            "(`raydiology shards show` lists them)"
        )
    if isinstance(config.class_weights, tuple) and len(config.class_weights) != len(names):
        raise ValueError(
            f"downstream.task.class_weights has {len(config.class_weights)} numbers, the shards name {len(names)} "
            f"classes ({', '.join(names)}); give one number for each"
        )
