"""Registry: the model of a run, or of a table's or sweep's winner, as a version of a registered model in MLflow."""

from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from orchestrator.direction import best_first, direction_of
from orchestrator.results.run_cards import Card, Folders, members
from orchestrator.results.selection import GROUPS
from orchestrator.results.usual import noted
from orchestrator.runs.model import record_of
from orchestrator.tracking.hindrance import FAULTS, hindrance_of, in_words
from orchestrator.tracking.mlflow_calls import ALREADY_THERE
from orchestrator.tracking.models import found_model
from orchestrator.tracking.opening import existing
from orchestrator.tracking.store import hide_password
from orchestrator.tracking.tags import DESCRIPTION, ROW, RUN_KEY
from orchestrator.tracking.tracker import Tracker


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model, and the MLflow that has it."""

    name: str
    number: str
    uri: str


def winner(folder: Path) -> Path:
    """Return the best run of a table's or sweep's best row; the folder itself if it is that of a run.

    Raises ValueError where a table or sweep has no best row yet.
    """
    place = folder.absolute()
    own = next((card for card in Folders([place]).cards() if card.place == str(place)), None)
    if own is None or own.kind not in GROUPS:
        return folder
    runs = [run for run, row in members(place).items() if row == own.tags.get(ROW) and Path(run).is_dir()]
    if not runs:
        raise ValueError(
            f"{own.kind} {folder}: no row of it is first; run its command again, until a trial has ended"
        )
    metric = getattr(noted(place), "metric", "score")
    scores = [scores_of(Path(run)).get(metric) for run in runs]
    return Path(runs[best_first(scores, direction_of(metric))[0]])


def register(run: Path, name: str, uri: str | None = None) -> RegisteredVersion:
    """Make a run's model a version of the registered model ``name``; return the version, also if it is there already.

    ``uri`` is an MLflow that has the run; by default, the one that the run is logged to. Raises ValueError if there
    is no model, or if MLflow does not take it.
    """
    card, own = _card(run)
    tracker, record = Tracker(run, own), record_of(run, scores_of(run))
    if record is None:
        raise ValueError(
            f"run {run}: no weights there to register; give the folder of a finished pretraining, fine-tuning, table "
            "or sweep"
        )
    tracker.model(record)
    if hindrance := tracker.flush(force=True):
        raise ValueError(f"run {run} cannot be registered: {hindrance}")
    where = uri or own
    model = _logged(where, card, run, own)
    client = MlflowClient(where)
    try:
        number = _version(client, name, model, card)
    except FAULTS as error:
        said = hindrance_of(error, where).words
        raise ValueError(
            f"--register {name}: MLflow at {hide_password(where)} does not take it: {said}; give another name"
        ) from None
    return RegisteredVersion(name, number, hide_password(where))


def _card(run: Path) -> tuple[Card, str]:
    """Return a run's card, and the MLflow that it is logged to."""
    place = str(run.absolute())
    source = Folders([run.absolute()])
    card = next((one for one in source.cards() if one.place == place), None)
    if card is None:
        raise ValueError(f"run {run}: no run there; give the folder that a training, a table or a sweep has written")
    return card, source.uri(place)


def scores_of(run: Path) -> dict[str, float]:
    """Return the scores of a run's best checkpoint, or a pretraining's last metrics; none without its records."""
    source = Folders([run.absolute()])
    return next((source.scores(card) for card in source.cards() if card.place == str(run.absolute())), {})


def _logged(where: str, card: Card, run: Path, own: str) -> LoggedModel:
    """Return the run's model among those that an MLflow has; raise ValueError if it has none."""
    with in_words(where, "--uri"):
        client = existing(where)
        experiment = client.get_experiment_by_name(card.experiment) if client else None
        model = found_model(client, experiment.experiment_id, card.key) if client and experiment else None
    if model is None:
        raise ValueError(
            f"--uri {hide_password(where)}: MLflow there has no model of run {run.name}; expected the MLflow that "
            f"the run is logged to, {hide_password(own)}"
        )
    return model


def _version(client: MlflowClient, name: str, model: LoggedModel, card: Card) -> str:
    """Return the number of the model's version, which is made unless it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ALREADY_THERE:
            raise
    quoted = name.replace("'", "''")
    for version in client.search_model_versions(f"name = '{quoted}'"):
        if version.tags.get(RUN_KEY) == card.key:
            return str(version.version)
    tags = {RUN_KEY: card.key, **({ROW: card.row} if card.row else {})}
    made = client.create_model_version(
        name,
        model.artifact_location,  # of ``models:/ID``, MLflow would look for the ID in another process's store
        model.source_run_id,
        tags,
        description=model.tags.get(DESCRIPTION),
        await_creation_for=0,  # it is there at once; MLflow would print that it waits
        model_id=model.model_id,
    )
    return str(made.version)
