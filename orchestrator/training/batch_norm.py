"""Batch norm: refuse a training whose batch norm could not be computed, or would not be that of the whole batch."""

from collections.abc import Callable
from copy import deepcopy

import torch

from methods.base import Method
from methods.parts.sync_batch_norm import BatchNorm
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream, Stage
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.training.outline import outline_views

# The words of torch.nn.functional.batch_norm.
_SINGLE = "Expected more than 1 value per channel"


def check_batch_norm(
    experiment: Experiment, training: Stage | Downstream, method: Method, samples: Callable[[], FeedPlan]
) -> None:
    """Raise ValueError where batch norm has one value per channel, or micro-batches have statistics of their own.

    ``method`` is an outline; ``samples`` plans the feed that a single sample is read from.
    """
    _check_chunks(experiment, training, method)
    shares, sync = experiment.shares_of(training), experiment.training.sync_batch_norm
    together = shares.batch_size if sync else shares.samples
    normalised = any(isinstance(part, BatchNorm) for part in method.modules())
    if together == 1 and normalised and not _passes_alone(method, samples()):
        field = "downstream.budget.batch_size" if isinstance(training, Downstream) else "budget.batch_size"
        raise ValueError(_alone(field, shares.batch_size))


def _check_chunks(experiment: Experiment, training: Stage | Downstream, method: Method) -> None:
    joined = experiment.training.sync_batch_norm and any(
        isinstance(part, BatchNorm) for part in method.trained_in_chunks()
    )
    shares = experiment.shares_of(training)
    if not joined or shares.num_chunks == 1:
        return
    raise ValueError(
        f"resources.micro_batch_size {shares.micro_batch_size}: the {shares.samples} samples of a worker would pass "
        f"batch norm in {shares.num_chunks} chunks, each with statistics of its own; set resources.workers to "
        f"{shares.workers_without_chunks}, which take their statistics together, or resources.micro_batch_size to "
        f"{shares.samples}, take an encoder without batch norm (swin_unetr, or unet with norm=instance), or set "
        "training.sync_batch_norm=false, which leaves each chunk its own statistics"
    )


def _passes_alone(method: Method, plan: FeedPlan) -> bool:
    """Tell whether a single sample passes the method, by sizes alone."""
    batch = stream.first_samples(plan, 1)
    with torch.no_grad():
        views = outline_views(method, batch, plan.seed)
        try:
            deepcopy(method).to("meta").loss(views)
        except ValueError as error:
            if _SINGLE not in str(error):
                raise
            return False
    return True


def _alone(field: str, batch_size: int) -> str:
    told = f"{field} {batch_size}: batch norm would normalise over a single value per channel, expected at least 2"
    if batch_size == 1:
        return f"{told}; set {field} to 2 or more"
    return (
        f"{told}, because training.sync_batch_norm=false leaves each worker its own statistics; set it to true, or "
        f"resources.workers to {batch_size // 2} or fewer"
    )
