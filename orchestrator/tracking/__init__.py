"""MLflow: what is logged, kept on disk until a server takes it, and the pages that show it."""

import os

# Before MLflow is imported, whoever imports it.
# A dead server is noticed in seconds; the outbox does the retrying.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
# What a hospital trains on is nobody else's business.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A comparison reads many small files; a bar for each would bury the table.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
