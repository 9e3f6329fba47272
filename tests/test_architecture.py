"""Rules of the house that a test can check: where imports point, who may know Ray, what is imported late, names."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "methods", "orchestrator")
FORBIDDEN = {
    "data": {"methods", "orchestrator", "ray", "mlflow", "optuna"},
    "methods": {"orchestrator", "ray", "mlflow", "optuna"},
    "orchestrator": set(),
}
NEVER = {"torchvision", "timm", "lightly"}
# Each takes about as long to import as a worker takes to start.
DEAR = ("monai", "mlflow", "sklearn", "matplotlib.pyplot", "ray.tune")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert _imports(path) & (FORBIDDEN[package] | NEVER) == set()


@pytest.mark.parametrize("module", ["pretrain", "finetune", "ingest_tasks"])
def test_a_run_s_processes_import_what_is_dear_only_where_it_is_used(module: str) -> None:
    code = f"import sys, orchestrator.{module}; print(*(name for name in {DEAR} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == []


# Checkpoints, exports and first experiments are new files; a note is renamed where it is written.
WRITES_IN_PLACE = {"checkpoint.py", "finetune.py", "export.py", "initial.py", "progress.py"}


def test_no_file_of_a_home_is_overwritten_in_place() -> None:
    found = {
        path.name
        for path in sorted((ROOT / "orchestrator").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes")
    }
    assert found <= WRITES_IN_PLACE, "a kill or a full disk would leave half a file: use data.shards.write_atomically"


def test_no_file_is_named_without_a_noun() -> None:
    assert [
        path.name for path in MODULES if path.stem in ("utils", "util", "helpers", "helper", "misc", "common")
    ] == []


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {requirement.split(">")[0].split("[")[0].lower() for requirement in wanted}
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert names - pinned == set()
