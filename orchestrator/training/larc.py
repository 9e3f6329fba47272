"""LARS and LARC: SGD with momentum whose learning rate adapts to each tensor of weights.

Papers:    LARS: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888,
           Algorithm 1. LARC is NVIDIA's variant of it.
Reference: NVIDIA/apex @ 0bfb830, apex/parallel/LARC.py, which wraps torch's SGD.

For a tensor of weights w with gradient g and weight decay b, both compute the trust ratio

    trust_coefficient * |w| / (|g| + b * |w| + eps)

and move w along (g + b * w) by lr times the ratio. They differ in momentum: LARS adds up moves, each at the rate of
its own step; LARC adds up directions and moves along their sum at today's rate. LARC with ``clip`` never moves faster
than lr. As in apex, weights of zeros move at lr, and a gradient of zeros neither adapts nor decays.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdaptiveSGD(Optimizer):
    """SGD whose rate adapts to each tensor. A group with ``adapts`` False moves at lr, as under plain SGD."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        clip: bool = False,
    ) -> None:
        shared = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapts": True}
        super().__init__(params, {**shared, "trust_coefficient": trust_coefficient, "eps": eps, "clip": clip})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient; the loss is not computed again."""
        assert closure is None, "the training loop computes the loss itself"
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._move(weights, self._direction(weights, weights.grad, group), group)

    @abstractmethod
    def _move(self, weights: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        """Add a direction to the momentum of some weights, and move them."""

    def _direction(self, weights: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        """Return gradient and weight decay, times the trust ratio where the group adapts."""
        decay = group["weight_decay"]
        direction = grad.add(weights, alpha=decay)
        if not group["adapts"]:
            return direction
        size, slope = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(grad)
        ratio = group["trust_coefficient"] * size / (slope + decay * size + group["eps"])
        if group["clip"]:
            ratio = (ratio / group["lr"]).clamp(max=1)
        return torch.where(slope > 0, torch.where(size > 0, ratio, 1.0) * direction, 0.0)

    def _momentum(self, weights: Tensor) -> Tensor:
        """Return the momentum of some weights, zeros before their first move."""
        state = self.state[weights]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        return state["momentum_buffer"]


class LARS(AdaptiveSGD):
    """Momentum adds up moves: a later change of the rate leaves earlier moves as they were."""

    def _move(self, weights: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        moved = self._momentum(weights).mul_(group["momentum"]).add_(direction, alpha=group["lr"])
        weights.sub_(moved)


class LARC(AdaptiveSGD):
    """Momentum adds up directions, and all of them move at today's rate, as in torch's SGD."""

    def _move(self, weights: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        summed = self._momentum(weights).mul_(group["momentum"]).add_(direction)
        weights.sub_(summed, alpha=group["lr"])
