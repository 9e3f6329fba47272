"""Optimiser: parameter groups of a method, torch's optimiser, and the learning rate of each step."""

from dataclasses import dataclass

import torch

from methods.base import Method
from methods.parts.schedule import learning_rate, warm_up
from orchestrator.config.parts import Optimiser


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step: linear warm-up, then cosine to ``final_lr``, or constant."""

    config: Optimiser
    total_steps: int
    warmup_steps: int

    def rate(self, step: int) -> float:
        """Return the rate that the optimiser uses at ``step`` (0-based)."""
        if self.config.schedule == "constant":
            if step >= self.warmup_steps:
                return self.config.lr
            return warm_up(step, self.warmup_steps, self.config.lr, self.config.warmup)
        return learning_rate(
            step,
            total_steps=self.total_steps,
            lr=self.config.lr,
            final_lr=self.config.final_lr,
            warmup_steps=self.warmup_steps,
            warmup=self.config.warmup,
        )


def build(method: Method, config: Optimiser) -> torch.optim.Optimizer:
    """Build torch's optimiser over the method's parameter groups."""
    groups = [
        {
            "params": group.params,
            "weight_decay": config.weight_decay if group.decay else 0.0,
            "schedule": group.schedule,
            "starts_at": group.starts_at,
        }
        for group in method.param_groups()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas)


def set_rate(optimiser: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Set every group's rate for ``step``; groups with a constant schedule keep ``lr``. Return the scheduled rate."""
    rate = schedule.rate(step)
    for group in optimiser.param_groups:
        group["lr"] = schedule.config.lr if group["schedule"] == "constant" else rate
    return rate


def hold(optimiser: torch.optim.Optimizer, progress: float) -> None:
    """Drop the gradients of groups that do not learn yet, so that neither momentum nor decay moves them."""
    for group in optimiser.param_groups:
        if progress < group["starts_at"]:
            for parameter in group["params"]:
                parameter.grad = None
