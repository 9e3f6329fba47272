"""Gather from a server: read an experiment's runs from MLflow if their folders are out of reach.

The files of a cluster's runs lie on its head node. MLflow knows the same as far as it was sent, but no reasons of
failures.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from orchestrator.direction import is_detail
from orchestrator.judging.case_scores import CaseScores, case_scores
from orchestrator.judging.cases import CASES
from orchestrator.results.run_cards import STATES, STATUSES, Card, Curve, judged
from orchestrator.results.selection import RunChoice
from orchestrator.runs.details import DETAILS, detailed_curve, detailed_scores
from orchestrator.tracking.hindrance import in_words
from orchestrator.tracking.opening import existing
from orchestrator.tracking.pages import MlflowRuns
from orchestrator.tracking.store import hide_password

PAGE = 1000
Content = TypeVar("Content")
PARENT = "mlflow.parentRunId"


class Server:
    """The runs of one experiment of an MLflow server."""

    def __init__(self, client: MlflowClient, experiment_id: str, experiment: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        page = client.search_runs([experiment_id], max_results=PAGE)
        self._runs = {run.info.run_id: run for run in page}
        while page.token:
            page = client.search_runs([experiment_id], max_results=PAGE, page_token=page.token)
            self._runs |= {run.info.run_id: run for run in page}
        cards = {run_id: _card(run, experiment) for run_id, run in self._runs.items()}
        self._cards = [replace(card, parents=self._ancestors(card.place)) for card in cards.values()]

    def cards(self) -> list[Card]:
        return self._cards

    def scores(self, card: Card) -> dict[str, float]:
        details = self._read(card, DETAILS, detailed_scores) if card.kind == "finetune" else None
        return judged(self._runs[card.place].data.metrics) | (details or {})

    def patients(self, card: Card, metric: str, value: float) -> CaseScores | None:
        return self._read(card, CASES, lambda file: case_scores(file, metric, value))

    def curve(self, card: Card, metric: str) -> Curve:
        if is_detail(metric) and (curve := self._read(card, DETAILS, lambda file: detailed_curve(file, metric))):
            return curve
        last = {point.step + 1: point.value for point in self._client.get_metric_history(card.place, metric)}
        return [float(step) for step in sorted(last)], [last[step] for step in sorted(last)]

    def log(self, place: str, files: Sequence[Path], into: str) -> str:
        try:
            for file in files:
                self._client.log_artifact(place, str(file), into)
        except MlflowException as error:
            return str(error).splitlines()[0]
        return ""

    def known(self, cards: Sequence[Card]) -> MlflowRuns:
        return MlflowRuns(self._client.tracking_uri, self._experiment_id, tuple(card.place for card in cards))

    def _read(self, card: Card, name: str, read: Callable[[Path], Content]) -> Content | None:
        """Return what a file among a run's artifacts holds; None if there is no such file."""
        with TemporaryDirectory() as folder:
            try:
                file = self._client.download_artifacts(card.place, name, folder)
            except (MlflowException, OSError):
                return None
            return read(Path(file))

    def _ancestors(self, run_id: str) -> tuple[str, ...]:
        line: list[str] = []
        parent = self._runs[run_id].data.tags.get(PARENT)
        while parent in self._runs:
            line.append(parent)
            parent = self._runs[parent].data.tags.get(PARENT)
        return tuple(line)


def on_server(uri: str, experiment: str | None, home: Path) -> RunChoice:
    """Choose the runs of an experiment of an MLflow server; comparisons are written below ``home``.

    Raises ValueError if the server cannot be read or has no such experiment.
    """
    with in_words(uri, "--uri"):
        client = existing(uri)
        names = {found.name: found.experiment_id for found in client.search_experiments()} if client else {}
    if client is None:
        raise ValueError(f"--uri {hide_password(uri)}: no such store; expected one that runs were sent to")
    if experiment is None or experiment not in names:
        raise ValueError(
            f"--experiment {experiment}: MLflow at {hide_password(uri)} has {', '.join(sorted(names))}; name one"
        )
    with in_words(uri, "--uri"):
        source = Server(client, names[experiment], experiment)
    return RunChoice(source, tuple(source.cards()), experiment, home / experiment)


def _card(run: Run, experiment: str) -> Card:
    tags = run.data.tags
    return Card(
        place=run.info.run_id,
        key=tags.get("run_key", run.info.run_id),
        kind=tags.get("kind", ""),
        name=run.info.run_name or "",
        experiment=experiment,
        row=tags.get("row"),
        status=STATES.get(tags.get("state", ""), STATUSES.get(run.info.status, "unfinished")),
        params=run.data.params,
        tags=tags,
        remark=tags.get("reason", ""),
    )
