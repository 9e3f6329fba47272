"""Resume: how far a stage has come, and the feed of what remains of it.

Train's controller calls ``remaining`` whenever it starts workers. It is a process of its own, so this file imports
neither methods nor encoders.
"""

import json
from dataclasses import dataclass, replace

from ray.data import Dataset
from ray.train import Checkpoint, Result

from data.files import is_file, join, reaching
from orchestrator import feed
from orchestrator.feed import FeedPlan

STATE = "state.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Progress:
    """The checkpoints of a stage.

    uri         the stage's folder, or s3://, reachable from every node
    recovered   a checkpoint to start from where Ray Train's own list of them is lost
    """

    uri: str
    recovered: str | None = None

    def newest(self) -> Checkpoint | None:
        """Return the newest committed checkpoint, or None where there is none yet."""
        if not is_file(join(self.uri, SNAPSHOT)):
            return Checkpoint(self.recovered) if self.recovered else None
        with reaching(self.uri):
            return Result.from_path(self.uri).checkpoint

    def step(self) -> int:
        """Return the number of steps that are done."""
        if (checkpoint := self.newest()) is None:
            return 0
        assert checkpoint.filesystem is not None, "a checkpoint has a path"
        with reaching(self.uri), checkpoint.filesystem.open_input_file(f"{checkpoint.path}/{STATE}") as file:
            return json.loads(file.read())["state"]["step"]


def remaining(progress: Progress, plan: FeedPlan) -> Dataset:
    """Build the feed from the newest checkpoint on."""
    return feed.build_dataset(replace(plan, first_step=progress.step()))
