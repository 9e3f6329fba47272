"""Tests. While they run, jaxtyping has types and shapes checked by ``checked``, in all packages (pyproject.toml)."""

from collections.abc import Callable
from functools import wraps
from inspect import isfunction
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype

Subject = TypeVar("Subject")

# An int may stand where a float is annotated, as pyright has it.
_checks = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(subject: Subject) -> Subject:
    """Return a function or a class with its annotations checked.

    A function's checks are written when it is first called: most of those that a process imports, it never calls.
    """
    return _at_first_call(subject) if isfunction(subject) else _checks(subject)


def _at_first_call(function: Callable[..., Any]) -> Any:
    with_checks: list[Callable[..., Any]] = []

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not with_checks:
            with_checks.append(_checks(function))
        return with_checks[0](*args, **kwargs)

    return called
