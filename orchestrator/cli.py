"""The command line. Exit codes: 0 done, 1 a run failed, 2 the request cannot work as given, 130 interrupted."""

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console

from data.shards import ShardError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130

out = Console()
err = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; turn what can go wrong into one message in words and an exit code."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    from orchestrator.launch import RunError

    try:
        return run(arguments) or 0
    except RunError as error:
        err.print(f"[red]{arguments.command}: {error}[/red]", highlight=False)
        return FAILED
    except (ValueError, ShardError, FileNotFoundError) as error:
        err.print(f"[red]{arguments.command}: {error}[/red]", highlight=False)
        return REFUSED
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raydiology", description="Pretrain on medical images, and find out which pretraining was worth it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ingest(commands)
    _add_shards(commands)
    _add_phantom(commands)
    _add_experiment(commands, "pretrain", "pretrain an encoder", _pretrain)
    _add_experiment(
        commands, "finetune", "fine-tune a pretrained encoder on the experiment's downstream task", _finetune
    )
    _add_table(commands)
    _add_export(commands)
    ui = _add(commands, "ui", "open MLflow's page on the runs of a home", _ui)
    ui.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    ui.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    doctor = _add(commands, "doctor", "check this machine: packages, Ray, MLflow, devices", _doctor)
    doctor.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    methods = _add(commands, "methods", "list methods, encoders and recipes", _methods)
    methods.add_argument("--json", action="store_true", help="print JSON")
    _add(commands, "schema", "print the JSON Schema of experiment files", _schema)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, help_: str, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_experiment(commands: argparse._SubParsersAction, name: str, help_: str, run: Callable) -> None:
    parser = _add(commands, name, help_, run)
    parser.add_argument("experiment", help="YAML file, see experiments/")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="such as method.crops.iou='[0.3,0.6]'")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and what it would need")


def _pretrain(arguments: argparse.Namespace) -> int | None:
    from orchestrator import config, estimate
    from orchestrator.pretrain import pretrain

    experiment = config.load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(estimate.describe(experiment))
        return None
    result = pretrain(experiment)
    out.print(f"encoder: {result.folder / 'encoder'}", soft_wrap=True)
    return None


def _finetune(arguments: argparse.Namespace) -> int | None:
    from orchestrator import config, estimate
    from orchestrator.finetune import finetune
    from orchestrator.pretrain import pretrain

    experiment = config.load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(estimate.describe(experiment))
        return None
    result = finetune(experiment, pretrain(experiment))
    for name, value in sorted(result.scores.items()):
        out.print(f"{name:32} {value:.4f}")
    out.print(f"network: {result.folder / 'network'}", soft_wrap=True)
    return None
