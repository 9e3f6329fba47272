"""Claims: one process at a time works in a folder, and a process that died does not keep it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator import stop
from orchestrator.lock import claimed

HOLD = """
import pathlib, sys
from orchestrator.lock import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_folder_is_one_process_s_until_it_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    said, entered = [], threading.Event()

    def enter() -> None:
        with claimed(tmp_path, said.append):
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    assert not entered.wait(1.0)
    assert said == [f"{tmp_path.name} is being run by another process; waiting until it ends"]
    holder.kill()
    holder.wait()
    assert entered.wait(5.0)


def test_a_process_that_is_asked_to_stop_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(tmp_path):
        monkeypatch.setattr(stop, "requested", lambda: True)
        with pytest.raises(stop.StoppedError, match="stopped while another process ran it"), claimed(tmp_path):
            pass
