"""Held out: score a fine-tuned network on its test split, by which nothing was chosen."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.train import Checkpoint

from methods.downstream.base import TaskScores
from orchestrator.config.experiment import Experiment
from orchestrator.direction import TEST
from orchestrator.judging.cases import with_patients
from orchestrator.judging.validation import evidence_of
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.network import trained_network
from orchestrator.stop import RunError
from orchestrator.training.loop import World


def check_tested(experiment: Experiment, metrics: Iterable[str]) -> None:
    """Raise ValueError if one of the metrics is a score on the test split, and the fine-tuning has none."""
    tested = next((name for name in metrics if name.startswith(TEST)), None)
    if tested and downstream_of(experiment).test_split is None:
        raise ValueError(
            f"metric {tested!r}: nothing is tested; set downstream.test_split, or name a metric of the validation"
        )


def score_held_out(experiment: Experiment, checkpoint: str) -> TaskScores:
    """Score a checkpoint of the fine-tuning on the test split, with the resources of one of its workers.

    Raises RunError if the process that scores dies, and ValueError where the score is not defined on the test split.
    """
    resources = experiment.resources_of(downstream_of(experiment))
    scoring = ray.remote(
        max_retries=resources.max_failures,
        num_cpus=resources.cpus_per_worker,
        num_gpus=int(resources.gpu),
        scheduling_strategy="DEFAULT",  # outside the placement group of a process of the pool, which holds no CPU
    )(_score)
    try:
        return ray.get(scoring.remote(experiment, checkpoint))
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise RunError(
            f"test split: the process that scores it died: {str(error).splitlines()[0]} The same command goes on "
            "from there"
        ) from error


def _score(experiment: Experiment, checkpoint: str) -> TaskScores:
    task = downstream_of(experiment)
    labelled = labelled_samples(task)
    assert labelled.test is not None, "there is a test split to score"
    with Checkpoint(checkpoint).as_directory() as folder:
        method = trained_network(experiment, labelled.shards, Path(folder))
    world = World(device=torch.device("cuda" if experiment.resources_of(task).gpu else "cpu"))
    method = method.to(world.device)
    scores = method.scores(evidence_of(method, labelled.shards, labelled.test.row_ids, world))
    return replace(scores, cases=with_patients(scores.cases, labelled.shards, labelled.test.row_ids))
