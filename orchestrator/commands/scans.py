"""Commands on scans and shards: phantom, ingest, shards."""

import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo
from rich.table import Table
from typer import Argument, Option

from data.phantoms import cohorts
from data.sources import LAYOUTS, SourceOptions
from orchestrator.commands.console import FAILED, loading, out, say_next
from orchestrator.commands.usage import Commands
from orchestrator.terminal import progress

app = Commands()
_LAYOUTS_HELP = (
    "how the source is organised: volumes (files of volumes), nnunet (imagesTr, labelsTr, dataset.json), dicom "
    "(series, in any folders), class_folders (a folder for each class), csv (a table of image files), npz "
    "(arrays, as MedMNIST has them), coco (pictures with boxes in JSON), voc (pictures with boxes in XML), "
    "deeplesion (its table and 16-bit slices)"
)
_EXAMPLES = """\b
Examples:
  raydiology ingest --source scans --layout nnunet --modality CT --recipe ct_abdomen_slices --out shards/abdomen
  raydiology ingest --source trial --layout volumes --images '*/ct.nii.gz' --labels '*/tumour.nii.gz' \\
    --patient-pattern '^[^/]+' --recipe ct_volume --out shards/trial
  raydiology ingest --source films --layout csv --image-column Path --label-column Finding --recipe xray \\
    --out shards/films"""
# The options of `raydiology ingest` for each kind of phantom.
_PHANTOMS = {
    "abdomen": "--layout nnunet --recipe ct_volume",
    "brain": "--layout nnunet --recipe mri_brain",
    "fundus": "--layout csv --recipe fundus",
    "chest": "--layout csv --recipe xray",
    "nodules": "--layout csv --modality CT --recipe ct_volume",
    "photographs": "--layout csv --recipe natural",
}


@app.command()
def phantom(
    *,
    kind: Annotated[cohorts.Kind, Option(help="what to write")] = "abdomen",
    target: Annotated[str, Option("--out", help="folder to write")],
    labelled: Annotated[int, Option(help="patients with labels")] = 12,
    unlabelled: Annotated[int, Option(help="patients without labels")] = 12,
    seed: Annotated[int, Option(help="other seeds write other patients")] = 0,
) -> None:
    """Write a synthetic cohort: CT, MR, photographs or X-rays."""
    with progress.phase(f"drawing {labelled + unlabelled} phantoms"):
        cohorts.write(kind, target, labelled, unlabelled, seed)
    out.print(f"{labelled} labelled and {unlabelled} unlabelled phantoms in {target}")
    if kind == "photographs":
        out.print("for the boxes of their objects instead of their classes: --layout coco --modality NATURAL")
    shards = str(Path("shards") / Path(target).resolve().name)
    say_next(f"raydiology ingest --source {shlex.quote(target)} {_PHANTOMS[kind]} --out {shlex.quote(shards)}")


def _value(text: str) -> Any:
    from orchestrator.config.yaml_text import parsed

    return parsed(text)


def _recipes() -> list[str]:
    from data.recipes import RECIPES

    return list(RECIPES)


def _modalities() -> list[str]:
    from data.recipes import RECIPES

    return sorted({recipe.modality for recipe in RECIPES.values() if recipe.modality})


# The fields of an ingest, beside the options of its layout: their types and meanings.
_FIELDS: dict[str, tuple[Any, str]] = {
    "source": (str, "folder of scans, or s3://bucket/folder"),
    "layout": (Literal[tuple(sorted(LAYOUTS))], _LAYOUTS_HELP),
    "recipe": (str, "preprocessing by name; `raydiology methods` lists the recipes"),
    "out": (str, "folder of the shards, or s3://bucket/folder"),
    "val_fraction": (float, "share of patients held out for validation (default: 0.2)"),
    "test_fraction": (float, "share of patients held out for testing (default: 0)"),
    "seed": (int, "seed of splits and mixing (default: 0)"),
    "max_bad": (float, "fail above this share of bad studies (default: 0.1)"),
    "strict": (bool, "stop at the first bad study"),
    "overwrite": (bool, "replace shards of another source or recipe"),
    "keep_names": (bool, "keep file names in the quarantine list"),
}
_TYPES = {
    "rescale": tuple[float, float],
    "label_columns": list[str],
    "box_columns": list[str],
    "boxes": Literal["planes", "volumes"],
    "box_min_voxels": int,
    "box_labels": list[int],
    "secondary_captures": bool,
    "uncertain": SourceOptions.model_fields["uncertain"].annotation,
}
_DETAILS: dict[str, dict[str, Any]] = {
    "recipe": {"autocompletion": _recipes},
    "modality": {"autocompletion": _modalities},
    "rescale": {"metavar": "SLOPE INTERCEPT"},
    "label_names": {"parser": _value},
    "label_columns": {"metavar": "COLUMN..."},
    "box_columns": {"metavar": "COLUMN..."},
    "box_labels": {"metavar": "VALUE..."},
}


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield the fields of an ingest and the options of the layouts, as parameters of its command."""
    options = {
        name: (_TYPES.get(name, str), _option_help(name, field)) for name, field in SourceOptions.model_fields.items()
    }
    for name, (kind, help_) in {**_FIELDS, **options}.items():
        option = Option(f"--{name.replace('_', '-')}", help=help_, **_DETAILS.get(name, {}))
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
        )


def _option_help(name: str, field: FieldInfo) -> str:
    """Explain an option of the layouts: its meaning, the layouts that take it, and its default."""
    layouts = SourceOptions.layouts(name)
    taken = "all layouts" if set(layouts) == set(LAYOUTS) else ", ".join(layouts)
    default = f"; default: {field.default}" if field.default else ""
    return f"{field.description} ({taken}{default})"


def _ingest(
    *,
    config: Annotated[
        str | None, Option(help="YAML file with these options, and with further sources under also:")
    ] = None,
    changes: Annotated[
        list[str] | None,
        Option("--set", metavar="FIELD=VALUE", help="change a field of the recipe; may be repeated"),
    ] = None,
    **fields: Any,
) -> int:
    """Read scans once and write them as shards.

    The options from --dataset on say how studies are found; each names the layouts that take it.
    """
    with loading():
        from orchestrator.ingest.request import load
        from orchestrator.ingest.run import ingest

    report = ingest(load(_asked(changes, fields), config))
    out.print(report.summary(), soft_wrap=True, highlight=False, markup=False)
    if report.shards is None:
        return FAILED
    shards = shlex.quote(report.config.out)
    say_next(f"raydiology init {shards}" + (f" --labelled {shards}" if report.shards.is_labelled else ""))
    return 0


_CONFIG, _CHANGES, _ = inspect.signature(_ingest).parameters.values()
_SOURCE, _LAYOUT, _RECIPE, _OUT, *_FURTHER = _parameters()
_ingest.__signature__ = inspect.Signature([_CONFIG, _SOURCE, _LAYOUT, _RECIPE, _OUT, _CHANGES, *_FURTHER])
app.command("ingest", epilog=_EXAMPLES)(_ingest)


def _asked(changes: list[str] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that a command line gives, those of the layout as ``options``."""
    given = {name: value for name, value in fields.items() if value is not None}
    options = {name: given.pop(name) for name in SourceOptions.model_fields if name in given}
    if options:
        given["options"] = options
    if changes:
        given["changes"] = dict(_assignment(text) for text in changes)
    return given


def _assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected FIELD=VALUE, such as spacing_mm='[2,2,2]'")
    return name, _value(value)


@app.command()
def shards(
    action: Annotated[
        Literal["show", "verify", "convert"],
        Argument(
            help="show what they hold, read every byte to verify them, or copy those of the format before into --out"
        ),
    ],
    shards: Annotated[str, Argument(help="folder of the shards, or s3://bucket/folder")],
    target: Annotated[
        str | None,
        Option("--out", help="convert: new folder of the converted shards, or s3://bucket/folder"),
    ] = None,
) -> int:
    """Show, verify or convert shards."""
    from data.shards.check import describe, verify
    from data.shards.index import ShardSet

    if (action == "convert") != (target is not None):
        raise ValueError(
            f"shards {action} with --out {target}: expected a new folder for convert, and none for "
            "show and verify; add or leave out --out"
        )
    if target is not None:
        _convert(shards, target)
        return 0
    if action == "show":
        table = Table("", "", show_header=False, box=None)
        table.columns[1].overflow = "fold"
        for line in describe(ShardSet.open(shards)):
            table.add_row(*line)
        out.print(table)
        return 0
    with progress.phase("reading every byte"):
        findings = list(verify(shards))
    for finding in findings:
        out.print(finding, soft_wrap=True, highlight=False, markup=False)
    out.print(f"{len(findings)} findings" if findings else "every byte is as it was written")
    return FAILED if findings else 0


def _convert(shards: str, converted: str) -> None:
    from data.shards.convert import Conversion
    from data.shards.index import ShardSet
    from orchestrator.ingest.conversion import convert

    conversion = Conversion.of(shards)
    with progress.phase("copying shards", len(conversion.files), "shard") as phase:
        for number, _ in enumerate(convert(conversion, converted), 1):
            progress.update(phase, done=number)
    found = ShardSet.open(converted)
    out.print(f"{found.num_samples:,} samples in {converted}", soft_wrap=True, highlight=False, markup=False)
    out.print(f"digest {found.digest}, before {conversion.digest}", soft_wrap=True, highlight=False, markup=False)
