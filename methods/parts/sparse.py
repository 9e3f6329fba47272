"""Sparse: a dense convolutional encoder computes as if hidden places did not exist.

Paper:     Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling", ICLR
           2023, section 3.2.
Reference: keyu-tian/SparK @ 1468df8, ``pretrain/encoder.py``: what is hidden is set to 0 after every layer, and norms
           take their statistics from visible places. It exchanges the layers; here they only compute differently
           while a block lasts, so that keys and weights are the encoder's own. It knows batch and layer norm;
           instance and group norm follow the same rule here, for each image on its own.
Shapes:    B images, C channels, *g blocks along each axis, *m spatial axes of a map.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.parts.ranks import sum_over_ranks
from methods.parts.sync_batch_norm import BatchNorm, SyncBatchNorm

InstanceNorm = nn.modules.instancenorm._InstanceNorm  # pyright: ignore[reportPrivateUsage]  # the base of all of them


@contextmanager
def sparse(network: nn.Module, visible: Bool[Tensor, "b 1 *g"]) -> Generator[None]:
    """Let a network see visible blocks only; a block is a whole number of voxels of its images and of each map."""
    shown = visible.float()

    def masked(module: nn.Module, inputs: object, output: object) -> object:
        if isinstance(output, Tensor) and output.ndim == visible.ndim:
            return output * shown_in(shown, output)
        return output

    handles = [module.register_forward_hook(masked) for module in network.modules() if not [*module.children()]]
    norms = [module for module in network.modules() if isinstance(module, BatchNorm | InstanceNorm | nn.GroupNorm)]
    for norm in norms:
        vars(norm)["forward"] = partial(_normalised, norm, shown, norm.forward)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            del vars(norm)["forward"]


def shown_in(visible: Float[Tensor, "b 1 *g"], values: Float[Tensor, "b c *m"]) -> Float[Tensor, "b 1 *m"]:
    """Return which places of a map are visible, as 0 and 1."""
    return F.interpolate(visible, values.shape[2:], mode="nearest").to(values.dtype)


def _normalised(
    norm: nn.Module,
    visible: Float[Tensor, "b 1 *g"],
    dense: Callable[[Tensor], Tensor],
    values: Float[Tensor, "b c *m"],
) -> Float[Tensor, "b c *m"]:
    """Normalise by statistics of visible places, in float32 at least."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    shown = shown_in(visible, wide)
    if isinstance(norm, BatchNorm):
        if not norm.training:
            return dense(values)
        normal = _over_batch(norm, wide, shown)
    else:
        groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else values.shape[1]
        assert isinstance(norm, nn.GroupNorm | InstanceNorm)
        normal = _over_places(wide, shown, groups, norm.eps)
    if norm.affine:
        shape = [1, -1] + [1] * (values.ndim - 2)
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(values.dtype)


def _over_batch(norm: BatchNorm, values: Tensor, shown: Tensor) -> Tensor:
    """Normalise each channel over the images, those of all ranks where the norm does so, and track its statistics."""
    shape, axes = [1, -1] + [1] * (values.ndim - 2), [0, *range(2, values.ndim)]
    together = sum_over_ranks if isinstance(norm, SyncBatchNorm) and dist.is_initialized() else _own
    sums = together(torch.cat([(values * shown).sum(axes), shown.sum()[None]]))
    mean, count = sums[:-1] / sums[-1], sums[-1]
    centred = values - mean.view(shape)
    variance = together((centred.square() * shown).sum(axes)) / count
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        weight = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked or 1)
        norm.running_mean.lerp_(mean.detach().to(norm.running_mean), weight)
        norm.running_var.lerp_((variance * count / (count - 1)).detach().to(norm.running_var), weight)
    return centred * torch.rsqrt(variance.view(shape) + norm.eps)


def _over_places(values: Tensor, shown: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise each group of channels of each image over its visible places."""
    grouped, among = values.unflatten(1, (groups, -1)), shown[:, None]
    axes = tuple(range(2, grouped.ndim))
    count = among.sum(axes, keepdim=True) * grouped.shape[2]
    mean = (grouped * among).sum(axes, keepdim=True) / count
    centred = grouped - mean
    variance = (centred.square() * among).sum(axes, keepdim=True) / count
    return (centred * torch.rsqrt(variance + eps)).flatten(1, 2)


def _own(summand: Tensor) -> Tensor:
    return summand
