"""Outline: a network without weights, and views without values, for checks and estimates by sizes alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from methods import METHODS
from methods.base import Method, Views
from methods.encoders import ENCODERS, Encoder
from orchestrator.config import EncoderConfig, MethodConfig


@contextmanager
def outlines() -> Iterator[None]:
    """Have networks that are built in the body hold parameters without values; buffers stay as they are."""
    # torch registers what the hook returns; its annotation says None.
    hook = register_module_parameter_registration_hook(_without_values)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        hook.remove()


def _without_values(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def outline_of(config: EncoderConfig) -> Encoder:
    """Return an encoder without weights; building one takes seconds, copying one does not."""
    return deepcopy(_built(config))  # pyright: ignore[reportArgumentType]  # frozen configs have a hash


@lru_cache(maxsize=32)
def _built(config: EncoderConfig) -> Encoder:
    with outlines():
        return ENCODERS[config.name](config)


def outline_method(config: MethodConfig, encoder: EncoderConfig) -> Method:
    """Return a method without weights on an encoder without weights."""
    with outlines():
        return METHODS[config.name](config, outline_of(encoder))


def outline_views(views: Views) -> Views:
    """Return views of the same sizes without values."""
    return replace(
        views,
        images=tuple(image.to("meta") for image in views.images),
        targets={name: target.to("meta") for name, target in views.targets.items()},
    )
