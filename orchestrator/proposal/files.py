"""Initial: a first experiment for some shards, and a table beside it, as commented YAML that runs as it is.

What it says is decided in ``numbers.py``; here it is measured against memory, written down, and checked as a dry run
would check it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.shards.index import ShardSet
from orchestrator.config.files import merge, resolve
from orchestrator.config.paths import absolute
from orchestrator.config.yaml_text import parsed
from orchestrator.proposal import experiment_text, table_text
from orchestrator.proposal.experiment_text import FileHead
from orchestrator.proposal.fingerprint import Fingerprint, LabelFacts, Machine, TooFewLabelsError, by
from orchestrator.proposal.numbers import (
    Pretraining,
    ReasonedValue,
    batch_of,
    pretrainings,
    size_of,
    without_outliers,
)
from orchestrator.proposal.yaml_text import sentence
from orchestrator.runs import finetune, memory, pretrain
from orchestrator.runs.course import Course

# What else lives in the memory: Ray's object store, other programs, the system.
USABLE_SHARE = {"cpu": 0.5, "gpu": 0.85}
NO_LABELS = "Nothing is labelled here."


@dataclass(frozen=True)
class Initial:
    """The texts of a first experiment and of its table; None where no labels judge it."""

    experiment: str
    table: str | None


def place(shards: str, out: str | None) -> tuple[Path, Path]:
    """Return where the experiment and its table are written: ``out``, or a file named after the shards.

    ``out`` is a file that ends in .yaml, or a folder. Raises ValueError where either file exists.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", shards.rstrip("/").rpartition("/")[2]).strip("-._") or "first"
    given = Path(out) if out else Path()
    path = given if given.suffix in (".yaml", ".yml") else given / f"{name}.yaml"
    table = path.with_name(f"{path.stem}_table{path.suffix}")
    for file in (path, table):
        if file.exists():
            raise ValueError(
                f"{file} exists; expected a name that is free, so that nothing of yours is overwritten; delete the "
                "file, or give another by --out"
            )
    return path, table


def write(shards: str, labelled: str | None, out: str | None, machine: Machine) -> list[Path]:
    """Write the experiment, and the table where labels can judge it; return the files.

    Raises ValueError if the shards allow no experiment, before anything is written.
    """
    experiment, table = place(shards, out)
    texts = propose(shards, labelled, experiment, machine)
    experiment.parent.mkdir(parents=True, exist_ok=True)
    experiment.write_text(texts.experiment)
    if texts.table is None:
        return [experiment]
    table.write_text(texts.table)
    return [experiment, table]


def propose(shards: str, labelled: str | None, path: Path, machine: Machine) -> Initial:
    """Decide, measure and check a first experiment for a file at ``path``."""
    pool, judged_by = ShardSet.open(absolute(shards)), ShardSet.open(absolute(labelled or shards))
    fingerprint, labels, lacking = Fingerprint.of(pool), None, NO_LABELS
    try:
        labels = LabelFacts.of(judged_by)
    except TooFewLabelsError as error:
        if labelled:
            raise
        lacking = f"Nothing judges this encoder yet. {sentence(str(error))}"
    if labelled and labels is None:
        raise ValueError(
            f"shards {labelled}: 0 samples with label maps, boxes or classes, expected some; ingest scans together "
            "with their labels, or leave --labelled out"
        )
    if labels and judged_by.spatial_dims != fingerprint.spatial_dims:
        raise ValueError(
            f"shards {labelled}: {judged_by.spatial_dims}D samples, those of {shards} are "
            f"{fingerprint.spatial_dims}D; ingest both with the same recipe"
        )
    size = size_of(fingerprint, machine)
    fingerprint = without_outliers(fingerprint, size.crop)
    first, second = pretrainings(fingerprint, size)
    places = {"shards": shards, "labelled": labelled or shards}
    head = FileHead(path, fingerprint, labels, lacking, machine, size, places)
    batch = _batch(head, (first, second))
    experiment = experiment_text.experiment(head, first, batch)
    table = table_text.table(head, (first, second)) if labels else None
    _check(experiment, [{}, {"method": second.method, "optimiser": second.optimiser}], str(path))
    return Initial(experiment, table)


def _batch(head: FileHead, rows: Sequence[Pretraining]) -> ReasonedValue:
    """Choose the batch by the memory that two real samples need under the hungrier method."""
    machine, fingerprint = head.machine, head.fingerprint
    kind = "gpu" if machine.gpus else "cpu"
    usable = USABLE_SHARE[kind] * (machine.gpu_bytes if machine.gpus else machine.free_bytes)
    fits = []
    for row in rows:
        tree = {
            "name": "fit",
            "data": {
                "shards": fingerprint.uri,
                "split": fingerprint.split,
                "keep": {"min_size": fingerprint.min_size},
            },
            "encoder": _encoder(head),
            "method": row.method,
            "optimiser": row.optimiser,
            "budget": {"steps": 1, "batch_size": 2},
        }
        needed = memory.stage_memory(Course.open(resolve(tree)))
        fits.append(int((usable / memory.OVERHEAD - needed.fixed_bytes) / needed.per_sample_bytes))
    if min(fits) < 2:
        raise ValueError(
            f"memory for {max(0, min(fits))} samples of {by(fingerprint.median)} voxels ({usable / 2**30:.1f} GiB), "
            "expected at least 2; close other programs, or ingest with a recipe that resamples to fewer voxels"
        )
    return batch_of(head.size.batch, fingerprint.num_samples, min(fits), machine)


def _encoder(head: FileHead) -> dict[str, Any]:
    fingerprint = head.fingerprint
    return {
        "name": "unet",
        "spatial_dims": fingerprint.spatial_dims,
        "in_channels": fingerprint.num_channels,
        "features": list(head.size.features),
        "norm": "batch",
    }


def _check(text: str, rows: Sequence[dict[str, Any]], source: str) -> None:
    """Raise ValueError where a row could not run."""
    tree = parsed(text)
    for changes in rows:
        pretrain.check(resolve(merge(tree, changes), source=source))
    if "downstream" in tree:
        finetune.check(resolve(tree, source=source))
