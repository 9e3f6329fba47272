"""Gamma: raise intensities to a power, which changes contrast.

Reference: torchio 0.18.92, RandomGamma: the power's natural logarithm lies in [-0.3, 0.3]; a
           negative intensity keeps its sign, and its magnitude is raised. torchio draws a power for each channel;
           here all channels of a view share one, so that colours keep their hue. JSSL has one channel.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.views.intervals import Interval
from data.views.rng import SampleRng
from data.views.transforms.base import Transform, by_sample


class Gamma(Transform):
    """Raises magnitudes to the power exp(``log_gamma``).

    numbers   the power
    """

    name: Literal["gamma"] = "gamma"
    log_gamma: Interval = (-0.3, 0.3)

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b 1"]:
        """Draw the power."""
        low, high = self.log_gamma
        return np.exp(rng.uniform(1, low=low, high=high))

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b 1"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Raise the intensities; 0 stays 0, with a gradient of 0 where its slope would be infinite."""
        magnitude = images.abs().clamp(min=torch.finfo(images.dtype).tiny)
        return images.sign() * magnitude ** by_sample(numbers[:, 0], images)
