"""Solarise: turn bright intensities upside down.

Paper:     Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, appendix B: x becomes 1 - x from 0.5 on.
Reference: Pillow's ``ImageOps.solarize`` with a threshold of 128, as released for MoCo v3 and Barlow Twins.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.views.rng import SampleRng
from data.views.transforms.base import Transform


class Solarise(Transform):
    """Takes intensities of at least ``threshold`` from ``top``.

    top       the intensity that becomes 0
    numbers   none
    """

    name: Literal["solarise"] = "solarise"
    threshold: float = 0.5
    top: float = 1.0

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b 0"]:
        """Draw nothing."""
        return np.empty((len(rng), 0))

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b 0"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Turn them."""
        return torch.where(images >= self.threshold, self.top - images, images)
