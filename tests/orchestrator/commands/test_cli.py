"""The command line: what it understands, and how it refuses the rest."""

import re
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.commands.parser import commands, parse

# What a command says while it imports what it needs; on a slow machine again, with the seconds.
LOADING = re.compile(r"^(loading PyTorch and Ray.*\n)*")


@pytest.mark.parametrize("name", commands())
def test_no_argument_of_a_command_replaces_another(name: str) -> None:
    names = Counter(name for param in commands()[name].params for name in {param.name, *param.opts})
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "a.yaml", "seed=1", "budget.steps=2", "--dry-run"],
        ["pretrain", "a.yaml", "--dry-run", "seed=1", "budget.steps=2"],
        ["pretrain", "--dry-run", "a.yaml", "seed=1", "budget.steps=2"],
        ["pretrain", "a.yaml", "seed=1", "--dry-run", "budget.steps=2"],
    ],
)
def test_an_option_may_stand_anywhere(words: list[str]) -> None:
    given = parse(words).params
    expected = {"experiment": "a.yaml", "overrides": ["seed=1", "budget.steps=2"], "dry_run": True, "measure": False}
    assert given == expected


def test_what_stands_after_two_dashes_is_the_command_of_a_job() -> None:
    words = ["submit", "--address", "http://head:8265", "--", "table", "a.yaml", "--cohort", "phantom", "seed=1"]
    asked = parse(words).params
    assert asked["job_command"] == words[4:]
    job = parse(asked["job_command"]).params
    assert (job["table"], job["cohort"], job["overrides"]) == ("a.yaml", "phantom", ["seed=1"])


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "raydiology 0.1.0\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "raydiology: no command is given; expected one of phantom, "),
        (["pretrian", "a.yaml"], "raydiology: there is no command 'pretrian' (did you mean pretrain?); expected one"),
        (["pretrain"], "pretrain: the following arguments are required: experiment; `raydiology pretrain --help`"),
        (["pretrain", "a.yaml", "--dryrun"], "pretrain: no option --dryrun (did you mean --dry-run?); `raydiology"),
        (["schema", "please"], "schema: no further argument please; `raydiology schema --help` shows what can be"),
        (["shards", "shwo", "x"], "shards: argument action: there is no 'shwo' (did you mean show?); expected one"),
        (["ui", "--port", "five"], "ui: argument --port: invalid int value: 'five'; `raydiology ui --help` shows"),
        (["pretrain", "--", "a.yaml"], "pretrain: -- comes before the command of a job, in `raydiology submit`"),
        (["submit"], "submit: no command is given; expected one of phantom, "),
        (["submit", "--", "pretrian"], "submit: there is no command 'pretrian' (did you mean pretrain?); expected"),
        (
            ["submit", "--", "doctor"],
            "submit: doctor is not a job; expected a command that computes, such as pretrain",
        ),
        (["ingest"], "ingest: the options given:\n  source: missing; it has no default\n"),
        (["table", "none.yaml"], "table: experiment none.yaml: no such file; "),
    ],
)
def test_a_command_line_that_cannot_work_is_refused_in_words_with_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert (LOADING.sub("", printed.err)[: len(said)], printed.out) == (said, "")


def test_the_command_is_not_named_twice_before_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "--source", "x", "--layout", "volumes", "--recipe", "ct_volum", "--out", "y"]) == 2
    said = LOADING.sub("", capsys.readouterr().err)
    assert said.startswith(
        "ingest: the options given:\n  recipe: there is no 'ct_volum' (did you mean ct_volume?); expected one of "
    )
    assert "recipe: recipe" not in said
