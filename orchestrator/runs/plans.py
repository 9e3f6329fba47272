"""Plans: how long a training goes on and what feeds it, of a stage and of a fine-tuning alike."""

from data.labels import Labels
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream, Stage
from orchestrator.feed.plan import FeedPlan, SetPlan
from orchestrator.training.checkpoint import Stream
from orchestrator.training.loop import Plan
from orchestrator.training.optimiser import Schedule


def training_plan(experiment: Experiment, training: Stage | Downstream, num_samples: int, digest: str) -> Plan:
    """Turn a training's budget into steps over samples of the shards of a digest."""
    settings = experiment.training
    return Plan(
        schedule=Schedule.of(training.optimiser, training.budget, num_samples),
        stream=Stream(digest, experiment.seed_of(training), training.budget.batch_size),
        num_samples=num_samples,
        precision=settings.precision,
        num_chunks=experiment.shares_of(training).num_chunks,
        sync_batch_norm=settings.sync_batch_norm,
        report_every_steps=settings.report_every_steps,
        report_every_s=settings.report_every_s,
        checkpoint_every_steps=settings.checkpoint_every_steps,
    )


def feed_plan(
    experiment: Experiment, training: Stage | Downstream, plan: Plan, sets: tuple[SetPlan, ...], having: Labels | None
) -> FeedPlan:
    """Plan the feed of a training from its first step to its last."""
    resources = experiment.resources_of(training)
    return FeedPlan(
        sets=sets,
        having=having,
        seed=plan.stream.seed,
        batch_size=plan.stream.batch_size,
        world=resources.workers,
        last_step=plan.total_steps,
        num_readers=resources.readers,
        reader_resource=resources.reader_resource,
    )
