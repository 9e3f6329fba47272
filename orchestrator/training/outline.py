"""Outline: a network without weights, and views without values, for checks and estimates by sizes alone."""

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from data.views.batch import Batch
from methods.base import Facts, Method, Views
from methods.encoders import ENCODERS, Encoder
from methods.parts.shares import set_share
from orchestrator.config.parts import TRAINABLE, EncoderConfig, StageMethodConfig

MOST_KEPT = 64
# Networks without weights that this process has built: rows of a table have few different ones.
_BUILT: dict[Hashable, Any] = {}

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def _without_weights() -> Generator[None]:
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
    """Return an encoder without weights, to be read."""
    return outline(("encoder", config), lambda: ENCODERS[config.name](config))


def outline_method(config: StageMethodConfig, encoder: EncoderConfig, facts: Facts) -> Method:
    """Return a method without weights on an encoder without weights, to be read."""
    key = ("method", config.model_dump_json(), encoder, repr(facts))
    return outline(key, lambda: _without_shares(TRAINABLE[config.name](config, deepcopy(outline_of(encoder)), facts)))


def _without_shares(method: Method) -> Method:
    """Leave a method's shares without values: they grow with the number of samples, and copies would fill memory."""
    for name in method.shares:
        set_share(method, name, method.get_buffer(name).to("meta"))
    return method


def outline(key: Hashable, build: Callable[[], Network]) -> Network:
    """Return the network that ``key`` stands for, without weights; it is built once, and copied before a change."""
    if key not in _BUILT:
        if len(_BUILT) == MOST_KEPT:
            _BUILT.clear()
        with _without_weights():
            _BUILT[key] = build()
    return _BUILT[key]


def outline_views(method: Method, batch: Batch, seed: int) -> Views:
    """Return a batch's views without values."""
    views = method.drawn(batch, batch.rng(seed))
    return replace(
        views,
        images=tuple(image.to("meta") for image in views.images),
        targets={name: target.to("meta") for name, target in views.targets.items()},
        rows=None if views.rows is None else views.rows.to("meta"),
    )
