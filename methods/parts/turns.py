"""Turns: rotations of cubes and squares by multiples of a right angle about each axis.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 3.4: four
           angles about each of three axes, the angle of 0 only once.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; its axes 0, 1, 2 are D, H, W here.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# (number of right angles, (first axis, second axis)): turns go from the first spatial axis to the second.
Turn = tuple[int, tuple[int, int]]
TURNS: dict[int, tuple[Turn, ...]] = {
    2: ((0, (0, 1)), (1, (0, 1)), (2, (0, 1)), (3, (0, 1))),
    3: (
        (0, (0, 1)),
        (1, (0, 1)),
        (2, (0, 1)),
        (3, (0, 1)),
        (3, (1, 2)),
        (2, (1, 2)),
        (1, (1, 2)),
        (3, (0, 2)),
        (2, (0, 2)),
        (1, (0, 2)),
    ),
}


def turn(images: Float[Tensor, "b c *s"], numbers: Int[np.ndarray, " b"]) -> Float[Tensor, "b c *s"]:
    """Turn each image by its own entry of ``TURNS``, without resampling; all axes have the same length."""
    turned = images.clone()
    for number in np.unique(numbers).tolist():
        count, (first, second) = TURNS[images.ndim - 2][number]
        index = torch.from_numpy(np.flatnonzero(numbers == number)).to(images.device)
        turned[index] = torch.rot90(images[index], count, (2 + first, 2 + second))
    return turned
