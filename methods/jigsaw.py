"""Jigsaw: a network predicts by which permutation of a fixed set the patches of a sample were shuffled.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 3.3; in 2D
           Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; the printed numbers came from it.
Variants:  each flag is a field of the config or of ``patches`` and can be set on its own.
                          paper                             released
           permutations   greedy: far apart                 random: a file of random ones, 19 apart or more; here
                                                            new ones are drawn
           patches.gap    1: there is jitter, so that       0: at jitter 3, one pair of neighbours in 16 touches
                          edges do not give it away
           Patches are resized to the encoder's size; the released encoder's pooling drops their ends instead.
           The last maps are flattened, and the classifier is the released one: the paper describes neither, nor the
           number of permutations (100, as released).
Shapes:    B samples, K patches of each, P permutations, C channels, *s spatial axes of a patch.
"""

from math import prod
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses, classifier
from methods.parts.flat_map import flat_dim, flat_features
from methods.parts.patches import Patches
from methods.parts.permutations import greedy_permutations, random_permutations
from methods.parts.variants import completed_by

PERMUTATIONS = {"greedy": greedy_permutations, "random": random_permutations}
_PAPER: dict[str, Any] = {"permutations": "greedy", "patches": {"gap": 1}}
VARIANTS: dict[str, dict[str, Any]] = {"paper": _PAPER, "released": {"permutations": "random", "patches": {"gap": 0}}}


class Jigsaw(Method):
    """An encoder of single patches, and a classifier of their last maps, in the shuffled order."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        permutation_seed   seed of the set of permutations, which does not change with the run's seed
        hidden_dims        widths of the classifier's hidden layers
        """

        name: Literal["jigsaw"] = "jigsaw"
        variant: Literal["paper", "released"] = "paper"
        patches: Patches = Patches(**_PAPER["patches"])
        permutations: Literal["greedy", "random"] = "greedy"
        num_permutations: int = Field(default=100, ge=2, le=1000)
        permutation_seed: int = Field(default=0, ge=0)
        hidden_dims: tuple[PositiveInt, ...] = (2048, 1024)
        dropout: float = Field(default=0.5, ge=0, lt=1)

        _completed = completed_by(VARIANTS)

    permutations: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = config.patches.sized(encoder)
        num_patches = prod(config.patches.gridded(encoder.spatial_dims))
        chosen = PERMUTATIONS[config.permutations](config.num_permutations, num_patches, config.permutation_seed)
        self.register_buffer("permutations", torch.tensor(chosen))
        self.encoder: Encoder = encoder
        in_dim = num_patches * flat_dim(encoder, self.size)
        self.head = classifier(in_dim, config.hidden_dims, config.num_permutations, config.dropout)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size are too small for the grid."""
        self.config.patches.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut all patches and shuffle them: place j shows the patch that the permutation's entry j names."""
        boxes = self.config.patches.draw(batch.extents, rng.fold("boxes"))
        labels = rng.fold("permutation").integers(self.config.num_permutations)
        shuffled = boxes[np.arange(len(batch))[:, None], self.permutations.cpu().numpy()[labels]]
        images = self.config.patches.cut(batch, shuffled, self.size)
        targets = {"labels": torch.from_numpy(labels).to(images.device)}
        return Views(tuple(images), tuple(shuffled.swapaxes(0, 1)), targets)

    def loss(self, views: Views) -> Losses:
        """Compute the cross-entropy. All patches pass together and share their batch statistics."""
        features = flat_features(self.encoder, torch.cat(views.images)).chunk(len(views.images))
        return classification_losses(self.head(torch.cat(features, dim=1)), views.targets["labels"])
