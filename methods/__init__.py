"""Pretraining methods, one file each: how to draw views and compute the loss. No Ray, no files, no logging.

A file is named as its method: ``methods/voco.py`` holds the class whose ``Config`` has the name ``voco``. Nothing
else registers it.
"""

from collections.abc import Iterator
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from methods import lean_monai
from methods.base import Method


def _found() -> Iterator[tuple[str, type[Method]]]:
    """Yield the method of each file of this folder that holds one, by its name."""
    for file in iter_modules(__path__):
        if file.ispkg:
            continue
        module = import_module(f"{__name__}.{file.name}")
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Method)]
        for kind in kinds:
            if kind.__module__ == module.__name__ and "Config" in vars(kind) and not isabstract(kind):
                yield kind.Config.model_fields["name"].default, kind


lean_monai.install()

METHODS: dict[str, type[Method]] = dict(_found())
