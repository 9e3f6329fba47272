"""Hosts: on which machines of a cluster the processes of a pool run.

They wait for their trainings most of the time, but each imports all that a training takes, and Ray Train's controller
stands beside it. While they fit into half the memory of the machine that runs the command, they run there: it has the
runs' folders, and no cloud takes it away. More of them go to all machines that see these folders, if all do.
"""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.shards.writer import write_atomically

# Seen of two trials at once (resident memory that no other process shares): 0.7 GB of a job's own process, 0.3 of
# the controller, 0.3 of Ray's helpers beside it.
JOB_BYTES = 1.3e9
SHARE = 0.5  # of the memory of this machine
SLIVER = 0.001
ANSWERED_S = 60.0


def resources_of_a_job(folder: Path, concurrent: int, say: Callable[[str], None]) -> dict[str, float]:
    """Return what each of ``concurrent`` jobs asks Ray for, so that it is placed where ``folder`` can be read.

    The CPUs are for the trainings, so a job asks for none.
    """
    here = {"cpu": 0.0, f"node:{ray.util.get_node_ip_address()}": SLIVER}
    if concurrent * JOB_BYTES <= SHARE * psutil.virtual_memory().total:
        return here
    mine = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != mine]
    if not any(node["Resources"].get("memory", 0.0) >= JOB_BYTES for node in others):
        return here
    blind = [node["NodeManagerHostname"] for node in others if not _sees(node["NodeID"], folder)]
    if blind:
        say(
            f"{concurrent} trials at once take about {concurrent * JOB_BYTES / 1e9:.0f} GB of this machine: "
            f"{', '.join(blind)} cannot read {folder}; put home on a file system that all machines share, or lower "
            "concurrent"
        )
        return here
    return {"cpu": 0.0, "memory": JOB_BYTES}


def _sees(node_id: str, folder: Path) -> bool:
    """Tell whether a machine finds in a folder what was written here."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"seen-{uuid4().hex}"
    write_atomically(note, note.name)
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    try:
        look = ray.remote(num_cpus=0)(_has).options(scheduling_strategy=there)
        return bool(ray.get(look.remote(str(note)), timeout=ANSWERED_S))
    except RayError:
        return False
    finally:
        note.unlink()


def _has(note: str) -> bool:
    return Path(note).is_file() and Path(note).read_text() == Path(note).name
