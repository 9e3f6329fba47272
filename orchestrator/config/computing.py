"""Where and how an experiment computes, and what is watched and logged meanwhile."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from methods.base import FrozenConfig
from orchestrator.config.paths import AbsolutePath


class Resources(FrozenConfig):
    """Where a run computes; nothing here changes results.

    workers           at most this many train: the largest number that can share the batch out evenly
    micro_batch_size  samples of a worker that pass through the network at once, so that activations take less memory;
                      none: the worker's whole share of the batch. The loss is always that of the whole batch
    cpus_per_worker   CPUs of each training worker
    readers           processes that read shards ahead for all workers; 0: each worker reads its own samples in a
                      thread, which spares a small machine five processes of Ray Data
    reader_resource   a custom resource; each reader takes one, so that readers run on the nodes that have it, such as
                      cluster.yaml's machines for reading
    max_failures      how often a training starts again from its last checkpoint
    storage           folder or bucket for checkpoints that every node reaches (default: the run's own folder)
    """

    workers: int = Field(default=1, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)
    readers: int = Field(default=1, ge=0)
    max_failures: int = Field(default=3, ge=0)
    reader_resource: Annotated[str, Field(min_length=1)] | None = None
    storage: AbsolutePath | None = None

    @model_validator(mode="after")
    def _placed_readers_exist(self) -> "Resources":
        if self.reader_resource and not self.readers:
            raise ValueError(
                f"reader_resource {self.reader_resource} places readers, and readers is 0: the workers read for "
                "themselves; set readers to at least 1, or leave reader_resource out"
            )
        return self


class Training(FrozenConfig):
    """How steps are computed and how often they are reported and saved.

    report_every_steps, report_every_s   a report is due after this many steps, but not before this many seconds have
                                         passed since the last report, because all workers wait for each other to
                                         report
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    sync_batch_norm: bool = True
    report_every_steps: int = Field(default=10, gt=0)
    report_every_s: float = Field(default=1.0, ge=0)
    checkpoint_every_steps: int = Field(default=200, gt=0)


class Health(FrozenConfig):
    """Label-free metrics of the encoder while it is pretrained: effective rank, collapse, uniformity, alignment.

    times     how often over the budget (0: never)
    samples   how many training samples are measured, always the same ones; the rank is at most this
    """

    times: int = Field(default=10, ge=0)
    samples: int = Field(default=256, ge=2)


class Tracking(FrozenConfig):
    """The MLflow to use; None is the SQLite store under ``home``, or ``MLFLOW_TRACKING_URI`` if it is set."""

    uri: str | None = None
    pictures: bool = True
