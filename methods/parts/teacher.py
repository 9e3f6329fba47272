"""Teacher: a copy of a network that takes no gradient and follows it by an exponential moving average.

A teacher that is registered as a submodule is saved and restored with its method.
"""

from copy import deepcopy
from typing import Annotated, TypeVar

import torch
from pydantic import Field, Tag
from torch import nn

from methods.parts.schedule import BY_FORM, Ramp, within

# How much of itself a teacher keeps at each step: a number, or its schedule.
Decay = Annotated[
    Annotated[float, Field(ge=0, lt=1), Tag("number")] | Annotated[Ramp, within(0.0, 1.0), Tag("ramp")], BY_FORM
]

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """Return a copy whose parameters take no gradient."""
    return deepcopy(network).requires_grad_(False)


@torch.no_grad()
def redraw(network: nn.Module) -> None:
    """Give a network new random weights by shuffling the values of each parameter.

    Initial weights of one parameter are independent draws, so every order of them is equally likely; constants,
    such as the scales and biases of norms, stay constant. How a network was initialised need not be known.
    """
    for parameter in network.parameters():
        order = torch.randperm(parameter.numel(), device=parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move each teacher parameter to ``decay`` of itself plus the rest of the student's; leave buffers alone."""
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        own.lerp_(other, 1 - decay)
