"""A history and an outbox after kills and full disks, and which line of a step counts."""

import json
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.history import HISTORY, Once, Tail, append, mend, steps

WHOLE = [{"stage": "pretrain", "step": step, "loss": -step / 3, "name": "ö"} for step in range(3)]


def test_a_line_torn_at_any_byte_is_cut_off_said_once_and_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, last = tmp_path / HISTORY, json.dumps(WHOLE[-1]) + "\n"
    before = "".join(json.dumps(line) + "\n" for line in WHOLE[:-1])
    for kept in range(1, len(last)):
        path.write_text(before + last[:kept])
        caplog.clear()
        append(path, [WHOLE[-1]])
        append(path, [])
        assert path.read_text() == before + last
        said = (
            f"{path} ended in the middle of a line, as a kill or a full disk leaves it; its last {kept} bytes were "
            "cut off"
        )
        assert [record.getMessage() for record in caplog.records] == [said]
        path.write_text(before + last[:kept])
        assert [mend(path), mend(path)] == [said, None]
        assert path.read_text() == before


def test_a_file_that_is_one_torn_line_longer_than_a_block_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    path.write_text("x" * 3_000_000)
    append(path, WHOLE[:1])
    assert Tail(path).read() == WHOLE[:1]


@pytest.mark.slow
def test_lines_that_do_not_fit_on_the_disk_leave_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    append(path, WHOLE)
    code = f"""
        import resource
        from pathlib import Path
        from orchestrator.history import append
        resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 70}, {resource.RLIM_INFINITY}))
        append(Path({str(path)!r}), {WHOLE!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert Tail(path).read() == WHOLE
    append(path, WHOLE)
    assert Tail(path).read() == [*WHOLE, *WHOLE]


def test_the_first_line_of_a_step_counts_and_stages_follow_one_another(tmp_path: Path) -> None:
    def line(stage: str, step: int, loss: float) -> dict:
        return {"stage": stage, "step": step, "loss": loss}

    lines = [
        line("a", 0, 0.0),
        line("a", 1, 0.1),
        line("a", 1, 9.0),
        {"stage": "a", "fatal": "no"},
        line("a", 2, 0.2),
    ]
    lines += [line("b", 0, 1.0), line("b", 0, 9.0), line("b", 1, 1.1)]
    append(tmp_path / HISTORY, lines)
    assert [entry["loss"] for entry in steps(tmp_path, "a")] == [0.0, 0.1, 0.2]
    assert [entry["loss"] for entry in steps(tmp_path, "b")] == [1.0, 1.1]
    # A reader that goes on from where another stopped numbers them the same.
    first, second = Once(), Once()
    numbered = list(first.new(lines[:6]))
    second.done |= json.loads(json.dumps(first.done))
    numbered += second.new(lines[6:])
    assert [(step, entry["loss"]) for step, entry in numbered] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 1.0), (4, 1.1)]
