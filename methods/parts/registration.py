"""Registration: move images by affine maps and by flows, and tell how well one then lies on another.

Places are in voxels from an image's centre. What comes from beyond an image is 0.

Shapes:    B samples, C channels, n spatial axes, *s their lengths, k numbers of an affine map.
"""

from itertools import combinations
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.parts.precision import full_precision

LARGEST_TURN, LARGEST_SCALING, LARGEST_SHEAR = pi / 9, 0.25, pi / 18
WINDOW = 9  # voxels along each axis that a local correlation sees
FLAT = 1e-5  # added to the product of two spreads


def count_numbers(spatial_dims: int) -> int:
    """Return how many numbers an affine map is made of: turns, scalings, shifts and shears."""
    return 2 * spatial_dims - 3 + 2 * spatial_dims + spatial_dims * (spatial_dims - 1)


@full_precision()
def affine_maps(numbers: Float[Tensor, "b k"], spatial_dims: int) -> Float[Tensor, "b n m"]:
    """Return maps (m = n + 1) from places of the moved image to places of the image that is moved.

    Turns, scalings and shears are bounded; 0 is the identity. Shifts are in voxels, and unbounded.
    """
    n = spatial_dims
    turns, scalings, shifts, shears = numbers.split([2 * n - 3, n, n, n * (n - 1)], dim=1)
    same = torch.eye(n, dtype=numbers.dtype, device=numbers.device).expand(len(numbers), n, n)
    matrices = same
    for angle, (first, second) in zip(bounded(turns, LARGEST_TURN).unbind(1), combinations(range(n), 2), strict=True):
        turn = same.clone()
        turn[:, first, first] = turn[:, second, second] = angle.cos()
        turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
        matrices = turn @ matrices
    matrices = (1 + bounded(scalings, LARGEST_SCALING))[:, :, None] * matrices
    off_diagonal = ~torch.eye(n, dtype=torch.bool, device=numbers.device)
    sheared = same.clone()
    sheared[:, off_diagonal] = bounded(shears, LARGEST_SHEAR).tan()
    return torch.cat([sheared @ matrices, shifts[:, :, None]], dim=2)


def bounded(numbers: Tensor, largest: float) -> Tensor:
    """Return numbers in [-1, 1], cut off beyond, as shares of the largest."""
    return numbers.clamp(-1, 1) * largest


@full_precision()
def move_affinely(images: Float[Tensor, "b c *s"], maps: Float[Tensor, "b n m"]) -> Float[Tensor, "b c *s"]:
    """Return images whose voxels come from where maps say, (bi/tri)linearly."""
    lengths = torch.tensor(images.shape[2:], dtype=maps.dtype, device=maps.device)
    matrices, shifts = maps[:, :, :-1] * lengths / lengths[:, None], maps[:, :, -1:] * 2 / lengths[:, None]
    # grid_sample counts axes from the last one.
    theta = torch.cat([matrices.flip(1, 2), shifts.flip(1)], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.to(grid), grid, padding_mode="zeros", align_corners=False)


@full_precision()
def move_by_flow(images: Float[Tensor, "b c *s"], flow: Float[Tensor, "b n *s"]) -> Float[Tensor, "b c *s"]:
    """Return images whose voxels come from as many voxels away as the flow says, (bi/tri)linearly."""
    sources = [
        (2 * (torch.arange(length, dtype=flow.dtype, device=flow.device).view(-1, *[1] * after) + along) + 1) / length
        - 1
        for along, length, after in zip(flow.unbind(1), flow.shape[2:], range(flow.ndim - 3, -1, -1), strict=True)
    ]
    grid = torch.stack(sources[::-1], dim=-1)
    return F.grid_sample(images.to(grid), grid, padding_mode="zeros", align_corners=False)


@full_precision()
def correlation_loss(moved: Float[Tensor, "b c *s"], fixed: Float[Tensor, "b c *s"]) -> Float[Tensor, ""]:
    """Return 1 minus the mean squared correlation of the windows about all voxels; beyond the border there is 0.

    A window in which an image is flat correlates with nothing.
    """
    sums = window_sums(torch.cat([moved, fixed, moved * moved, fixed * fixed, moved * fixed], dim=1))
    first, second, first_square, second_square, product = sums.chunk(5, dim=1)
    voxels = WINDOW ** (moved.ndim - 2)
    # Rounding may leave a flat window less than no spread.
    first_spread = (first_square - first * first / voxels).clamp(min=0)
    second_spread = (second_square - second * second / voxels).clamp(min=0)
    shared = product - first * second / voxels
    return 1 - (shared * shared / (first_spread * second_spread + FLAT)).mean()


def window_sums(images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """Return the sum over the window about each voxel, one axis after another."""
    pool = (F.avg_pool2d, F.avg_pool3d)[images.ndim - 4]
    for axis in range(images.ndim - 2):
        window = [WINDOW if k == axis else 1 for k in range(images.ndim - 2)]
        # Padded here, since torch's own padding refuses images that are smaller than the window.
        margins = [length // 2 for length in reversed(window) for _ in range(2)]
        images = pool(F.pad(images, margins), window, stride=1) * WINDOW
    return images


@full_precision()
def roughness(flow: Float[Tensor, "b n *s"]) -> Float[Tensor, ""]:
    """Return the mean squared difference of neighbours' flows, averaged over the axes; one voxel has none."""
    differences = [flow.diff(dim=axis) for axis in range(2, flow.ndim)]
    return sum((part.square().mean() for part in differences if part.numel()), flow.new_zeros(())) / len(differences)
