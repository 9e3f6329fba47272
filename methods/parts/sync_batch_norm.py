"""SyncBatchNorm: batch normalisation over all ranks, on CPU as on GPU (torch's own refuses CPU tensors).

Mean and variance come from sums over the ranks, and the backward pass sums gradients over
the ranks, so that k ranks equal one rank with the whole batch, in value and in gradient.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from methods.parts.ranks import sum_over_ranks

BatchNorm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]  # the base of all of torch's


class SyncBatchNorm(BatchNorm):
    """A drop-in for BatchNorm1d/2d/3d in training under torch.distributed; elsewhere it is plain batch norm."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm: input of shape {tuple(input.shape)}; expected (B, C, ...) or (B, C)")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        count = wide.new_full((1,), input.numel() / input.shape[1])
        sums, total = sum_over_ranks(torch.cat([wide.sum(axes), count])).split([input.shape[1], 1])
        mean = sums / total
        centred = wide - mean.view(shape)
        # The mean is taken first: the difference of two large sums would lose the variance's digits.
        variance = sum_over_ranks(centred.square().sum(axes)) / total
        self._track(mean.detach(), variance.detach(), total.detach())
        normal = centred * torch.rsqrt(variance.view(shape) + self.eps)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics, the variance unbiased, as torch's batch norm does."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * count / (count - 1), weight)


def convert_sync_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm inside a module, in place; parameters and buffers stay the same objects."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm) and not isinstance(child, SyncBatchNorm):
            synced = SyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            synced.weight, synced.bias = child.weight, child.bias
            synced.running_mean, synced.running_var = child.running_mean, child.running_var
            synced.num_batches_tracked = child.num_batches_tracked
            synced.training = child.training
            setattr(module, name, synced)
        else:
            convert_sync_batch_norm(child)
