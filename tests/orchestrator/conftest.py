"""One local Ray for all tests of the orchestrator, and a home of their own for pseudonym keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import worker

from orchestrator.cluster.connection import connected


@pytest.fixture(scope="session", autouse=True)
def raydiology_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep keys out of the person's own home."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("RAYDIOLOGY_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Path]:
    """Start Ray once, as the commands start it, and shut down only what was started; the session's folder."""
    with connected():
        node = worker._global_node
        assert node is not None
        yield Path(node.get_session_dir_path())


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store; making its tables takes seconds, so tests share one, each with an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
