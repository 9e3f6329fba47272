"""What a stage leaves, without Ray's workers."""

import pytest

from orchestrator.cluster import connection


def test_processes_of_a_joined_cluster_are_told_what_ray_train_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    for name in expected:
        monkeypatch.setenv(name, "anything")  # so that it is put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    connection.set_up_train()
    told = connection._runtime_env(umask=0o022)["env_vars"]
    assert {name: told.get(name) for name in expected} == expected
