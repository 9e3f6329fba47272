"""Commands on scans and shards: phantom, ingest, shards."""

import argparse

import yaml
from rich.table import Table

from data.sources import LAYOUTS, SourceOptions
from orchestrator.commands.console import FAILED, Commands, add_command, err, out

_INGEST_FIELDS = ("source", "layout", "recipe", "out", "val_fraction", "test_fraction", "seed", "max_bad", "strict",
                  "overwrite", "keep_names")  # fmt: skip
_UNUSUAL_OPTIONS = {
    "rescale": {"nargs": 2, "type": float},
    "label_names": {"type": yaml.safe_load},
    "label_columns": {"nargs": "+"},
}
# What `raydiology ingest` is told of each kind of phantom.
_PHANTOMS = {
    "abdomen": "--layout nnunet --recipe ct_volume",
    "brain": "--layout nnunet --recipe mri_brain",
    "fundus": "--layout csv --recipe fundus --patient-column patient",
    "chest": "--layout csv --recipe xray --patient-column patient",
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
    parser.add_argument("--unlabelled", type=int, default=12, help="patients without (default: 12)")
    parser.add_argument("--seed", type=int, default=0)


def _phantom(arguments: argparse.Namespace) -> None:
    from data.phantom import write_cohort
    from data.phantom_brain import write_brains
    from data.phantom_pictures import write_films, write_fundus

    writers = {"abdomen": write_cohort, "brain": write_brains, "fundus": write_fundus, "chest": write_films}
    writers[arguments.kind](arguments.out, arguments.labelled, arguments.unlabelled, seed=arguments.seed)
    out.print(f"{arguments.labelled} labelled and {arguments.unlabelled} unlabelled phantoms in {arguments.out}")
    command = f"raydiology ingest --source {arguments.out} {_PHANTOMS[arguments.kind]} --out SHARDS"
    out.print(f"read them by: {command}", soft_wrap=True, highlight=False, markup=False)


def _add_ingest(commands: Commands) -> None:
    parser = add_command(commands, "ingest", "read scans once and write them as shards", _ingest)
    parser.add_argument("--config", help="YAML file with these options, and with further sources under also:")
    parser.add_argument("--source", help="folder, or s3://bucket/folder")
    parser.add_argument("--layout", choices=sorted(LAYOUTS))
    parser.add_argument("--recipe", help="preprocessing by name, see `raydiology methods`")
    parser.add_argument("--out", help="folder of the shards, or s3://bucket/folder")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe's field")
    parser.add_argument("--val-fraction", type=float, help="patients held out for validation (default: 0.2)")
    parser.add_argument("--test-fraction", type=float, help="patients held out for testing (default: 0)")
    parser.add_argument("--seed", type=int, help="seed of splits and mixing (default: 0)")
    parser.add_argument("--max-bad", type=float, help="fail above this share of bad studies (default: 0.1)")
    parser.add_argument("--strict", action="store_true", default=None, help="stop at the first bad study")
    parser.add_argument(
        "--overwrite", action="store_true", default=None, help="replace shards of another source or recipe"
    )
    parser.add_argument(
        "--keep-names", action="store_true", default=None, help="keep file names in the quarantine list"
    )
    layout = parser.add_argument_group("how studies are found; see data/sources/study.py")
    for name, field in SourceOptions.model_fields.items():
        many = _UNUSUAL_OPTIONS.get(name, {})
        shown = f"default: {field.default}" if field.default else ""
        layout.add_argument(f"--{name.replace('_', '-')}", help=shown, **many)


def _ingest(arguments: argparse.Namespace) -> int:
    from orchestrator.ingest import ingest
    from orchestrator.ingest_request import load

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    options = {name: given[name] for name in SourceOptions.model_fields if name in given}
    asked = {name: given[name] for name in _INGEST_FIELDS if name in given}
    if options:
        asked["options"] = options
    if arguments.set:
        asked["changes"] = dict(_assignment(text) for text in arguments.set)
    report = ingest(load(asked, arguments.config), err)
    out.print(report.summary(), soft_wrap=True, highlight=False, markup=False)
    return FAILED if report.too_many_bad else 0


def _assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected FIELD=VALUE, such as spacing_mm='[2,2,2]'")
    return name, yaml.safe_load(value)


def _add_shards(commands: Commands) -> None:
    parser = add_command(commands, "shards", "show or verify shards", _shards)
    parser.add_argument("action", choices=("show", "verify"))
    parser.add_argument("shards", help="folder of the shards, or s3://bucket/folder")


def _shards(arguments: argparse.Namespace) -> int:
    from data.shardcheck import describe, verify
    from data.shardset import ShardSet

    if arguments.action == "show":
        table = Table("", "", show_header=False, box=None)
        table.columns[1].overflow = "fold"
        for line in describe(ShardSet.open(arguments.shards)):
            table.add_row(*line)
        out.print(table)
        return 0
    findings = list(verify(arguments.shards))
    for finding in findings:
        out.print(finding, soft_wrap=True, highlight=False, markup=False)
    out.print(f"{len(findings)} findings" if findings else "every byte is as it was written")
    return FAILED if findings else 0
