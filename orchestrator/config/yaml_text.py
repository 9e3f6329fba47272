"""YAML text, parsed by libyaml where PyYAML was built with it: ten times as fast as PyYAML's own parser."""

from typing import Any

import yaml

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parsed(text: str) -> Any:
    """Return the value of a YAML document of plain values; raise yaml.YAMLError for what is not one."""
    return yaml.load(text, Loader=_Loader)
