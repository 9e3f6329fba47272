"""UI: MLflow's page over the runs of a home."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from orchestrator.direction import as_logged
from orchestrator.results.run_cards import Folders
from orchestrator.results.selection import GROUPS
from orchestrator.results.usual import noted
from orchestrator.tracking.hindrance import in_words
from orchestrator.tracking.opening import client_of
from orchestrator.tracking.outbox import waiting
from orchestrator.tracking.pages import MlflowRuns, listing_of, publish
from orchestrator.tracking.store import STORE, default_uri, hide_password, sqlite_file
from orchestrator.tracking.tracker import Tracker

# Without the processes that run MLflow's own jobs: nothing here asks for them, and they start slower than the page.
SERVER = {
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
LISTING = "raydiology-listing"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(home: Path, port: int) -> int:
    """Serve MLflow's page on 127.0.0.1 until interrupted, after sending what still waits; return its exit code.

    Raises ValueError if the home has no runs or its store cannot be read.
    """
    uri, runs = default_uri(home), Folders([home])
    elsewhere = {where for card in runs.cards() if (where := runs.uri(card.place)) != uri}
    for folder in waiting(home):
        Tracker(folder, runs.uri(str(folder))).flush(force=True)
    store = sqlite_file(uri)
    if store is None or (elsewhere and not store.is_file()):
        print(f"MLflow is at {' and '.join(sorted(map(hide_password, elsewhere or {uri})))}")
        return 0
    if not store.is_file():
        raise ValueError(
            f"--home {home}: no runs there; expected a folder that a training, a table or a sweep has written"
            f"{_did_you_mean(home)}"
        )
    with in_words(uri, "the store"):
        page = _newest_page(client_of(uri), uri, runs)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    quiet = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    print(f"MLflow: http://127.0.0.1:{port}/#/{page} in about 20 seconds; Ctrl-C ends it", flush=True)
    return _run_until_told([*command, "--port", str(port), *quiet], {**os.environ, **SERVER})


def _did_you_mean(home: Path) -> str:
    """Suggest homes beside a folder that is not a home."""
    beside = sorted(path.parent.name for path in home.absolute().parent.glob(f"*/{STORE}"))
    return f"; did you mean {' or '.join(str(home.parent / name) for name in beside)}?" if beside else ""


def _run_until_told(command: list[str], environment: dict[str, str]) -> int:
    """Run a command until it ends, or until this process is told to end; then both end without failure.

    It has a session of its own: if a terminal interrupted all of MLflow's processes at once, they would print their
    stacks.
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


def _newest_page(client: MlflowClient, uri: str, runs: Folders) -> str:
    """Return the address of the newest experiment's runs, listed with the scores by which they are judged."""
    experiments = client.search_experiments(order_by=["last_update_time DESC"], max_results=1)
    if not experiments:
        return "experiments"
    newest = experiments[0]
    groups = [card for card in runs.cards() if card.kind in GROUPS and card.experiment == newest.name]
    judged = {usual.metric for card in groups if (usual := noted(Path(card.place)))} or {"score"}
    listing = listing_of(sorted(map(as_logged, judged)))
    address = publish(MlflowRuns(uri, newest.experiment_id, ()), LISTING, listing, "TABLE")
    return address.partition("/#/")[2]
