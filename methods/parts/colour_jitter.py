"""Colour jitter for grey images: brightness and contrast, in the strength with which SwAV was published.

Paper:     Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
           appendix A.
Reference: facebookresearch/swav @ 04b8f43, ``multicropdataset.py``. Saturation, hue and the conversion to grey are
           left out: a grey image has none. Intensities are not clipped, so that brightness and contrast may be
           applied in either order, which is random there.
"""

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from data.views.rng import SampleRng
from methods.base import FrozenConfig


class ColourJitter(FrozenConfig):
    """How far brightness and contrast are moved, with which probability.

    brightness   a in x * f, with f in [1 - a, 1 + a]
    contrast     a in x * f + mean * (1 - f), with the mean over the image
    """

    brightness: float = Field(default=0.8, ge=0, le=1)
    contrast: float = Field(default=0.8, ge=0, le=1)
    prob: float = Field(default=0.8, ge=0, le=1)


def jitter(images: Float[Tensor, "b c *s"], config: ColourJitter, rng: SampleRng) -> Float[Tensor, "b c *s"]:
    """Change brightness and contrast of each image by factors of its own."""
    happens = rng.fold("happens").chance(config.prob)

    def factor(name: str, most: float) -> Float[Tensor, "b *one"]:
        drawn = rng.fold(name).uniform(low=1 - most, high=1 + most)
        kept = torch.from_numpy(np.where(happens, drawn, 1.0))
        return kept.to(images).view(-1, *[1] * (images.ndim - 1))

    mean = images.flatten(1).mean(1).view(-1, *[1] * (images.ndim - 1))
    contrast, brightness = factor("contrast", config.contrast), factor("brightness", config.brightness)
    return (images * contrast + mean * (1 - contrast)) * brightness
