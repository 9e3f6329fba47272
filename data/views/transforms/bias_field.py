"""Bias field: multiply views by a smooth field, as uneven magnetic fields do in MRI.

Reference: torchio 0.18.92, RandomBiasField, after Van Leemput et al., "Automated model-based
           bias field correction of MR images of the brain", IEEE TMI 1999. The field is exp of a polynomial with all
           monomials of total order 0 to 3 in the axes' coordinates, which go from -1 at the first voxel's centre to 1
           at the last one's (0 on an axis of one voxel). The 20 coefficients of a volume, 10 of an image, lie in
           [-0.5, 0.5].
"""

from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from data.views.intervals import Interval
from data.views.rng import SampleRng
from data.views.transforms.base import Transform


class BiasField(Transform):
    """Multiplies by a field that all channels share.

    coefficients   of the polynomial
    order          greatest total order of a monomial
    numbers        the coefficients in the order of ``monomials``
    """

    name: Literal["bias_field"] = "bias_field"
    coefficients: Interval = (-0.5, 0.5)
    order: NonNegativeInt = 3

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b k"]:
        """Draw the coefficients."""
        low, high = self.coefficients
        return rng.uniform(len(monomials(self.order, len(size))), low=low, high=high)

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b k"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Sum up the polynomial axis by axis, beginning with the powers of the last one."""
        size = images.shape[2:]
        coefficients = np.zeros((len(images), *[self.order + 1] * len(size)))
        coefficients[(slice(None), *np.transpose(monomials(self.order, len(size))))] = numbers
        field = torch.from_numpy(coefficients).to(images)
        for length in reversed(size):
            # The powers of the last axis become its voxels, and the powers of the axis before come to stand last.
            field = torch.einsum("b...p,vp->bv...", field, self._powers(length, images))
        return images * field.exp()[:, None]

    def _powers(self, length: int, images: Tensor) -> Float[Tensor, "v p"]:
        voxel = torch.linspace(-1, 1, length, device=images.device, dtype=images.dtype)
        coordinate = voxel if length > 1 else torch.zeros_like(voxel)
        return coordinate[:, None] ** torch.arange(self.order + 1, device=images.device)


def monomials(order: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """Return the powers of each axis in each monomial up to a total order; the last axis varies fastest."""
    powers = product(range(order + 1), repeat=spatial_dims)
    return [each for each in powers if sum(each) <= order]
