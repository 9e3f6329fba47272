"""A job is placed by its CPUs and its GPUs: it is refused if the cluster has too few, and shares what there is."""

import pytest
from pydantic import ValidationError

from orchestrator.cluster import connection
from orchestrator.cluster.connection import PlacementError
from orchestrator.config.computing import Resources

ON_GPUS = Resources(workers=2, gpu=True)


def has(monkeypatch: pytest.MonkeyPatch, **capacity: float) -> None:
    monkeypatch.setattr(connection, "capacity", lambda: capacity)


@pytest.mark.parametrize("capacity", [{"CPU": 64.0}, {"CPU": 64.0, "GPU": 1.0}])
def test_a_job_with_more_workers_than_gpus_is_refused(
    monkeypatch: pytest.MonkeyPatch, capacity: dict[str, float]
) -> None:
    has(monkeypatch, **capacity)
    said = rf"2 workers x 1 GPU, the cluster has {capacity.get('GPU', 0):g} GPUs; lower resources\.workers"
    with pytest.raises(PlacementError, match=said):
        connection.preflight(ON_GPUS)
    connection.preflight(ON_GPUS.model_copy(update={"gpu": False}))


def test_a_job_with_a_gpu_for_each_worker_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, CPU=64.0, GPU=2.0)
    connection.preflight(ON_GPUS)


def test_a_job_with_too_few_cpus_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, CPU=6.0)
    with pytest.raises(PlacementError, match=r"3 workers x 2 CPU \+ 1 readers \+ 1 for reading ahead = 8 CPUs"):
        connection.preflight(Resources(workers=3, cpus_per_worker=2))
    connection.preflight(Resources(workers=3, cpus_per_worker=2, readers=0))


def test_a_place_for_readers_that_do_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="reader_resource reader places readers, and readers is 0: the workers"):
        Resources(readers=0, reader_resource="reader")


@pytest.mark.parametrize(("gpus", "jobs"), [(2.0, 1), (5.0, 2), (64.0, 4)])
def test_as_many_jobs_run_at_once_as_have_gpus_and_cpus(
    monkeypatch: pytest.MonkeyPatch, gpus: float, jobs: int
) -> None:
    has(monkeypatch, CPU=16.0, GPU=gpus)
    assert connection.fitting(ON_GPUS) == connection.concurrency([ON_GPUS], None) == jobs
