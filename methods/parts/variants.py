"""Variants: named sets of flags, which fill in the fields of a config that are not given."""

from collections.abc import Mapping
from typing import Any


def with_flags(fields: Any, variants: Mapping[str, Mapping[str, Any]], default: str = "paper") -> Any:
    """Return a config's fields with the flags of its ``variant`` where they are not given, nested ones one by one.

    What is not a mapping, or names no variant, is left for pydantic to refuse.
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
