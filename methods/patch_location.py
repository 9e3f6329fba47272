"""Patch location: a network predicts the position of one patch of a sample relative to another.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 3.2; in 2D
           Doersch, Gupta and Efros, "Unsupervised Visual Representation Learning by Context Prediction", ICCV 2015.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; the printed numbers came from it.
Variants:  each flag is a field of ``patches`` and can be set on its own.
                  paper                                       released
           span   0.95: the grid lies "at random locations",  1: the grid fills the sample; the remainder, fewer
                  no size given                               voxels than cells, is at its end, here on both sides
           gap    1: there are gaps between neighbours        0: at jitter 3, one pair of neighbours in 16 touches
           Patches are resized to the encoder's size; the released encoder's pooling drops their ends instead.
           The last maps are flattened, and the classifier is the released one: the paper describes neither.
Shapes:    B samples, K cells of the grid, C channels, *s spatial axes of a patch.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, PositiveInt, model_validator

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses, classifier
from methods.parts.flat_map import flat_dim, flat_features
from methods.parts.patches import Patches
from methods.parts.variants import completed_by

_PAPER: dict[str, Any] = {"patches": {"span": 0.95, "gap": 1}}
VARIANTS: dict[str, dict[str, Any]] = {"paper": _PAPER, "released": {"patches": {"span": 1.0, "gap": 0}}}


def draw_queries(num_cells: int, rng: SampleRng) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Draw a cell other than the middle one; return it and its label, which is its place among those cells."""
    labels = rng.integers(num_cells - 1)
    return labels + (labels >= num_cells // 2), labels


class PatchLocation(Method):
    """An encoder of single patches, and a classifier of the two last maps, concatenated."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        hidden_dims   widths of the classifier's hidden layers
        """

        name: Literal["patch_location"] = "patch_location"
        variant: Literal["paper", "released"] = "paper"
        patches: Patches = Patches(**_PAPER["patches"])
        hidden_dims: tuple[PositiveInt, ...] = (2048, 1024)
        dropout: float = Field(default=0.5, ge=0, lt=1)

        _completed = completed_by(VARIANTS)

        @model_validator(mode="after")
        def _has_a_middle(self) -> "PatchLocation.Config":
            grid = self.patches.grid
            cells = (grid,) if isinstance(grid, int) else grid
            if any(number % 2 == 0 for number in cells) or max(cells) == 1:
                raise ValueError(f"patches.grid {grid} has no middle cell among others; give odd numbers, such as 3")
            return self

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = config.patches.sized(encoder)
        self.num_cells = int(np.prod(config.patches.gridded(encoder.spatial_dims)))
        self.encoder: Encoder = encoder
        in_dim = 2 * flat_dim(encoder, self.size)
        self.head = classifier(in_dim, config.hidden_dims, self.num_cells - 1, config.dropout)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size are too small for the grid."""
        self.config.patches.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the patch in the middle of the grid and one of the others."""
        boxes = self.config.patches.draw(batch.extents, rng.fold("boxes"))
        queries, labels = draw_queries(self.num_cells, rng.fold("query"))
        pair = np.stack([boxes[:, self.num_cells // 2], boxes[np.arange(len(batch)), queries]], axis=1)
        images = self.config.patches.cut(batch, pair, self.size)
        return Views(
            tuple(images), tuple(pair.swapaxes(0, 1)), {"labels": torch.from_numpy(labels).to(images.device)}
        )

    def loss(self, views: Views) -> Losses:
        """Compute eq. 2. Both patches pass together and share their batch statistics."""
        centre, query = flat_features(self.encoder, torch.cat(views.images)).chunk(2)
        return classification_losses(self.head(torch.cat([centre, query], dim=1)), views.targets["labels"])
