"""Answers: what an experiment's tables and sweeps have found, as the description of its page in MLflow.

The page shows the description's first line above the list of runs, whatever a person has chosen there: so the newest
table comes first, then the newest sweep.
"""

import re

from mlflow import MlflowClient

from orchestrator.tracking.tags import ANSWER, DESCRIPTION

WRITTEN = "raydiology.answers"  # what was written last: anything else is a person's, and stays
MOST_ANSWERS = 10
MOST_CHARS = 4900  # a tag of an experiment takes 5000


def describe_experiment(client: MlflowClient, run_id: str) -> None:
    """Say on the page of a run's experiment what its tables and sweeps found; leave what a person wrote there."""
    experiment_id = client.get_run(run_id).info.experiment_id
    tags = client.get_experiment(experiment_id).tags
    if tags.get(DESCRIPTION, "") != tags.get(WRITTEN, ""):
        return
    said = [
        run.data.tags[ANSWER]
        for kind in ("table", "sweep")
        for run in client.search_runs([experiment_id], f"tags.kind = '{kind}'", max_results=MOST_ANSWERS)
        if ANSWER in run.data.tags
    ]
    text = "\n\n".join(map(_escaped, said))[:MOST_CHARS]
    for key in (WRITTEN, DESCRIPTION):
        client.set_experiment_tag(experiment_id, key, text)


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is: names of rows and metrics hold its marks."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", text)
