"""YAML text, parsed by libyaml where PyYAML was built with it: ten times as fast as PyYAML's own parser."""

from typing import Any

import yaml

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _EachKeyOnce(_Loader):
    """Refuse a mapping that has a key twice, of which YAML's own loaders keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if line := lines.get((key.tag, key.value)):
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands here and in line {line}, expected it once; delete one of the two",
                    problem_mark=key.start_mark,
                )
            lines[key.tag, key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def parsed(text: str) -> Any:
    """Return the value of a YAML document of plain values; raise yaml.YAMLError for what is not one."""
    return yaml.load(text, Loader=_EachKeyOnce)
