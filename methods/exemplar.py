"""Exemplar: a network embeds a sample and its transformed version close together, and away from another sample.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 3.5; after
           Dosovitskiy et al., "Discriminative Unsupervised Feature Learning", NIPS 2014.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; the printed numbers came from it.
Variants:  each flag is a field of the config and can be set on its own.
                      paper                           released
           heads      one embedding for all           three heads: of anchors, of positives and of negatives
           anchor     original: the positive is       transformed: the positive is the original
                      transformed
           distance   l2                              mean_square: with sigmoids it is below 1, so that the hinge
                                                      is always active
           The last map is flattened and embedded by one layer and a sigmoid, as released: the paper names neither.
           The negative is the next sample of the batch, over all ranks. For volumes the released code draws it from
           all samples; the next sample is such a draw too, as batches are in random order here.
           Samples are turned by right angles about any axis. The released code turns every second one of them
           by an arbitrary angle, which leaves black corners.
Shapes:    B samples, C channels, *s spatial axes, d dimensions of the embedding.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation, augment, cut, draw
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.flat_map import flat_dim, flat_features
from methods.parts.precision import Head, full_precision
from methods.parts.ranks import from_next_sample
from methods.parts.sizes import check_stride
from methods.parts.standardise import standardise
from methods.parts.turns import TURNS, turn
from methods.parts.variants import completed_by

Distance = Literal["l2", "mean_square"]
_AUGMENT: dict[str, Any] = {
    "zoom_prob": 0.15,
    "flip_axes": ("D", "H", "W"),
    "flip_prob": 0.5,
    "scale": (-0.5, 0.5),
    "scale_prob": 0.5,
    "shift": (-0.125, 0.125),
    "shift_prob": 0.5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"heads": "one", "anchor": "original", "distance": "l2", "augment": _AUGMENT},
    "released": {"heads": "three", "anchor": "transformed", "distance": "mean_square", "augment": _AUGMENT},
}


@full_precision()
def distances(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], kind: Distance) -> Float[Tensor, " b"]:
    """Return the distance between the embeddings of each pair."""
    difference = first - second
    return torch.linalg.vector_norm(difference, dim=1) if kind == "l2" else difference.square().mean(1)


@full_precision()
def triplet_loss(near: Float[Tensor, " b"], far: Float[Tensor, " b"], margin: float) -> Float[Tensor, ""]:
    """Return eq. 3: the amount by which positives fail to be nearer than negatives by the margin."""
    return F.relu(near - far + margin).mean()


class Exemplar(Method):
    """An encoder, whose last map is flattened, and one or three heads."""

    positives: ClassVar[bool] = True

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        side        voxels per axis of the cube (the square) that is cut out of a sample, anywhere
        turn_prob   probability of a turn by a multiple of a right angle about any axis
        margin      the paper's alpha
        normalise   bring each image to mean 0 and deviation 1, so that brightness does not identify the sample
        """

        name: Literal["exemplar"] = "exemplar"
        variant: Literal["paper", "released"] = "paper"
        side: PositiveInt = 128
        augment: Augmentation = Augmentation(**_AUGMENT)
        turn_prob: float = Field(default=0.5, ge=0, le=1)
        heads: Literal["one", "three"] = "one"
        anchor: Literal["original", "transformed"] = "original"
        distance: Distance = "l2"
        margin: float = Field(default=1.0, gt=0)
        projector_dim: PositiveInt = 1024
        normalise: bool = False

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = (config.side,) * encoder.spatial_dims
        check_stride(self.size, encoder.strides, "method.side")
        self.encoder: Encoder = encoder
        in_dim = flat_dim(encoder, self.size)
        self.heads = nn.ModuleList(
            Head(nn.Linear(in_dim, config.projector_dim), nn.Sigmoid())
            for _ in range(1 if config.heads == "one" else 3)
        )

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the cube does not fit into samples of this size."""
        check_fits(self.size, extent, "method.side")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut one cube per sample, and return it as it is and transformed."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        original = cut(batch, boxes)
        others = 1 + rng.fold("turn").integers(len(TURNS[batch.spatial_dims]) - 1)
        turns = np.where(rng.fold("turned").chance(self.config.turn_prob), others, 0)
        drawn = draw(self.config.augment, self.size, rng.fold("augment"))
        images = (original, augment(turn(original, turns), drawn))
        if self.config.normalise:
            images = (standardise(images[0]), standardise(images[1]))
        return Views(images, (boxes, boxes))

    def loss(self, views: Views) -> Losses:
        """Compute eq. 3. Both images pass together and share their batch statistics."""
        config = self.config
        original, transformed = flat_features(self.encoder, torch.cat(views.images)).chunk(2)
        as_anchor, as_positive, as_negative = [*self.heads] * (3 // len(self.heads))
        first, second = (original, transformed) if config.anchor == "original" else (transformed, original)
        anchor, positive = as_anchor(first), as_positive(second)
        near = distances(anchor, positive, config.distance)
        far = distances(anchor, from_next_sample(as_negative(original)), config.distance)
        parts = {
            "positive_distance": near.detach().mean(),
            "negative_distance": far.detach().mean(),
            "accuracy": (near < far).to(near).mean(),
        }
        # Of a constant, all distances are 0.
        return Losses(triplet_loss(near, far, config.margin), parts, near.new_tensor(config.margin))
