"""Run: one training's folder, MLflow run, progress bar and result; pretraining and fine-tuning share it."""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import check_writable, join
from data.shards.index import ShardSet
from data.shards.mixture import joint_digest
from data.shards.writer import write_atomically
from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.direction import BEST, is_detail
from orchestrator.lock import claimed
from orchestrator.provenance import git_commit
from orchestrator.runs.details import details_of
from orchestrator.terminal import progress
from orchestrator.terminal.training_progress import shown
from orchestrator.tracking.model_record import ModelRecord
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tags import DESCRIPTION
from orchestrator.tracking.tracker import Tracker, flatten, now_ms

RESULT = "result.json"


@dataclass(frozen=True)
class Caption:
    """The description of a run on MLflow's page; ``row`` is the table's row that it belongs to."""

    title: str
    description: str
    seed: str
    row: str | None = None


def tracker_of(folder: Path, experiment: Experiment) -> Tracker:
    """Return the tracker of an experiment's run, in the MLflow that the experiment names or in that of its home."""
    return Tracker(folder, experiment.tracking.uri or default_uri(Path(experiment.home)))


@contextmanager
def parent(
    folder: Path, experiment: Experiment, title: str, description: str, tags: dict[str, str]
) -> Generator[Tracker]:
    """Open an MLflow run that others are children of while the body runs."""
    tracker = tracker_of(folder, experiment)
    told = {**tags, "git_commit": git_commit(), DESCRIPTION: description}
    tracker.start(experiment.name, title, folder.name, told)
    tracker.flush(force=True)
    try:
        with tracker.closing():
            yield tracker
    finally:
        tracker.flush(force=True)


class Run:
    """A training with an identity: the same key resumes it, or finds it done."""

    def __init__(self, folder: Path, experiment: Experiment, kind: str, key: str, parent: Path | None = None) -> None:
        self.folder = folder
        self.experiment = experiment
        self.kind = kind
        self.key = key
        self.parent = parent
        check_writable(experiment.home, "home")
        self.tracker = tracker_of(folder, experiment)

    @property
    def storage(self) -> str:
        """Where checkpoints go: ``resources.storage``, or the run's own folder."""
        own = self.experiment.downstream.resources if self.kind == "finetune" and self.experiment.downstream else None
        remote = (own or self.experiment.resources).storage
        return join(remote, self.folder.name) if remote else str(self.folder / "checkpoints")

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None."""
        path = self.folder / RESULT
        return json.loads(path.read_text()) if path.exists() else None

    def recorded(self, address: str) -> str:
        """Return an address as this run's records have it: relative to its folder if it lies there."""
        inside = "://" not in address and Path(address).absolute().is_relative_to(self.folder.absolute())
        return str(Path(address).absolute().relative_to(self.folder.absolute())) if inside else address

    def located(self, record: str) -> str:
        """Return the full address behind one in this run's records, wherever the home is now."""
        return record if "://" in record else str(self.folder / record)

    @contextmanager
    def claimed(self) -> Generator[None]:
        """Wait until no other process works on the run, and hold it while the body runs."""
        with claimed(self.folder, progress.say):
            yield

    @contextmanager
    def opened(self, caption: Caption, shard_sets: Sequence[ShardSet], params: dict[str, Any]) -> Generator[None]:
        """Open the MLflow run around a training on some shards, and close it however the training ends.

        Raises StoppedError if this process was asked to end while it did something else.
        """
        if stop.requested():
            raise stop.StoppedError(f"{self.kind}: not begun, as asked; the same command goes on from there")
        write_atomically(self.folder / "experiment.json", self.experiment.model_dump_json(indent=2))
        tags = {
            "kind": self.kind,
            DESCRIPTION: caption.description,
            "seed": caption.seed,
            **({"row": caption.row} if caption.row else {}),
            "dataset_digest": joint_digest([shards.digest for shards in shard_sets]),
            "recipe": ", ".join(dict.fromkeys(str(shards.recipe.get("name")) for shards in shard_sets)),
            "git_commit": git_commit(),
            **connection.hardware(),
        }
        with progress.phase("opening the MLflow run"):
            self.tracker.start(self.experiment.name, caption.title, self.key, tags, self.parent)
            self.tracker.params(flatten(params))
            for shards in shard_sets:
                self.tracker.dataset(Path(shards.uri).name, shards.digest, shards.uri)
            self.tracker.artifact(self.folder / "experiment.json")
            self.tracker.flush()
        try:
            with self.tracker.closing():
                yield
        finally:
            with progress.phase("sending the rest to MLflow"):
                self.tracker.flush(force=True)

    @contextmanager
    def stage(
        self, name: str, total_steps: int, validated: Callable[[int], bool] | None = None
    ) -> Generator[Callable[[list[dict[str, Any]]], None]]:
        """Show how a stage trains and send its history; yield a function that takes the history's lines.

        ``validated`` returns whether a validation follows a step.
        """
        what = self.kind if name == self.kind else f"{self.kind} {name}"
        with shown(what, total_steps, validated) as show:

            def follow(lines: list[dict[str, Any]]) -> None:
                if entries := [line for line in lines if "step" in line]:
                    show(entries)
                self.tracker.flush()

            yield follow

    def remark(self, text: str | None) -> None:
        """Print a remark about this run, if there is one."""
        if text is not None:
            progress.say(f"{self.kind}: {text}")

    def keep(self, name: str, text: str) -> None:
        """Keep a text in the run's folder and log it."""
        write_atomically(self.folder / name, text)
        self.tracker.artifact(self.folder / name)

    def picture(self, name: str, png: bytes) -> None:
        """Keep a picture in the run's folder and log it."""
        path = self.folder / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, png)
        self.tracker.artifact(path, "pictures")

    def finish(
        self, result: dict[str, Any], best: dict[str, float], artifacts: list[Path], model: ModelRecord | None = None
    ) -> None:
        """Write the result, which marks the run as done, and log its model and the numbers for comparisons."""
        now = now_ms()
        if details := details_of(self.folder, result):
            self.tracker.artifact(details)
        best = {f"{BEST}{name}": value for name, value in best.items() if not is_detail(name)}
        self.tracker.summary(best, now)
        if model is not None:
            self.tracker.model(model, now)
        for path in artifacts:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                self.tracker.artifact(file, path.name if path.is_dir() else "")
        write_atomically(self.folder / RESULT, json.dumps(result, indent=2))
