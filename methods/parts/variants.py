"""Variants: named sets of flags that fill in the fields missing from a config."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator


def with_flags(fields: Any, variants: Mapping[str, Mapping[str, Any]], default: str = "paper") -> Any:
    """Return a config's fields; missing ones, also nested ones, come from the flags of its ``variant``.

    Fields that are not a mapping, or that name no variant, are left for pydantic to refuse.
    """
    if not isinstance(fields, dict):
        return fields
    flags = variants.get(fields.get("variant", default), {})
    merged = {
        name: {**flag, **fields[name]}
        for name, flag in flags.items()
        if isinstance(flag, dict) and isinstance(fields.get(name), dict)
    }
    return {**flags, **fields, **merged}


def completed_by(variants: Mapping[str, Mapping[str, Any]], default: str = "paper") -> Any:
    """Return the validator of a config whose missing fields come from the flags of its ``variant``.

    It is assigned in the config's body.
    """

    def complete(cls: Any, fields: Any) -> Any:
        return with_flags(fields, variants, default)

    return model_validator(mode="before")(complete)
