"""What a shell is given to complete a command line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.recipes import RECIPES
from data.sources import LAYOUTS
from orchestrator.cli import COMPLETION, main
from orchestrator.commands.parser import commands

REGISTERS = {
    "bash": "complete -o default -F _raydiology_completion raydiology",
    "zsh": "compdef _raydiology_completion raydiology",
    "fish": "complete --command raydiology ",
}


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return what bash would be offered for the last word of a line."""

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv(COMPLETION, "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit):
            main([])
        return capsys.readouterr().out.split()

    return offered


@pytest.mark.parametrize("shell", REGISTERS)
def test_a_shell_is_given_a_script_that_registers_the_completion(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETION, f"source_{shell}")
    with pytest.raises(SystemExit):
        main([])
    script = capsys.readouterr().out
    assert REGISTERS[shell] in script
    assert f"{COMPLETION}=complete_{shell}" in script


@pytest.mark.parametrize("shell", REGISTERS)
def test_the_completion_is_installed_for_the_shell_that_asks(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    with pytest.raises(SystemExit) as ended:
        main(["--install-completion"])
    assert (ended.value.code, f"{shell} completion installed in {tmp_path}" in capsys.readouterr().out) == (0, True)
    installed = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert REGISTERS[shell] in installed
    with pytest.raises(SystemExit) as ended:
        main(["--show-completion"])
    assert (ended.value.code, REGISTERS[shell] in capsys.readouterr().out) == (0, True)


def test_verbs_options_and_names_of_registries_are_completed(completed) -> None:
    assert completed("raydiology ") == list(commands())
    assert completed("raydiology pre") == ["pretrain"]
    assert completed("raydiology job st") == ["status", "stop"]
    assert completed("raydiology pretrain a.yaml --d") == ["--dry-run"]
    assert completed("raydiology ingest --layout ") == sorted(LAYOUTS)
    assert completed("raydiology ingest --recipe ct") == [name for name in RECIPES if name.startswith("ct")]
    assert completed("raydiology ingest --modality ") == sorted({one.modality for one in RECIPES.values()})


@pytest.mark.slow
def test_an_explanation_is_one_line_for_fish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fish takes each line for a word. A process of its own, without torch: people wait for it at each Tab."""
    asked = {
        COMPLETION: "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": "raydiology ingest --recipe=ct_v",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    code = "import sys; from orchestrator.cli import main\ntry: main([])\nfinally: assert 'torch' not in sys.modules"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert names.stdout.split() == [name for name in RECIPES if name.startswith("ct_v")]
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "raydiology ingest --i")
    options = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert [line.split("\t")[0] for line in options.stdout.splitlines()] == ["--images", "--image-column"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_by_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"{Path(sys.executable).parent}/raydiology"
    line = f"""
source <({COMPLETION}=source_bash {program})
COMP_WORDS=({program} ingest --layout nn)
COMP_CWORD=3
_raydiology_completion {program}
echo "${{COMPREPLY[@]}}"
"""
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=240, check=True)
    assert run.stdout.split() == ["nnunet"], run.stderr
