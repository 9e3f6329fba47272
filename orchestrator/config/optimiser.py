"""Optimiser: how weights follow gradients, and how learning rate and weight decay change over a budget."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from methods.base import ADDED, FrozenConfig
from methods.parts.schedule import WarmUp

Beta = Annotated[float, Field(ge=0, lt=1)]
Epoch = Annotated[float, Field(gt=0)]

_SGD, _ADAM, _ADAPTIVE = ("sgd", "lars", "larc"), ("adam", "adamw"), ("lars", "larc")
# The field that decides whether another is read, and the choices that read it.
READ_BY = {
    "momentum": ("name", _SGD),
    "betas": ("name", _ADAM),
    "amsgrad": ("name", _ADAM),
    "trust_coefficient": ("name", _ADAPTIVE),
    "trust_eps": ("name", _ADAPTIVE),
    "trust_undecayed": ("name", _ADAPTIVE),
    "trust_clip": ("name", ("larc",)),
    "final_lr": ("schedule", ("cosine", "poly")),
    "milestone_epochs": ("schedule", ("step",)),
    "milestone_factor": ("schedule", ("step",)),
    "poly_power": ("schedule", ("poly",)),
}


class Optimiser(FrozenConfig):
    """Learning rate, warm-up and decay; the schedules advance per step.

    name                lars and larc are sgd with momentum whose rate adapts to each tensor; see ``training/larc.py``
    warmup              above_zero: the first step already learns; from_zero and zero_to_peak: as in released code,
                        the first step does not learn; see ``warm_up``
    schedule            of the rate after the warm-up: cosine and poly fall from ``lr`` to ``final_lr``; step
                        multiplies ``lr`` by ``milestone_factor`` at each of ``milestone_epochs``
    milestone_epochs    count from the start of the training, with its warm-up
    poly_power          nnU-Net's is 0.9
    final_weight_decay  the decay follows half a cosine from ``weight_decay`` to this value, as DINO's rises from 0.04
                        to 0.4; none: it stays. Norms and biases never decay
    amsgrad             adam, adamw: divide by the largest second moment so far
    trust_coefficient   lars, larc: the share of its own norm by which a tensor moves at a rate of 1
    trust_eps           lars, larc: added to the norm of the gradient
    trust_clip          larc: limit a tensor's rate to ``lr`` (apex's ``clip``). False: multiply ``lr``, as the code
                        of SwAV and JSSL does, with ``trust_undecayed: true``
    trust_undecayed     lars, larc: norms and biases, which do not decay, adapt too, as in apex
    """

    name: Literal["sgd", "adam", "adamw", "lars", "larc"] = "adamw"
    lr: float = Field(gt=0)
    final_lr: float = Field(default=0.0, ge=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup: WarmUp = "above_zero"
    schedule: Literal["cosine", "constant", "step", "poly"] = "cosine"
    milestone_epochs: Annotated[tuple[Epoch, ...], ADDED] = ()
    milestone_factor: Annotated[float, ADDED] = Field(default=0.1, gt=0, lt=1)
    poly_power: Annotated[float, ADDED] = Field(default=0.9, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    final_weight_decay: Annotated[float | None, ADDED] = Field(default=None, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    amsgrad: Annotated[bool, ADDED] = False
    trust_coefficient: Annotated[float, ADDED] = Field(default=0.001, gt=0)
    trust_eps: Annotated[float, ADDED] = Field(default=1e-8, ge=0)
    trust_clip: Annotated[bool, ADDED] = True
    trust_undecayed: Annotated[bool, ADDED] = False
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> "Optimiser":
        """Refuse a value that nothing reads; a default may be written out, as resolved configs do."""
        for field, (decider, readers) in READ_BY.items():
            value, default = getattr(self, field), type(self).model_fields[field].default
            chosen = getattr(self, decider)
            if chosen not in readers and value != default:
                raise ValueError(
                    f"{field} {_written(value)} belongs to {decider} {' or '.join(readers)}; {decider} is {chosen}: "
                    f"leave {field} at its default {_written(default)}, or change {decider}"
                )
        return self

    @model_validator(mode="after")
    def _decays(self) -> "Optimiser":
        if self.final_lr > self.lr:
            raise ValueError(
                f"final_lr {self.final_lr:g} is above lr {self.lr:g}; the rate falls from lr to final_lr: lower "
                "final_lr, or raise lr"
            )
        return self

    @model_validator(mode="after")
    def _milestones_follow_each_other(self) -> "Optimiser":
        if self.schedule != "step":
            return self
        milestones = self.milestone_epochs
        if not milestones or any(first >= second for first, second in pairwise(milestones)):
            raise ValueError(
                f"milestone_epochs {_written(milestones)}: schedule step needs one or more epochs in rising order, "
                "such as [48, 66]"
            )
        if milestones[0] < self.warmup_epochs:
            raise ValueError(
                f"milestone_epochs {_written(milestones)}: the first lies inside the warm-up of "
                f"{self.warmup_epochs:g} epochs; move it, or lower warmup_epochs"
            )
        return self


def _written(value: object) -> str:
    """Write a value as an experiment's file does."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
