"""Optimiser: parameter groups of a method, torch's optimiser, and the rates of each step."""

from dataclasses import dataclass
from typing import Any

import torch

from methods.base import Method
from methods.parts.schedule import cosine, poly, warm_up
from orchestrator.config.optimiser import Optimiser
from orchestrator.config.parts import Budget
from orchestrator.training.larc import LARC, LARS

# A warm-up that takes this share of the budget leaves hardly a step at the rate that was asked for.
WARMING = 0.8


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay as functions of the step.

    After its warm-up, the learning rate reaches ``final_lr`` at ``total_steps``, one step after the last.
    ``milestones`` are steps.
    """

    config: Optimiser
    total_steps: int
    warmup_steps: int
    milestones: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Optimiser, budget: Budget, num_samples: int) -> "Schedule":
        """Turn epochs over ``num_samples`` samples into steps; raise ValueError for a milestone beyond the budget."""
        total = budget.total_steps(num_samples)
        milestones = tuple(budget.epochs_to_steps(epochs, num_samples) for epochs in config.milestone_epochs)
        for epochs, step in zip(config.milestone_epochs, milestones, strict=True):
            if step >= total:
                raise ValueError(
                    f"optimiser.milestone_epochs {epochs:g}: the milestone is at step {step:,}, and the budget ends "
                    f"after {total:,} steps of {budget.batch_size} of {num_samples:,} samples; lower the milestone, "
                    "or raise the budget"
                )
        return cls(config, total, budget.epochs_to_steps(config.warmup_epochs, num_samples), milestones)

    def doubt(self) -> str | None:
        """Say that the learning rate rises nearly to the end, if it does."""
        if self.warmup_steps < WARMING * self.total_steps:
            return None
        config = self.config
        return (
            f"optimiser.warmup_epochs {config.warmup_epochs:g}: the rate still rises to {config.lr:g} at step "
            f"{self.warmup_steps:,}, and the budget ends after {self.total_steps:,}; lower optimiser.warmup_epochs, "
            "or raise the budget"
        )

    def rate(self, step: int) -> float:
        """Return the learning rate that the optimiser uses at ``step`` (0-based)."""
        config = self.config
        if step < self.warmup_steps:
            return warm_up(step, self.warmup_steps, config.lr, config.warmup)
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if config.schedule == "cosine":
            return cosine(config.lr, config.final_lr, progress)
        if config.schedule == "poly":
            return poly(config.lr, config.final_lr, progress, config.poly_power)
        return config.lr * config.milestone_factor ** sum(step >= milestone for milestone in self.milestones)

    def decay(self, step: int) -> float:
        """Return the weight decay that the optimiser uses at ``step`` (0-based), in groups that decay."""
        first, last = self.config.weight_decay, self.config.final_weight_decay
        return first if last is None else cosine(first, last, min(1.0, step / self.total_steps))


def build(method: Method, config: Optimiser) -> torch.optim.Optimizer:
    """Build torch's optimiser, or LARS or LARC, over the method's parameter groups."""
    groups = [
        {
            "params": group.params,
            "weight_decay": config.weight_decay if group.decay else 0.0,
            "decays": group.decay,
            "schedule": group.schedule,
            "starts_at": group.starts_at,
        }
        for group in method.param_groups()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.name in ("lars", "larc"):
        return _adaptive(groups, config)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, amsgrad=config.amsgrad)


def _adaptive(groups: list[dict[str, Any]], config: Optimiser) -> torch.optim.Optimizer:
    """Build LARS or LARC; groups without decay adapt only where the config says so."""
    groups = [{**group, "adapts": group["decays"] or config.trust_undecayed} for group in groups]
    kind, clip = (LARC, config.trust_clip) if config.name == "larc" else (LARS, False)
    return kind(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        trust_coefficient=config.trust_coefficient,
        eps=config.trust_eps,
        clip=clip,
    )


def set_rates(optimiser: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Set every group's learning rate and weight decay for ``step``; return the scheduled learning rate.

    Groups with a constant schedule keep ``lr``; groups that do not decay keep a weight decay of 0.
    """
    rate = schedule.rate(step)
    for group in optimiser.param_groups:
        group["lr"] = schedule.config.lr if group["schedule"] == "constant" else rate
        # Where the decay is constant, the group may come from an older checkpoint, which does not say what decays.
        if schedule.config.final_weight_decay is not None and group["decays"]:
            group["weight_decay"] = schedule.decay(step)
    return rate


def hold(optimiser: torch.optim.Optimizer, progress: float) -> None:
    """Drop the gradients of groups that do not learn yet, so that neither momentum nor decay moves them."""
    for group in optimiser.param_groups:
        if progress < group["starts_at"]:
            for parameter in group["params"]:
                parameter.grad = None
