"""A disk of a few megabytes for one process and what it starts, where the system permits that."""

import subprocess
import sys
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def run_on_small_disk(script: str, folder: Path, size: str, timeout: float, *arguments: str) -> str:
    """Run Python with a disk of ``size`` at ``folder``, which it alone sees; return what it printed."""
    begin = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", size, str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no test mount a disk of its own: `unshare --map-root-user --mount` was refused")
    command = [*begin, sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
