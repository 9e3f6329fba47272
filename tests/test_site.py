"""The site's generated pages: every field and every command is on them, and says what it is."""

import re
import sys

import pytest

from methods import METHODS
from methods.downstream import TASKS
from methods.encoders import ENCODERS
from orchestrator import cli
from orchestrator.config.experiment import Experiment
from orchestrator.config.optimiser import Optimiser
from orchestrator.config.parts import Budget
from orchestrator.ingest.request import IngestConfig
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.tables.grid import TableConfig
from tests.documents import DOCS

sys.path.append(str(DOCS))

from extension import commands, fields, markup

PAGES = fields.pages()
ROWS = [line for page in PAGES.values() for line in page.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("experiment", Experiment),
        ("table", TableConfig),
        ("sweep", SweepConfig),
        ("ingest", IngestConfig),
        *(("methods", kind.Config) for kind in METHODS.values()),
        *(("encoders", kind.Config) for kind in ENCODERS.values()),
        *(("tasks", kind.Config) for kind in TASKS.values()),
    ],
)
def test_each_field_of_a_file_and_of_all_that_it_holds_is_on_a_page(page: str, model: fields.Model) -> None:
    for inner in fields.models_of(model):
        (own,) = [text for text in PAGES.values() if f"({fields.anchor_of(inner)})=" in text]
        section = own.partition(f"({fields.anchor_of(inner)})=")[2].partition("\n(fields-")[0]
        named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert named == list(fields.shown(inner)), inner
    assert f"({fields.anchor_of(model)})=" in PAGES[f"fields/{page}"]


def test_each_field_says_what_it_is() -> None:
    """A new field needs a word in the docstring of its class, or in docs/extension/words.py."""
    assert len(ROWS) > 500
    assert [row for row in ROWS if row.endswith("|  |")] == []


def test_a_row_has_the_type_the_default_the_unit_and_the_meaning_of_its_field() -> None:
    page = PAGES["fields/experiment"]
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert Optimiser.model_fields["warmup_epochs"].default == 0
    assert (
        rows["warmup_epochs"]
        == "| `warmup_epochs` | number, ≥ 0 | `0.0` | epochs | the rate rises to `lr` for so long |"
    )
    assert Budget.model_fields["batch_size"].is_required()
    assert rows["batch_size"] == "| `batch_size` | integer, > 0 | required |  | samples of a step, over all workers |"
    assert rows["max_spacing_mm"].split(" | ")[3] == "mm"


def test_each_command_and_each_of_its_options_is_on_the_page() -> None:
    page = commands.pages()["commands"]
    for name, command in cli.commands().items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        options = {word for param in command.params for word in getattr(param, "opts", ()) if word.startswith("--")}
        assert {word for word in options if f"`{word}`" not in section} - {"--help"} == set(), name
    assert "| `--val-fraction` |" in page


def test_aligned_lists_of_docstrings_become_definitions_and_columns_stay() -> None:
    lines = [
        "A * star.",
        "",
        "name, other   what *it* is,",
        "              and more",
        "Variants:  two.",
        "    x    a     b",
    ]
    docstring = "\n".join(lines)
    assert markup.terms(docstring)["other"] == "what *it* is, and more"
    text = "\n".join(markup.restructured(lines))
    assert "**name, other**\n   what \\*it\\* is,\n   and more" in text
    assert "   ::\n\n       x    a     b" in text
