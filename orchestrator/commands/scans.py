"""Commands on scans and shards: phantom, ingest, shards."""

import argparse
import shlex
from pathlib import Path
from typing import get_args

import yaml
from pydantic.fields import FieldInfo
from rich.table import Table

from data.sources import LAYOUTS, SourceOptions
from orchestrator.commands.console import FAILED, Commands, add_command, loading, out, say_next
from orchestrator.terminal import progress

_INGEST_FIELDS = ("source", "layout", "recipe", "out", "val_fraction", "test_fraction", "seed", "max_bad", "strict",
                  "overwrite", "keep_names")  # fmt: skip
_UNUSUAL_OPTIONS = {
    "rescale": {"nargs": 2, "type": float, "metavar": ("SLOPE", "INTERCEPT")},
    "label_names": {"type": yaml.safe_load},
    "label_columns": {"nargs": "+", "metavar": "COLUMN"},
    "secondary_captures": {"action": "store_true", "default": None},
    "uncertain": {"choices": get_args(SourceOptions.model_fields["uncertain"].annotation)},
}
_LAYOUTS_HELP = (
    "how the source is organised: volumes (files of volumes), nnunet (imagesTr, labelsTr, dataset.json), dicom "
    "(series, in any folders), class_folders (a folder for each class), csv (a table of image files), npz "
    "(arrays, as MedMNIST has them)"
)
_EXAMPLE = """examples:
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
}


def add(commands: Commands) -> None:
    """Add these commands."""
    _add_phantom(commands)
    _add_ingest(commands)
    _add_shards(commands)


def _add_phantom(commands: Commands) -> None:
    parser = add_command(
        commands,
        "phantom",
        "write a synthetic cohort: abdominal CT or brain MR with labels, pictures with classes",
        _phantom,
    )
    parser.add_argument("--kind", choices=list(_PHANTOMS), default="abdomen", help="what to write (default: abdomen)")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--labelled", type=int, default=12, help="patients with labels (default: 12)")
    parser.add_argument("--unlabelled", type=int, default=12, help="patients without labels (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds write other patients (default: 0)")


def _phantom(arguments: argparse.Namespace) -> None:
    from data.phantoms.abdomen import write_cohort
    from data.phantoms.brain import write_brains
    from data.phantoms.pictures import write_films, write_fundus

    writers = {"abdomen": write_cohort, "brain": write_brains, "fundus": write_fundus, "chest": write_films}
    with progress.phase(f"drawing {arguments.labelled + arguments.unlabelled} phantoms"):
        writers[arguments.kind](arguments.out, arguments.labelled, arguments.unlabelled, seed=arguments.seed)
    out.print(f"{arguments.labelled} labelled and {arguments.unlabelled} unlabelled phantoms in {arguments.out}")
    shards = str(Path("shards") / Path(arguments.out).resolve().name)
    source = shlex.quote(arguments.out)
    say_next(f"raydiology ingest --source {source} {_PHANTOMS[arguments.kind]} --out {shlex.quote(shards)}")


def _add_ingest(commands: Commands) -> None:
    parser = add_command(commands, "ingest", "read scans once and write them as shards", _ingest)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLE
    parser.add_argument("--config", help="YAML file with these options, and with further sources under also:")
    parser.add_argument("--source", help="folder of scans, or s3://bucket/folder")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help=_LAYOUTS_HELP)
    parser.add_argument("--recipe", help="preprocessing by name; `raydiology methods` lists the recipes")
    parser.add_argument("--out", help="folder of the shards, or s3://bucket/folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe; may be repeated",
    )
    parser.add_argument("--val-fraction", type=float, help="share of patients held out for validation (default: 0.2)")
    parser.add_argument("--test-fraction", type=float, help="share of patients held out for testing (default: 0)")
    parser.add_argument("--seed", type=int, help="seed of splits and mixing (default: 0)")
    parser.add_argument("--max-bad", type=float, help="fail above this share of bad studies (default: 0.1)")
    parser.add_argument("--strict", action="store_true", default=None, help="stop at the first bad study")
    parser.add_argument(
        "--overwrite", action="store_true", default=None, help="replace shards of another source or recipe"
    )
    parser.add_argument(
        "--keep-names", action="store_true", default=None, help="keep file names in the quarantine list"
    )
    group = parser.add_argument_group("how studies are found", "Each option names the layouts that take it.")
    for name, field in SourceOptions.model_fields.items():
        many = _UNUSUAL_OPTIONS.get(name, {})
        group.add_argument(f"--{name.replace('_', '-')}", help=_option_help(name, field), **many)


def _option_help(name: str, field: FieldInfo) -> str:
    """Explain an option of the layouts: its meaning, the layouts that take it, and its default."""
    layouts = SourceOptions.layouts(name)
    taken = "all layouts" if set(layouts) == set(LAYOUTS) else ", ".join(layouts)
    default = f"; default: {field.default}" if field.default else ""
    return f"{field.description} ({taken}{default})"


def _ingest(arguments: argparse.Namespace) -> int:
    with loading():
        from orchestrator.ingest.request import load
        from orchestrator.ingest.run import ingest

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    options = {name: given[name] for name in SourceOptions.model_fields if name in given}
    asked = {name: given[name] for name in _INGEST_FIELDS if name in given}
    if options:
        asked["options"] = options
    if arguments.set:
        asked["changes"] = dict(_assignment(text) for text in arguments.set)
    report = ingest(load(asked, arguments.config))
    out.print(report.summary(), soft_wrap=True, highlight=False, markup=False)
    if report.shards is None:
        return FAILED
    shards = shlex.quote(report.config.out)
    say_next(f"raydiology init {shards}" + (f" --labelled {shards}" if report.shards.is_labelled else ""))
    return 0


def _assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected FIELD=VALUE, such as spacing_mm='[2,2,2]'")
    return name, yaml.safe_load(value)


def _add_shards(commands: Commands) -> None:
    parser = add_command(commands, "shards", "show, verify or convert shards", _shards)
    parser.add_argument(
        "action",
        choices=("show", "verify", "convert"),
        help="show what they hold, read every byte to verify them, or copy those of the format before into --out",
    )
    parser.add_argument("shards", help="folder of the shards, or s3://bucket/folder")
    parser.add_argument("--out", help="convert: new folder of the converted shards, or s3://bucket/folder")


def _shards(arguments: argparse.Namespace) -> int:
    from data.shards.check import describe, verify
    from data.shards.index import ShardSet

    if (arguments.action == "convert") != (arguments.out is not None):
        raise ValueError(
            f"shards {arguments.action} with --out {arguments.out}: expected a new folder for convert, and none for "
            "show and verify; add or leave out --out"
        )
    if arguments.action == "convert":
        _convert(arguments.shards, arguments.out)
        return 0
    if arguments.action == "show":
        table = Table("", "", show_header=False, box=None)
        table.columns[1].overflow = "fold"
        for line in describe(ShardSet.open(arguments.shards)):
            table.add_row(*line)
        out.print(table)
        return 0
    with progress.phase("reading every byte"):
        findings = list(verify(arguments.shards))
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
