"""What a person sees while something takes long: on a terminal, in a job's log, and from other processes."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.terminal import progress
from orchestrator.terminal.display import LATER_LINE_EVERY_S, Display
from orchestrator.terminal.notes import Others
from orchestrator.terminal.phase import Phase, duration, per_second
from orchestrator.terminal.training_progress import next_validation, shown

WITHIN_S = 30.0


def log(line_every_s: float = 100.0) -> tuple[Display, io.StringIO]:
    """Return a display that writes to a file, as a job's does."""
    file = io.StringIO()
    return Display(Console(file=file, width=80), line_every_s), file


def terminal() -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, width=160, height=20, force_terminal=True)), file


def wait_for(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not look():
        assert time.monotonic() < deadline, "never seen"
        time.sleep(0.02)


@pytest.fixture
def in_log() -> Iterator[io.StringIO]:
    display, file = log()
    with progress.showing_on(display):
        yield file


def test_a_log_has_a_line_where_each_phase_begins_and_no_control_characters() -> None:
    display, file = log()
    with display.phase("table t", 2, "trial"), display.phase("starting Ray"):
        display.say("something that stays")
    assert file.getvalue() == "table t: trial 0 of 2\nstarting Ray\nsomething that stays\n"


@pytest.mark.slow
def test_a_log_says_now_and_then_that_something_slow_still_runs() -> None:
    display, file = log(0.05)
    with display.phase("table t", 2, "trial"), display.phase("starting Ray"):
        wait_for(lambda: re.search(r"starting Ray: 1 s\n", file.getvalue()) is not None)
    assert "table t: trial 0 of 2; starting Ray\n" in file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", file.getvalue())


def test_a_log_of_a_long_phase_has_a_line_a_minute() -> None:
    display, _ = log(10)
    now_s = time.time()
    display._told[""] = {"pretrain": now_s - 30}
    assert display._due("", Phase("pretrain", 1000, began_s=now_s - 100))
    assert not display._due("", Phase("pretrain", 1000, began_s=now_s - 1000))
    display._told[""] = {"pretrain": now_s - LATER_LINE_EVERY_S - 1}
    assert display._due("", Phase("pretrain", 1000, began_s=now_s - 1000))


@pytest.mark.slow
def test_a_terminal_has_bars_that_move_and_leave_only_what_was_said() -> None:
    display, file = terminal()
    with display.phase("pretrain", 40) as phase:
        display.update(phase, 10, "loss 0.5000")
        wait_for(lambda: "step 10 of 40" in file.getvalue() and "loss 0.5000" in file.getvalue())
        display.say("resumed from step 5")
    drawn = file.getvalue()
    assert "\x1b[2K" in drawn  # lines are drawn over
    assert "resumed from step 5" in drawn
    last = re.split(r"\x1b\[2K", drawn)[-1]
    assert "step 10" not in last


def test_a_console_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    display, file = terminal()
    with display.phase("pretrain", 40):
        pass
    assert file.getvalue() == "pretrain: step 0 of 40\n"


def test_pace_and_time_left_count_from_where_a_run_resumed() -> None:
    phase = Phase("pretrain", 100, done=40, began_s=1000.0)
    assert phase.text(1000.5) == "pretrain: step 40 of 100"
    phase.done, phase.updated_s, phase.shown = 60, 1010.0, "loss 0.1"
    assert phase.text(1012.0) == "pretrain: step 60 of 100, 2.0 steps/s, 20 s left, loss 0.1"
    assert phase.text(1040.0).endswith("loss 0.1, no report for 30 s")
    phase.done, phase.updated_s = 100, 1030.0
    assert phase.text(1031.0) == "pretrain: step 100 of 100, loss 0.1"


@pytest.mark.parametrize(("seconds", "words"), [(45, "45 s"), (720, "12 min"), (9000, "2.5 h"), (259200, "3.0 days")])
def test_a_duration_is_said_in_the_unit_that_fits_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("pace", "unit", "words"),
    [(3.14, "step", "3.1 steps/s"), (0.8, "study", "1.2 s per study"), (0.05, "trial", "20 s per trial")],
)
def test_a_slow_pace_is_said_as_time_per_unit(pace: float, unit: str, words: str) -> None:
    assert per_second(pace, unit) == words
    assert per_second(2.0, "study") == "2.0 studies/s"


def test_a_training_first_starts_its_workers_and_then_passes_its_steps(in_log: io.StringIO) -> None:
    with shown("finetune", 60, lambda step: step == 50) as show:
        assert in_log.getvalue() == "finetune: starting workers\n"
        show([{"step": 18, "loss": 0.6}, {"step": 19, "loss": 0.5}])
        show([{"step": 59, "loss": 0.25, "score": 0.75}])
    first, second, last = in_log.getvalue().splitlines()
    assert (first, second) == ("finetune: starting workers", "finetune: step 20 of 60")
    assert re.fullmatch(r"finetune: step 60 of 60 after \d+ s, loss 0.2500, score 0.7500", last)


def test_the_next_validation_is_named_the_last_being_at_the_end() -> None:
    def every_25(step: int) -> bool:
        return step % 25 == 0

    assert next_validation(10, 60, every_25) == "validation after step 25"
    assert next_validation(50, 60, every_25) == "validation after step 60"
    assert next_validation(60, 60, every_25) == next_validation(10, 60, None) == ""


WORK = """
import sys, time
from pathlib import Path
from orchestrator.terminal import progress

sys.stdin.readline()
with progress.noted(Path(sys.argv[1])), progress.phase("trial 2 of 8, row 1 of 4", short="trial 2 of 8"):
    progress.say("MLflow cannot be reached")
    with progress.phase("pretrain", 40) as phase:
        progress.update(phase, 10)
        time.sleep(1)
        progress.update(phase, 20, "loss 0.1")
        sys.stdin.read()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that works for this one, from a line of its input to the end of it."""
    command = [sys.executable, "-c", WORK, str(tmp_path / "notes" / "2.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def begin(worker: subprocess.Popen[bytes]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(b"\n")
    worker.stdin.flush()


@pytest.mark.slow
def test_a_log_tells_of_other_processes_and_what_they_say(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    display, file = log(0.2)
    with display.phase("table t", 8, "trial"), display.others(tmp_path / "notes", "*.json"):
        begin(worker)
        wait_for(lambda: "trial 2 of 8; pretrain: step 20 of 40" in file.getvalue())
    assert file.getvalue().count("trial 2 of 8: MLflow cannot be reached\n") == 1
    assert re.search(r"step 20 of 40, .* left, loss 0.1\n", file.getvalue())


@pytest.mark.slow
def test_a_terminal_has_a_bar_for_every_other_process(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    display, file = terminal()
    with display.phase("table t", 8, "trial"), display.others(tmp_path / "notes", "*.json"):
        wait_for(lambda: "starting processes" in file.getvalue())
        begin(worker)
        wait_for(lambda: re.search(r"trial 2 of 8 +.* pretrain: step 20 of 40", file.getvalue()) is not None)
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(WITHIN_S) == 0
    assert list((tmp_path / "notes").iterdir()) == []


def test_the_note_of_a_process_that_died_is_not_shown(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    notes = Others(tmp_path / "notes", "*.json")
    begin(worker)
    wait_for(lambda: len(notes.notes()) == 1)
    worker.kill()
    worker.wait(WITHIN_S)
    assert (tmp_path / "notes" / "2.json").exists()
    assert notes.notes() == []


def test_what_a_process_said_last_is_heard_after_its_end_and_once(tmp_path: Path) -> None:
    worker, _ = log()
    with worker.noted(tmp_path / "1.json"), worker.phase("trial 1"):
        worker.say("step 4 of 4 after 2 s")
    display, file = log(0.05)
    with display.phase("table t", 8, "trial"), display.others(tmp_path, "*.json"):
        wait_for(lambda: not (tmp_path / "1.json").exists())
    assert file.getvalue().count("trial 1: step 4 of 4 after 2 s\n") == 1


def test_what_another_process_said_comes_before_what_is_said_of_it(tmp_path: Path) -> None:
    worker, _ = log()
    display, file = log()
    with display.phase("table t", 8, "trial"), display.others(tmp_path, "*.json"):
        with worker.noted(tmp_path / "1.json"), worker.phase("trial 1"):
            worker.say("step 4 of 4 after 2 s")
        display.say("1 of 8: score 0.5")
    assert file.getvalue().splitlines()[1:] == ["trial 1: step 4 of 4 after 2 s", "1 of 8: score 0.5"]


def test_a_note_says_who_writes_it_and_only_while_it_works(tmp_path: Path) -> None:
    display, file = log()
    with display.noted(tmp_path / "1.json"), display.phase("pretrain", 40):
        note = json.loads((tmp_path / "1.json").read_text())
        assert (note["pid"], [phase["what"] for phase in note["phases"]]) == (os.getpid(), ["pretrain"])
    assert (file.getvalue(), list(tmp_path.iterdir())) == ("", [])
