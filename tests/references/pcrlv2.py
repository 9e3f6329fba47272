"""PCRLv2's losses from a decoder's maps, sample by sample and scale by scale, in torch float64."""

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def normed(x: Tensor, w: Weights, name: str) -> Tensor:
    """Normalise each channel over everything else, by the batch's own statistics."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)


def compared(x: Tensor, w: Weights, scale: int) -> tuple[Tensor, Tensor]:
    """Return z and p of one scale."""
    name = f"heads.{scale}"
    z = normed(torch.stack([sample.reshape(len(sample), -1).mean(1) for sample in x]), w, f"{name}.norm.0")
    hidden = normed(z @ w[f"{name}.predictor.0.weight"].T + w[f"{name}.predictor.0.bias"], w, f"{name}.predictor.1")
    return z, hidden.clamp(min=0) @ w[f"{name}.predictor.3.weight"].T + w[f"{name}.predictor.3.bias"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def distance(first: list[Tensor], second: list[Tensor], w: Weights, rows: slice) -> Tensor:
    """Compare the first view with some rows of the second at each scale, in both directions."""
    found = []
    for scale in range(len(first)):
        z, p = compared(first[scale], w, scale)
        other_z, other_p = (each[rows] for each in compared(second[scale], w, scale))
        for i in range(len(z)):
            found += [-cosine(p[i], other_z[i].detach()), -cosine(other_p[i], z[i].detach())]
    return torch.stack(found).mean()


def scale_error(x: Tensor, whole: Tensor, w: Weights, scale: int) -> Tensor:
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    voxels = normed(convolve(x, w[f"heads.{scale}.out.0.weight"], padding=1), w, f"heads.{scale}.out.1").sigmoid()
    resized = F.interpolate(voxels, size=whole.shape[2:], mode="bilinear" if x.ndim == 4 else "trilinear")
    return ((resized - whole) ** 2).mean()


def loss(views: list[list[Tensor]], restored: Tensor, whole: Tensor, w: Weights, weight: float) -> Tensor:
    """``views``: the decoder's maps of the first view, the second, and all small crops together."""
    first, second, small = views
    count = len(whole)
    rows = [slice(start, start + count) for start in range(0, len(small[0]), count)]
    local = torch.stack([distance(view, small, w, each) for each in rows for view in (first, second)]).mean()
    scales = torch.stack([scale_error(x, whole, w, scale) for scale, x in enumerate(first)]).mean()
    error = ((1 / (1 + torch.exp(-restored)) - whole) ** 2).mean()
    return error + weight * scales + distance(first, second, w, slice(None)) + local
