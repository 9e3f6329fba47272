"""The help of every command says what each of its arguments is."""

import pytest

from data.sources import LAYOUTS, SourceOptions
from orchestrator.commands.parser import commands


@pytest.mark.parametrize("name", commands())
def test_each_argument_of_a_command_is_explained(name: str) -> None:
    assert [param.name for param in commands()[name].params if len((param.help or "").split()) < 2] == []


def test_an_option_of_a_layout_names_the_layouts_that_take_it_and_its_default() -> None:
    helps = {param.name: param.help or "" for param in commands()["ingest"].params}
    assert all(layout in helps["layout"] for layout in LAYOUTS)
    for name in SourceOptions.model_fields:
        layouts = SourceOptions.layouts(name)
        assert ("(all layouts" if len(layouts) == len(LAYOUTS) else f"({', '.join(layouts)}") in helps[name]
    assert helps["image_column"].endswith("(csv; default: file)")
    assert helps["uncertain"].endswith("(csv; default: negative)")
