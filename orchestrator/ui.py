"""UI: MLflow's page over the runs of a home."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from orchestrator.tracking import Tracker, default_uri, hide_password, waiting


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
    try:
        return subprocess.run([*command, "--port", str(port), *quiet], env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def _newest_page(uri: str) -> str:
    """Return the address of the runs of the experiment that was changed last."""
    experiments = MlflowClient(uri).search_experiments(order_by=["last_update_time DESC"], max_results=1)
    return (
        f"#/experiments/{experiments[0].experiment_id}/runs?workflowType=machine_learning"
        if experiments
        else "#/experiments"
    )
