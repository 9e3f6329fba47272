"""Tags: names under which a run's tags are found again, MLflow's own and ours."""

DESCRIPTION, RUN_NAME = "mlflow.note.content", "mlflow.runName"
ORIGIN = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")
ANSWER, ROW, RUN_KEY = "answer", "row", "run_key"
