"""Resume: a stage's checkpoints, its progress, and the feed of its remaining samples.

A checkpoint counts once it is whole: its ``state.json`` is written last and names the size of every other file.
Train's controller calls ``remaining`` whenever it starts workers. The controller is a process of its own, so this
file imports neither methods nor encoders.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from pyarrow import fs
from ray.data import Dataset

from data.files import is_file, join, locate, reaching, read_bytes, shown
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan

STATE = "state.json"
# Ray Train's own list of the checkpoints of a stage.
SNAPSHOT = "checkpoint_manager_snapshot.json"
_NAME = re.compile(r"step_\d{9}")


class DamageError(ValueError):
    """A checkpoint is not whole; the message names the damaged file."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A whole checkpoint: its address, and the contents of its ``state.json``.

    history  the steps since the checkpoint before it
    """

    uri: str
    state: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.uri.partition("?")[0].rsplit("/", 1)[1]

    @property
    def step(self) -> int:
        """The number of steps that are done."""
        return self.state["step"]


@dataclass(frozen=True)
class CheckpointSearch:
    """The checkpoints of a stage: the newest whole one, and the damage of newer ones, the newest first."""

    newest: SavedCheckpoint | None
    damages: tuple[DamageError, ...]


@dataclass(frozen=True)
class StageCheckpoints:
    """The checkpoints of a stage, in its folder or on s3://, where every node reaches them."""

    uri: str

    def find(self) -> CheckpointSearch:
        """Find the newest whole checkpoint; raise DamageError if there are checkpoints but none is whole."""
        damages: list[DamageError] = []
        for name in reversed(self._names()):
            try:
                return CheckpointSearch(read(join(self.uri, name)), tuple(damages))
            except DamageError as damage:
                damages.append(damage)
        if damages and self._listed():
            raise DamageError(
                f"no checkpoint in {shown(self.uri)} is whole: {damages[0]}; expected one to go on from; put its "
                "files back, or delete that folder to begin again"
            )
        return CheckpointSearch(None, tuple(damages))

    def step(self) -> int:
        """Return the number of steps that are done."""
        newest = self.find().newest
        return newest.step if newest else 0

    def held_steps(self) -> list[dict[str, Any]]:
        """Return the steps that the whole checkpoints hold, in order.

        With a worker, Ray Train loses the last reports; a checkpoint that was lost so is here until it is reported.
        """
        whole = [checkpoint for name in self._names() if (checkpoint := _whole(join(self.uri, name)))]
        return [entry for checkpoint in whole for entry in checkpoint.history]

    def best(self, newest: SavedCheckpoint) -> SavedCheckpoint:
        """Return the checkpoint with the best score up to the newest."""
        return read(join(self.uri, name_of(newest.state["best_step"])))

    def repair(self) -> None:
        """Put Ray Train's list of checkpoints aside if it is torn or names a damaged checkpoint.

        Ray writes the list in place. With a torn list, it would delete a new checkpoint under a damaged one's name.
        """
        whole = {name for name in self._names() if _whole(join(self.uri, name))}
        if (listed := self._listed()) is not None and not listed <= whole:
            filesystem, path = locate(join(self.uri, SNAPSHOT))
            with reaching(self.uri):
                filesystem.move(path, path + ".broken")

    def _names(self) -> list[str]:
        filesystem, path = locate(self.uri)
        with reaching(self.uri):
            infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos if _NAME.fullmatch(info.base_name))

    def _listed(self) -> set[str] | None:
        """Return the names in Ray's list, or None if there is none; a torn list names what does not exist."""
        if not is_file(join(self.uri, SNAPSHOT)):
            return None
        text = read_bytes(join(self.uri, SNAPSHOT)).decode(errors="replace")
        try:
            json.loads(text)
        except json.JSONDecodeError:
            return {"torn", *_NAME.findall(text)}
        return set(_NAME.findall(text))


def name_of(step: int) -> str:
    """Return the name of the checkpoint after this many steps."""
    return f"step_{step:09d}"


def read(uri: str) -> SavedCheckpoint:
    """Read a checkpoint's ``state.json``; raise DamageError if the checkpoint is not whole."""
    filesystem, path = locate(uri)
    name = uri.partition("?")[0].rsplit("/", 1)[1]
    try:
        text = read_bytes(join(uri, STATE))
    except FileNotFoundError:
        raise DamageError(f"checkpoint {name}: {STATE} is missing") from None
    try:
        card = json.loads(text)
        saved, sizes = SavedCheckpoint(uri, card["state"], card["history"]), card["files"]
    except (ValueError, KeyError):
        raise DamageError(f"checkpoint {name}: {STATE} is cut off after {len(text)} bytes") from None
    with reaching(uri):
        infos = filesystem.get_file_info([f"{path}/{file}" for file in sizes])
    for info, (file, size) in zip(infos, sizes.items(), strict=True):
        if info.size != size:
            found = "is missing" if info.type == fs.FileType.NotFound else f"has {info.size} bytes"
            raise DamageError(f"checkpoint {name}: {file} {found}, expected {size} bytes")
    return saved


def _whole(uri: str) -> SavedCheckpoint | None:
    try:
        return read(uri)
    except DamageError:
        return None


def remaining(progress: StageCheckpoints, plan: FeedPlan) -> Dataset:
    """Build the feed from the newest checkpoint on."""
    return stream.build_dataset(replace(plan, first_step=progress.step()))
