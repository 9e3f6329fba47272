"""Pages: addresses of MLflow's own pages, so that they open on the runs that are compared."""

import json
from dataclasses import dataclass
from urllib.parse import quote

from orchestrator.tracking import hide_password

LOCAL = "http://127.0.0.1:5000"  # where `raydiology ui` serves a home's store


@dataclass(frozen=True)
class Known:
    """Where MLflow knows some runs: its address or store, their experiment's id and their own."""

    uri: str
    experiment_id: str
    run_ids: tuple[str, ...]

    @property
    def server(self) -> str:
        """The address that a browser opens."""
        return hide_password(self.uri).rstrip("/") if self.uri.startswith("http") else LOCAL


def charts_page(known: Known, kind: str, metric: str) -> str:
    """Return the address of a chart per metric over all runs of a kind, the highest first.

    Sorted by a metric, MLflow lists runs flat; by date it would hide them below their parents.
    """
    wanted, order = quote(f"tags.kind = '{kind}'"), quote(f"metrics.`{metric}`")
    query = f"compareRunsMode=CHART&searchFilter={wanted}&orderByKey={order}&orderByAsc=false"
    return f"{known.server}/#/experiments/{known.experiment_id}/runs?workflowType=machine_learning&{query}"


def parallel_page(known: Known) -> str:
    """Return the address of the runs' parallel coordinates, scatter, box and contour plots."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":")), safe="[],") for ids in (known.run_ids, [known.experiment_id])
    )
    return f"{known.server}/#/compare-runs?runs={runs}&experiments={experiments}"
