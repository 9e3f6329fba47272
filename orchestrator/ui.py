"""UI: MLflow's page over the runs of a home."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from orchestrator.tracking import Tracker, default_uri, hide_password, waiting

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(home: Path, port: int) -> int:
    """Serve MLflow's page on 127.0.0.1 until interrupted, after sending what still waits; return its exit code."""
    uri = default_uri(home)
    for folder in waiting(home):
        Tracker(folder, uri).flush(force=True)
    if not uri.startswith("sqlite:"):
        print(f"MLflow is at {hide_password(uri)}")
        return 0
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    quiet = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    print(f"MLflow: http://127.0.0.1:{port}/{_newest_page(uri)} in some 20 seconds; Ctrl-C ends it", flush=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    return _run_until_told([*command, "--port", str(port), *quiet], environment)


def _run_until_told(command: list[str], environment: dict[str, str]) -> int:
    """Run a command until it ends, or until this process is told to: then both end, and that is no failure.

    It has a session of its own: MLflow's processes, all interrupted at once by a terminal, would print their stacks.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    told = False

    def end(*_: object) -> None:
        nonlocal told
        told = True
        process.terminate()

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        exit_code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if told else exit_code


def _newest_page(uri: str) -> str:
    """Return the address of the runs of the experiment that was changed last."""
    experiments = MlflowClient(uri).search_experiments(order_by=["last_update_time DESC"], max_results=1)
    return (
        f"#/experiments/{experiments[0].experiment_id}/runs?workflowType=machine_learning"
        if experiments
        else "#/experiments"
    )
