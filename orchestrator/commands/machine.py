"""Commands on this installation: doctor (also of a run), methods, schema."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from orchestrator.commands.console import FAILED, loading, out
from orchestrator.commands.usage import Commands
from orchestrator.terminal.console import as_called
from orchestrator.terminal.progress import phase

app = Commands()
_OF_A_RUN = "folder of a pretraining or a fine-tuning; without it, this machine is checked"


@app.command()
def doctor(
    run: Annotated[Path | None, Argument(metavar="RUN", help=_OF_A_RUN, show_default=False)] = None,
    home: Annotated[Path, Option(help="folder of the runs")] = Path("runs"),
) -> int:
    """Check this machine, or explain a run whose loss is flat or odd."""
    return _diagnose(run) if run else _examine(home)


def _diagnose(run: Path) -> int:
    """Say what is wrong with a run, a line for each cause; one line for a training where nothing is."""
    with loading():
        from orchestrator.diagnosis.diagnosis import diagnose

    with phase("looking at the run's history, samples and weights"):
        found = diagnose(run)
    for one in found:
        for cause in one.causes:
            _say(f"{one.name}: {as_called(str(cause))}")
        if one.unseen:
            _say(f"{one.name}: not looked at: {one.unseen}")
        _say(f"{one.name}: {'' if one.causes else 'nothing found; '}looked at {one.seen}")
    if not found:
        _say("nothing was trained: scratch leaves the encoder as it was drawn")
    return FAILED if any(one.causes or one.unseen for one in found) else 0


def _say(text: str) -> None:
    out.print(text, soft_wrap=True, highlight=False, markup=False)


def _examine(home: Path) -> int:
    """Show each check of this machine with its remedy."""
    from orchestrator.machine.doctor import examine

    findings = examine(home)
    table = Table("", "subject", "found", "to do")
    for finding in findings:
        table.add_row(
            "ok" if finding.well else "[red]--[/red]", finding.subject, finding.found, as_called(finding.remedy)
        )
    out.print(table)
    return 0 if all(finding.well for finding in findings) else FAILED


@app.command()
def methods(as_json: Annotated[bool, Option("--json", help="print JSON")] = False) -> None:
    """List methods, encoders, downstream tasks and recipes."""
    from orchestrator.machine.catalogue import catalogue

    kinds = catalogue()
    if as_json:
        sys.stdout.write(json.dumps(kinds, indent=2) + "\n")
        return
    networks = kinds.pop("networks")
    for kind, entries in kinds.items():
        table = Table("name", "what it is", "fields and defaults", title=kind, title_justify="left")
        for entry in entries:
            fields = "\n".join(f"{name} = {value}" for name, value in entry["fields"].items())
            table.add_row(entry["name"], entry["about"], fields)
        out.print(table, highlight=False)
    out.print(_sizes(kinds["methods"]), highlight=False)
    out.print(_networks(networks), highlight=False)


def _sizes(methods: list[dict[str, Any]]) -> Table:
    """Return the parameters that methods train at their papers' sizes, in one row if variants agree."""
    variants: dict[tuple[str, ...], list[str]] = {}
    for method in methods:
        for entry in method["parameters"]:
            images = f"{entry['images']} ({entry['spatial_dims']}D, {entry['in_channels']} ch.)"
            encoder = f"{entry['network']} {entry['encoder']:,}"
            heads = "\n".join(f"{name} {count:,}" for name, count in entry["heads"].items())
            variants.setdefault((method["name"], images, encoder, heads), []).append(entry["variant"])
    title = "trainable parameters at the papers' sizes"
    table = Table("method", "variants", "trained on", "encoder", "heads", title=title, title_justify="left")
    for (name, *cells), which in variants.items():
        table.add_row(name, ", ".join(which), *cells)
    return table


def _networks(networks: list[dict[str, Any]]) -> Table:
    """Return the parameters of papers' classifiers, and their multiply-adds for one image."""
    table = Table("network", "images", "parameters", "multiply-adds", title_justify="left")
    table.title = "papers' classifiers: parameters, and multiply-adds for one image"
    for network in networks:
        images = f"{' x '.join(map(str, network['size']))}, {network['in_channels']} ch."
        table.add_row(
            network["name"], images, f"{network['parameters']:,}", f"{network['multiply_adds'] / 1e9:.2f} G"
        )
    return table


@app.command("schema")
def _schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from orchestrator.config.files import schema

    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
