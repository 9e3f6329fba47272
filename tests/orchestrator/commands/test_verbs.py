"""Tests type every verb of the command line: those that no other test types are typed here, and all are listed."""

import ast
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
from typer.core import TyperGroup

from data.shards.convert import Conversion
from data.shards.index import ShardSet
from orchestrator.cli import main
from orchestrator.commands import console
from orchestrator.commands.parser import commands
from orchestrator.config.files import schema
from orchestrator.machine import doctor
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tracker import Tracker
from tests.clusters import ROOT, free_ports
from tests.former_shards import into_format_2
from tests.shardsets import write_slices
from tests.waiting import kill_tree, wait_for

HERE = "tests/orchestrator/commands/test_verbs.py"
# Where each verb is typed and its result checked.
TYPED = {
    "phantom": (
        "tests/orchestrator/commands/test_phantom.py",
        "test_a_kind_is_written_with_the_command_that_reads_it",
    ),
    "ingest": ("tests/orchestrator/ingest/test_ingest.py", "test_the_command_ends_by_naming_the_next_one"),
    "shards show": (HERE, "test_shards_are_shown_and_verified"),
    "shards verify": (HERE, "test_shards_are_shown_and_verified"),
    "shards convert": (HERE, "test_shards_of_the_format_before_are_converted"),
    "init": (
        "tests/orchestrator/proposal/test_initial.py",
        "test_shards_without_labels_get_an_experiment_for_pretraining_alone",
    ),
    "pretrain": (
        "tests/orchestrator/runs/test_two_workers.py",
        "test_a_pretraining_by_two_workers_of_ray_is_probed_as_one_by_one_worker",
    ),
    "probe": (
        "tests/orchestrator/runs/test_two_workers.py",
        "test_a_pretraining_by_two_workers_of_ray_is_probed_as_one_by_one_worker",
    ),
    "finetune": (
        "tests/orchestrator/runs/test_two_workers.py",
        "test_a_fine_tuning_by_two_workers_of_ray_scores_as_one_by_one_worker",
    ),
    "table": (
        "tests/orchestrator/tables/test_table.py",
        "test_a_table_runs_what_is_missing_and_only_that_also_once_its_home_was_moved",
    ),
    "sweep": (
        "tests/orchestrator/sweeps/test_sweep.py",
        "test_a_killed_population_goes_on_and_trains_what_an_undisturbed_one_trains_and_leaves_nothing_behind",
    ),
    "compare": (
        "tests/orchestrator/results/test_compare.py",
        "test_the_command_prints_the_table_and_where_its_files_are",
    ),
    "report": (
        "tests/orchestrator/report/test_report.py",
        "test_a_table_s_report_is_on_its_own_metric_and_draws_the_field_that_it_is_over",
    ),
    "export": (
        "tests/orchestrator/runs/test_export.py",
        "test_export_is_typed_with_a_run_and_a_folder_and_names_what_it_wrote",
    ),
    "embed": (
        "tests/orchestrator/runs/test_embed.py",
        "test_the_command_writes_a_row_for_each_sample_of_a_split",
    ),
    "ui": (HERE, "test_the_page_is_served_until_ctrl_c"),
    "submit": (
        "tests/orchestrator/cluster/test_jobs.py",
        "test_a_stopped_job_saves_a_checkpoint_and_the_same_submit_goes_on",
    ),
    **{
        f"job {action}": (
            "tests/orchestrator/cluster/test_jobs.py",
            "test_a_stopped_job_saves_a_checkpoint_and_the_same_submit_goes_on",
        )
        for action in ("list", "status", "logs", "stop")
    },
    "doctor": (HERE, "test_the_doctor_prints_what_it_found_and_ends_well_where_all_is_well"),
    "methods": (
        "tests/orchestrator/machine/test_catalogue.py",
        "test_the_command_prints_the_counts_as_json_and_as_a_table",
    ),
    "schema": (HERE, "test_the_schema_is_printed_as_json"),
}


def verbs() -> Iterator[str]:
    """Yield what can be typed: each command, or each of its actions."""
    for name, command in commands().items():
        assert not isinstance(command, TyperGroup), "walk these too"
        actions = next((param.type_descriptor.choices for param in command.params if param.name == "action"), None)
        yield from (f"{name} {action}" for action in actions) if actions else (name,)


def test_every_verb_is_typed_by_a_test() -> None:
    assert set(TYPED) == set(verbs())


@pytest.mark.parametrize("verb", TYPED)
def test_the_test_that_is_named_types_the_verb(verb: str) -> None:
    file, name = TYPED[verb]
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    (test,) = [function for function in functions if function.name == name]
    assert verb.split() in [line[: len(verb.split())] for line in typed(test)]


def typed(test: ast.FunctionDef) -> list[list[str]]:
    """Return the command lines of a test: each list that `main` takes, or that goes on after the program's name."""
    lines = {target.id: node.value for node in ast.walk(test) if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    found = []
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("main", "cli.main"):
            given = lines.get(ast.unparse(node.args[0]), node.args[0])
            found.append(words(given))
        if isinstance(node, ast.List) and "orchestrator.cli" in words(node):
            line = words(node)
            found.append(line[line.index("orchestrator.cli") + 1 :])
    return found


def words(line: ast.expr) -> list[str]:
    """Return a list's words; what is no literal is an empty one."""
    elements = line.elts if isinstance(line, ast.List) else []
    return [element.value if isinstance(element, ast.Constant) else "" for element in elements]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_shards_of_the_format_before_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    into_format_2(Path(write_slices(old)))
    assert main(["shards", "show", str(old)]) != 0
    (said,) = re.findall(r"`(\S+ shards convert .*?)`", capsys.readouterr().err.replace("\n", ""))
    assert said.endswith(f" shards convert {old} --out {old}-format3")
    assert main(["shards", "convert", str(old), "--out", str(new)]) == 0
    shown = capsys.readouterr()
    assert shown.out == (
        f"48 samples in {new}\ndigest {ShardSet.open(str(new)).digest}, before {Conversion.of(str(old)).digest}\n"
    )
    assert "copying shards" in shown.err
    assert main(["shards", "verify", str(new)]) == 0
    for arguments in (["convert", str(old)], ["show", str(new), "--out", str(tmp_path)]):
        assert main(["shards", *arguments]) != 0
        assert "add or leave out --out" in capsys.readouterr().err.replace("\n", " ")


def test_shards_are_shown_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_slices(tmp_path / "slices", num_patients=8, size=40)
    assert main(["shards", "show", shards]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["train"].startswith("36 samples of 6 volumes of 6 patients")
    assert main(["shards", "verify", shards]) == 0
    assert capsys.readouterr().out == "every byte is as it was written\n"
    (file, *_) = sorted(Path(shards).glob("*train*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    assert main(["shards", "verify", shards]) == 1
    found = capsys.readouterr().out.splitlines()
    assert found[0].startswith(f"shard {file.name}: content hash")
    assert found[-1] == f"{len(found) - 1} findings"


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


@pytest.mark.slow
def test_the_doctor_prints_what_it_found_and_ends_well_where_all_is_well(
    tmp_path: Path, ray_cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(console.out, "width", 300)
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GIB", 0)
    monkeypatch.setattr(doctor, "LEAST_DISK_GIB", 0)
    assert main(["doctor", "--home", str(tmp_path)]) == 0
    rows = {row[1]: row for row in map(cells, capsys.readouterr().out.splitlines()) if len(row) == 4}
    assert rows["Ray"][0] == "ok"
    assert rows["Ray"][2].startswith("started, ")
    assert rows["MLflow"][2] == f"no store in {tmp_path} yet; the first run makes it"
    monkeypatch.setattr(doctor, "LEAST_DISK_GIB", 2**40)
    assert main(["doctor", "--home", str(tmp_path)]) == 1
    rows = {row[1]: row for row in map(cells, capsys.readouterr().out.splitlines()) if len(row) == 4}
    assert rows["Disk"][::3] == ["--", "checkpoints and shards need more; choose another home"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_is_served_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Tracker(tmp_path / "served" / "run", default_uri(tmp_path)).start("served", "pretrain simsiam", "k1")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "orchestrator.cli", "ui", "--home", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as page:
        try:
            asked = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=served"
            answer = wait_for(lambda: answer_of(asked), page)
            page.send_signal(signal.SIGINT)
            assert page.wait(60) == 0
        finally:
            kill_tree(page)
        assert page.stdout is not None
        told = page.stdout.read()
    experiment = json.loads(answer)["experiment"]
    assert experiment["name"] == "served"
    assert f"MLflow: http://127.0.0.1:{port}/#/experiments/{experiment['experiment_id']}/runs" in told


def answer_of(address: str) -> str | None:
    """Return what a server answers, or None where there is none yet."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.read().decode()
    except (URLError, TimeoutError):
        return None
