"""Models: a run's encoder or network among MLflow's logged models, with signature, card, scores and lineage.

MLflow's page of a model shows the run that made it, its scores on its data set, and the run's page the models that it
began with. A model is found again by its run's key, so that one which was half sent is completed, and none is twice.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from orchestrator.direction import as_logged
from orchestrator.tracking.outbox import located
from orchestrator.tracking.tags import DESCRIPTION, ORIGIN, RUN_KEY

MOST_TAG_CHARS, MOST_DIGEST_CHARS = 5000, 36
FLAVOUR = "raydiology"
ACCEPTED = str.maketrans(".:/%\"'", "\u00b7-----")  # MLflow refuses these in a model's name, a middle dot it takes


def log_model(client: MlflowClient, folder: Path, line: dict[str, Any], run_id: str) -> LoggedModel:
    """Log the model that a record of a run's outbox tells of, unless it is there already."""
    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    files = [located(folder, place) for place in line["files"]]
    known = found_model(client, experiment_id, line["key"])
    origin = {key: value for key, value in run.data.tags.items() if key in ORIGIN}
    model = known or _created(client, experiment_id, line, run_id, origin)
    if model.status != LoggedModelStatus.READY:
        for file in files:
            client.log_model_artifact(model.model_id, str(file))
        _log_description(client, model, line, run_id, [file.name for file in files])
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    # A link that is there already would be refused.
    if model.model_id not in [made.model_id for made in (run.outputs.model_outputs if run.outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    client.log_batch(run_id, metrics=_metrics(line, model.model_id, run_id))
    began = found_model(client, experiment_id, line["start"]) if line["start"] else None
    if began and began.model_id not in [given.model_id for given in (run.inputs.model_inputs if run.inputs else [])]:
        client.log_inputs(run_id, models=[LoggedModelInput(began.model_id)])
    return model


def found_model(client: MlflowClient, experiment_id: str, key: str) -> LoggedModel | None:
    """Return the model of the run with a key; None if it was not logged."""
    models = client.search_logged_models([experiment_id], f"tags.{RUN_KEY} = '{key}'", max_results=1)
    return models[0] if models else None


def _created(
    client: MlflowClient, experiment_id: str, line: dict[str, Any], run_id: str, origin: dict[str, str]
) -> LoggedModel:
    return client.create_logged_model(
        experiment_id,
        line["name"].translate(ACCEPTED),
        run_id,
        {**origin, RUN_KEY: line["key"], DESCRIPTION: line["card"][:MOST_TAG_CHARS]},
        line["params"],
        line["kind"],
    )


def _log_description(
    client: MlflowClient, model: LoggedModel, line: dict[str, Any], run_id: str, files: Sequence[str]
) -> None:
    """Log the file that says what the model takes and gives, in MLflow's own form."""
    described = Model(
        run_id=run_id,
        model_id=model.model_id,
        flavors={FLAVOUR: {"files": list(files), "kind": line["kind"]}},
        signature=ModelSignature(_schema(line["inputs"]), _schema(line["outputs"])),
    )
    with TemporaryDirectory() as place:
        described.save(str(Path(place) / "MLmodel"))
        client.log_model_artifact(model.model_id, str(Path(place) / "MLmodel"))


def _schema(tensors: Sequence[dict[str, Any]]) -> Schema:
    return Schema([TensorSpec(np.dtype(one["dtype"]), tuple(one["shape"]), one["name"]) for one in tensors])


def _metrics(line: dict[str, Any], model_id: str, run_id: str) -> list[Metric]:
    """Return the model's scores, or its last loss, on its data set: MLflow's page of the model names it so."""
    name_of_set, digest = line["dataset"]
    points = [(as_logged(name), value, line["timestamp"], 0) for name, value in line["scores"].items()]
    if line["loss"]:
        points.append(("loss", *line["loss"]))
    return [Metric(*point, model_id, name_of_set, digest[:MOST_DIGEST_CHARS], run_id) for point in points]
