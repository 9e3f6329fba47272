import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store; making its tables takes seconds, so the tests of this folder share one."""
    home = tmp_path_factory.mktemp("home")
    return f"sqlite:///{home}/mlflow.db"
