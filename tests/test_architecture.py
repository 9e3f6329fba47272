"""Rules of the house that a test can check: where imports point, who may know Ray, what is imported late, names."""

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import yaml
from jaxtyping import TypeCheckError

from data.scan import spacing_of
from methods import METHODS
from orchestrator.direction import direction_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "methods", "orchestrator")
FORBIDDEN = {
    "data": {"methods", "orchestrator", "ray", "mlflow", "optuna"},
    "methods": {"orchestrator", "ray", "mlflow", "optuna"},
    "orchestrator": set(),
}
NEVER = {"torchvision", "timm", "lightly"}
# The rooms of the orchestrator: each imports itself and those before it. CONTRIBUTING.md says what they are for.
ROOMS = (
    "provenance", "direction", "history", "stop", "lock", "terminal", "config", "feed", "cluster", "tracking",
    "ingest", "training", "judging", "runs", "results", "proposal", "tables", "sweeps", "report", "diagnosis",
    "machine", "bench", "commands", "cli",
)  # fmt: skip
# Each takes about as long to import as a worker takes to start.
DEAR = ("monai", "mlflow", "sklearn", "matplotlib", "ray.tune")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
ORCHESTRATOR = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "orchestrator"]


def _imported(path: Path) -> set[str]:
    """Return the dotted names of all that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imported(path)}


def _room(name: str) -> str:
    """Return the room of a module of the orchestrator, by its dotted name."""
    return name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert _imports(path) & (FORBIDDEN[package] | NEVER) == set()


def test_every_module_of_the_orchestrator_stands_in_one_of_its_rooms() -> None:
    found = {path.relative_to(ROOT / "orchestrator").parts[0].removesuffix(".py") for path in ORCHESTRATOR}
    assert found - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", ORCHESTRATOR, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_that_stand_before_it(path: Path) -> None:
    own = path.relative_to(ROOT / "orchestrator").parts[0].removesuffix(".py")
    if own != "__init__":
        rooms = {_room(name) for name in _imported(path) if name.startswith("orchestrator.")}
        assert {room for room in rooms if ROOMS.index(room) > ROOMS.index(own)} == set()


@pytest.mark.slow
def test_types_and_shapes_of_all_packages_are_checked_while_tests_run() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    assert f"--jaxtyping-packages={','.join(PACKAGES)},tests.checked" in options.split()
    assert spacing_of(np.eye(4)) == (1.0, 1.0, 1.0)
    with pytest.raises(TypeCheckError, match=r"parameter 'affine'.\nActual value: f64\[3,3\]"):
        spacing_of(np.eye(3))
    with pytest.raises(TypeCheckError, match=r"parameter 'metric'.\nActual value: 3"):
        direction_of(3)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
    }
    imported = {
        module: {
            known
            for name in _imported(path)
            for known in (name, name.rpartition(".")[0])
            if known in modules and known not in (module, module.rpartition(".")[0])
        }
        for module, path in modules.items()
    }
    # A folder's __init__ that gathers its own files is no circle.
    list(TopologicalSorter(imported).static_order())


@pytest.mark.slow
@pytest.mark.parametrize("module", ["runs.pretrain", "runs.finetune", "ingest.tasks", "tables.job"])
def test_a_run_s_processes_import_what_is_dear_only_where_it_is_used(module: str) -> None:
    code = f"import sys, orchestrator.{module}; print(*(name for name in {DEAR} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == []


# What each command line does without; with torch alone, `raydiology methods` takes most of its two seconds.
FILES = ("pydicom", "SimpleITK", "gdcm", "nibabel", "PIL", "pyarrow.parquet", "pandas")
LATE = {"--help": ("torch", "scipy", "jaxtyping", "ray", *DEAR, *FILES), "methods": ("ray", "scipy", *DEAR, *FILES)}


@pytest.mark.slow
@pytest.mark.parametrize("command", LATE)
def test_commands_that_only_tell_import_nothing_dear(command: str) -> None:
    code = f"""
import sys
from orchestrator.cli import main
try:
    main(["{command}"])
finally:
    print(*(name for name in {LATE[command]} if name in sys.modules), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout != ""
    assert run.stderr.split() == []


# Checkpoints, exports and first experiments are new files; a note is renamed where it is written.
WRITES_IN_PLACE = {"checkpoint.py", "finetune.py", "export.py", "files.py", "notes.py"}


def test_no_file_of_a_home_is_overwritten_in_place() -> None:
    found = {
        path.name
        for path in ORCHESTRATOR
        if path.parent.name != "bench"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes")
    }
    assert found <= WRITES_IN_PLACE, "a kill or a full disk would leave half a file: use write_atomically"


def test_no_file_is_named_without_a_noun() -> None:
    assert [
        path.name for path in MODULES if path.stem in ("utils", "util", "helpers", "helper", "misc", "common")
    ] == []


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 299, 49


def _lines_of_longest_function(path: Path) -> int:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0)


def test_a_method_is_found_by_the_name_of_its_file() -> None:
    assert {name: kind.__module__ for name, kind in METHODS.items()} == {name: f"methods.{name}" for name in METHODS}
    assert METHODS.keys() >= {"simsiam", "voco", "jigsaw", "jssl_cluster", "svdnet"}


def test_a_file_is_read_in_one_sitting() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_a_function_is_seen_at_a_glance() -> None:
    lines = {str(path.relative_to(ROOT)): _lines_of_longest_function(path) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FUNCTION} == {}


# The last word of a class's name that ends like a participle, and is a noun.
NOUNS = {"Command", "Field", "Speed", "World"}
PARTICIPLE = re.compile(
    r"(ed|en|wn|ld|nd|pt|ought|aught)$|^(Said|Paid|Made|Lost|Left|Sent|Built|Spent|Done|Gone|Read)$"
)


def _classes(path: Path) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def test_no_two_classes_share_a_name_but_the_configs_inside_their_owners() -> None:
    files: dict[str, list[str]] = {}
    for path in MODULES:
        for name in _classes(path):
            files.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in files.items() if len(found) > 1 and name != "Config"} == {}


def test_a_class_is_named_by_a_noun() -> None:
    names = {name for path in MODULES for name in _classes(path)}
    last_words = {name: re.findall(r"[A-Z][a-z0-9]*", name)[-1] for name in names}
    alike = {name: word for name, word in last_words.items() if PARTICIPLE.search(word)}
    assert {name for name, word in alike.items() if word not in NOUNS} == set()
    assert set(alike.values()) == NOUNS


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {requirement.split(">")[0].split("[")[0].lower() for requirement in wanted}
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert names - pinned == set()


def test_the_citation_says_what_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    names = [author["name"] for author in project["authors"]]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert citation["abstract"] == project["description"]
    assert [author["name"] for author in citation["authors"]] == names == ["The Raydiology authors"]


def test_the_licence_is_the_unchanged_text_of_apache_2() -> None:
    # The sum of https://www.apache.org/licenses/LICENSE-2.0.txt.
    published = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == published
