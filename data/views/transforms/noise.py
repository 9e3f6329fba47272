"""Noise: add Gaussian noise, independent in each voxel and channel.

Reference: torchio 0.18.92, RandomNoise: mean 0, standard deviation in [0, 0.25].
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from data.views.intervals import Deviations, Interval
from data.views.rng import SampleRng
from data.views.transforms.base import Transform, by_sample


class Noise(Transform):
    """Adds noise.

    mean, sigma   in units of intensity
    numbers       mean and standard deviation
    """

    name: Literal["noise"] = "noise"
    mean: Interval = (0.0, 0.0)
    sigma: Deviations = (0.0, 0.25)

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b 2"]:
        """Draw mean and standard deviation."""
        ranges = {"mean": self.mean, "sigma": self.sigma}
        return np.stack([rng.fold(part).uniform(low=low, high=high) for part, (low, high) in ranges.items()], axis=1)

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b 2"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Add each sample's own noise."""
        noise = rng.normal_voxels(images.shape[1:], images.device).to(images)
        return images + noise * by_sample(numbers[:, 1], images) + by_sample(numbers[:, 0], images)
