"""Rotation: a network predicts by which multiple of a right angle a sample was turned.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 3.4; in 2D
           Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", 2018.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; the printed numbers came from the code before April 2021.
Variants:  each flag is a field of the config and can be set on its own.
                          paper                             released
           num_versions   several of each sample, no        1
                          number given: 2, of two labels
           last_turned    all ten turns of volumes are      label 9 was left unturned by mistake: it looks like
                          turned                            label 0, and accuracy cannot exceed 90 %. Images have
                                                            no such label
           The last map is flattened, and the classifier is the released one: the paper describes neither.
Shapes:    B samples, V versions of each, K turns (4 of images, 10 of volumes), C channels, *s spatial axes.

Voxels that are longer along one axis reveal turns by their blur: resample volumes to cubic voxels first.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, PositiveInt

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses, classifier
from methods.parts.flat_map import flat_dim, flat_features
from methods.parts.sizes import check_stride
from methods.parts.turns import TURNS, turn
from methods.parts.variants import completed_by

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"num_versions": 2, "last_turned": True},
    "released": {"num_versions": 1, "last_turned": False},
}


def draw_labels(num_turns: int, num_versions: int, rng: SampleRng) -> Int[np.ndarray, "b v"]:
    """Draw the labels of a sample's versions, uniformly and without repetition."""
    return rng.uniform(num_turns).argsort(axis=1)[:, :num_versions]


class Rotation(Method):
    """An encoder, whose last map is flattened, and a classifier."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        side          voxels per axis of the cube (the square) that is cut out of a sample, anywhere, and turned
        hidden_dims   widths of the classifier's hidden layers
        """

        name: Literal["rotation"] = "rotation"
        variant: Literal["paper", "released"] = "paper"
        side: PositiveInt = 128
        num_versions: PositiveInt = 2
        last_turned: bool = True
        hidden_dims: tuple[PositiveInt, ...] = (2048, 1024)
        dropout: float = Field(default=0.5, ge=0, lt=1)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.size = (config.side,) * encoder.spatial_dims
        self.num_turns = len(TURNS[encoder.spatial_dims])
        check_stride(self.size, encoder.strides, "method.side")
        if config.num_versions > self.num_turns:
            raise ValueError(
                f"method.num_versions {config.num_versions}: there are {self.num_turns} turns in "
                f"{encoder.spatial_dims}D, and a sample's versions must all differ; give at most {self.num_turns}"
            )
        self.config = config
        self.encoder: Encoder = encoder
        self.head = classifier(flat_dim(encoder, self.size), config.hidden_dims, self.num_turns, config.dropout)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the cube does not fit into samples of this size."""
        check_fits(self.size, extent, "method.side")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut one cube per sample and turn it once for each version."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        labels = draw_labels(self.num_turns, self.config.num_versions, rng.fold("labels"))
        cubes = cut(batch, boxes)
        images = tuple(turn(cubes, self._turns_of(column)) for column in labels.T)
        return Views(images, (boxes,) * len(images), {"labels": torch.from_numpy(labels).to(cubes.device)})

    def loss(self, views: Views) -> Losses:
        """Compute the cross-entropy. All versions pass together and share their batch statistics."""
        logits = self.head(flat_features(self.encoder, torch.cat(views.images)))
        labels = views.targets["labels"].T.flatten()
        return classification_losses(logits, labels)

    def _turns_of(self, labels: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the turn that each label stands for: its own, or none for the last label of volumes as released."""
        unturned = not self.config.last_turned and self.encoder.spatial_dims == 3
        return np.where(labels == self.num_turns - 1, 0, labels) if unturned else labels
