"""Rubik's cube: a network tells how the cubes of a sample were permuted, and which of them were turned upside down.

Paper:     Zhuang et al., "Self-supervised Feature Learning for 3D Medical Images by Playing a Rubik's Cube",
           MICCAI 2019; a rival in the tables of VoCo (seed 002).
Reference: none was released.
Variants:  there are none. The paper's gap of about 10 voxels between cubes is drawn from 5 to 15 here. Its two
           half-turns of a cube, "horizontal" and "vertical", are those about the axes of depth and of width; a square
           of an image has only the first. Neither the number of permutations nor the weights of the losses could be
           read: there are 100 far apart, as for ``jigsaw`` (all 24 of four squares), and equal weights.
           The paper's network is a VGG for each cube, with shared weights; here it is the encoder that is given, and
           its flattened last maps are concatenated before one linear layer for each task.
Shapes:    B samples, V cubes of each, P permutations, T half-turns (1 of images, 2 of volumes), *s axes of a cube.
"""

from math import factorial, log, prod
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses
from methods.parts.flat_map import flat_dim, flat_features
from methods.parts.patches import Patches
from methods.parts.permutations import greedy_permutations
from methods.parts.precision import LinearHead, full_precision
from methods.parts.variants import completed_by

PATCHES: dict[str, Any] = {"grid": 2, "size": 64, "jitter": 10, "gap": 5}
# The planes, as axes of images, in which a cube is turned by two right angles: about depth, and about width.
PLANES = {2: ((-2, -1),), 3: ((-2, -1), (-3, -2))}


def half_turn(cubes: Float[Tensor, "b c *s"], turned: Bool[Tensor, "b t"]) -> Float[Tensor, "b c *s"]:
    """Turn each cube by two right angles in each plane that was drawn for it."""
    for plane, chosen in zip(PLANES[cubes.ndim - 2], turned.unbind(1), strict=True):
        cubes = torch.where(chosen.view(-1, *[1] * (cubes.ndim - 1)), cubes.flip(plane), cubes)
    return cubes


@full_precision()
def turn_loss(logits: Float[Tensor, "b n"], turned: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy over cubes and half-turns."""
    return F.binary_cross_entropy_with_logits(logits, turned.to(logits))


class RubiksCube(Method):
    """An encoder of single cubes, and two linear classifiers of their last maps, in the shuffled order."""

    class Config(FrozenConfig):
        """The cubes, of which fields that are not given keep their defaults, and how many permutations there are.

        num_permutations   at most; fewer where the cubes have fewer
        permutation_seed   seed of the set of permutations, which does not change with the run's seed
        """

        name: Literal["rubiks_cube"] = "rubiks_cube"
        patches: Patches = Patches(**PATCHES)
        num_permutations: int = Field(default=100, ge=2, le=1000)
        permutation_seed: int = Field(default=0, ge=0)

        _completed = completed_by({"paper": {"patches": PATCHES}})

    permutations: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = config.patches.sized(encoder)
        self.num_cubes = prod(config.patches.gridded(encoder.spatial_dims))
        num_permutations = min(config.num_permutations, factorial(self.num_cubes))
        chosen = greedy_permutations(num_permutations, self.num_cubes, config.permutation_seed)
        self.register_buffer("permutations", torch.tensor(chosen))
        self.encoder: Encoder = encoder
        in_dim = self.num_cubes * flat_dim(encoder, self.size)
        self.permutation_head = LinearHead(in_dim, num_permutations)
        self.turn_head = LinearHead(in_dim, self.num_cubes * len(PLANES[encoder.spatial_dims]))

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size are too small for the cubes."""
        self.config.patches.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut all cubes, shuffle them, and turn each: place j shows the cube that the permutation's entry j names."""
        boxes = self.config.patches.draw(batch.extents, rng.fold("boxes"))
        labels = rng.fold("permutation").integers(len(self.permutations))
        shuffled = boxes[np.arange(len(batch))[:, None], self.permutations.cpu().numpy()[labels]]
        cubes = self.config.patches.cut(batch, shuffled, self.size)
        drawn = rng.fold("turned").uniform(self.num_cubes, len(PLANES[batch.spatial_dims])) < 0.5
        turned = torch.from_numpy(drawn).to(cubes.device)
        images = tuple(half_turn(cube, chosen) for cube, chosen in zip(cubes, turned.unbind(1), strict=True))
        targets = {"labels": torch.from_numpy(labels).to(cubes.device), "turned": turned}
        return Views(images, tuple(shuffled.swapaxes(0, 1)), targets)

    def loss(self, views: Views) -> Losses:
        """Compute the sum of both losses. All cubes pass together and share their batch statistics."""
        features = torch.cat(flat_features(self.encoder, torch.cat(views.images)).chunk(len(views.images)), dim=1)
        permuted = classification_losses(self.permutation_head(features), views.targets["labels"])
        turned = views.targets["turned"].flatten(1).bool()
        logits = self.turn_head(features)
        turns = turn_loss(logits, turned)
        assert permuted.of_constant is not None
        parts = {
            "permutation_loss": permuted.total.detach(),
            "turn_loss": turns.detach(),
            **permuted.parts,
            "turn_accuracy": ((logits.detach() > 0) == turned).to(logits).mean(),
        }
        return Losses(permuted.total + turns, parts, permuted.of_constant + log(2))
