"""Tracking: MLflow through an outbox, so that a server that is down never stops or slows training.

Records are appended to ``outbox.jsonl`` in the run's folder and sent from there in order; the metrics of a training's
steps are sent from its ``history.jsonl``. ``sent.json`` remembers how far each file was sent. Records that could not
be sent wait for the next flush, in this process or a later one.

MLflow gets each step once, as soon as it is reported, with the number and time that the history has for it. Steps
that are trained again after a failure are not sent again: they are the same samples from the same weights, so MLflow
and every other reader of the history keep the value that a step had first. A single number, such as ``best/...``, is
sent again only if it changed. Sending a line twice after a crash is harmless: runs are found by their key, MLflow
drops metrics with equal step, time and value, and params and tags are equal.

A run that MLflow can never take is refused before anything is trained. Later refusals are reported once, in MLflow's
own words: a single line is left out, and if nothing can be sent, everything is kept until someone has fixed that.

Records of a run name other files and runs relative to its folder, so that its home can be moved.
"""

import json
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.history import HISTORY, append, mend
from orchestrator.provenance import UNKNOWN, git_commit, typed_command, user
from orchestrator.stop import StoppedError
from orchestrator.terminal import progress
from orchestrator.tracking.model_record import ModelRecord
from orchestrator.tracking.outbox import OUTBOX, Cursor, posted, size_of
from orchestrator.tracking.store import hide_password
from orchestrator.tracking.tags import ANSWER, ORIGIN, ROW, RUN_NAME

if TYPE_CHECKING:
    from orchestrator.tracking.hindrance import Hindrance

MOST_PARAM_CHARS = 6000
MOST_NUMBERS = 3
RETRY_S = 30.0

_said: set[str] = set()


class UntrackableError(ValueError):
    """MLflow can never take a run; the message says why in MLflow's words, and what to do."""


def say_once(text: str) -> None:
    """Warn the person who waits for this process, once for each text."""
    if text not in _said:
        _said.add(text)
        progress.say(text, style="yellow")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested config into MLflow's flat params: {"method.crops.iou": "[0.3, 0.6]"}.

    MLflow draws only numbers, so the ends of an interval are also params of their own, under the names that a sweep
    gives them ("method.crops.iou.low"), and so are a size's axes ("method.grid.0"). Lists of mappings are numbered in
    the same way ("stages.0.name").
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name, parts = f"{prefix}{key}", _parts(value)
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        elif parts and isinstance(value[0], dict):
            flat |= flatten(parts, f"{name}.")
        else:
            flat[name] = (value if isinstance(value, str) else json.dumps(value))[:MOST_PARAM_CHARS]
            flat |= flatten(parts, f"{name}.")
    return flat


def _parts(value: Any) -> dict[str, Any]:
    """Return a list's mappings, or a short list's numbers, by name; nothing for other values."""
    if not isinstance(value, list):
        return {}
    numbers = len(value) <= MOST_NUMBERS and all(type(part) in (int, float) for part in value)
    if numbers and len(value) == 2 and float in map(type, value) and value[0] <= value[1]:
        return {"low": value[0], "high": value[1]}
    mappings = all(isinstance(part, dict) for part in value)
    return {str(place): part for place, part in enumerate(value)} if numbers or mappings else {}


def plain(name: str) -> str:
    """Return a name that MLflow and file systems take."""
    return re.sub(r"[^\w. -]", "_", name)


class Tracker:
    """One MLflow run, written through its outbox in ``folder``.

    ``key`` finds the run after a restart; ``parent`` is the folder of the run that this run belongs to.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.uri = uri
        self._retry_at = 0.0
        self._hindrance: str | None = None

    def start(
        self, experiment: str, name: str, key: str, tags: dict[str, str] | None = None, parent: Path | None = None
    ) -> None:
        """Open the run, or the existing run with this key; at once if MLflow can be reached.

        Warns if an earlier process left one of the run's files torn. Raises UntrackableError if the run can never be
        opened; then nothing is kept of it.
        """
        for file in (OUTBOX, HISTORY):
            if said := mend(self.folder / file):
                progress.say(said, style="yellow")
        outbox = self.folder / OUTBOX
        before = size_of(outbox)
        self._post(
            op="start",
            experiment=experiment,
            name=name,
            key=key,
            tags={**_origin(parent), **(tags or {})},
            parent=self._relative(parent) if parent else None,
        )
        try:
            self._send()
        except _HinderedError as hindered:
            if hindered.hindrance.lasting and Cursor.read(self.folder).offset <= before:
                os.truncate(outbox, before)
                if before == 0:
                    outbox.unlink()
                raise UntrackableError(
                    f"MLflow at {hide_password(self.uri)} does not take run {name!r} of experiment {experiment!r}: "
                    f"{hindered.hindrance.words}; expected a store or server that does; fix that, or name another "
                    "one in tracking.uri or MLFLOW_TRACKING_URI"
                ) from None
            self._note(hindered.hindrance)

    def params(self, params: dict[str, str]) -> None:
        """Log the settings that were decided before the run; they never change."""
        self._post(op="params", params=params)

    def metrics(self, entries: list[dict[str, Any]]) -> None:
        """Log steps that no history holds, dictionaries with a ``step`` and numbers; each step is logged once."""
        known = {entry["step"] for line in posted(self.folder, ("metrics",)) for entry in line["entries"]}
        if new := [entry for entry in entries if entry["step"] not in known]:
            self._post(op="metrics", entries=new, timestamp=now_ms())

    def summary(self, values: dict[str, float], at_ms: int | None = None) -> None:
        """Log single numbers, such as the best score; unchanged numbers are not logged again."""
        known: dict[str, float] = {}
        for line in posted(self.folder, ("summary",)):
            known |= line["values"]
        if new := {name: value for name, value in values.items() if known.get(name) != value}:
            self._post(op="summary", values=new, timestamp=at_ms or now_ms())

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Log the shards that the run reads."""
        self._post(op="dataset", name=name, digest=digest, source=source)

    def artifact(self, path: Path, into: str = "") -> None:
        """Log a file; it must stay where it is until it is sent."""
        self._post(op="artifact", path=self._relative(path), into=into)

    def model(self, record: ModelRecord, at_ms: int | None = None) -> None:
        """Log the run's model once; its files must stay where they are until they are sent."""
        if not posted(self.folder, ("model",)):
            files = [self._relative(file) for file in record.files]
            self._post(op="model", timestamp=at_ms or now_ms(), **{**asdict(record), "files": files})

    def tags(self, tags: dict[str, str]) -> None:
        """Set tags."""
        self._post(op="tags", tags=tags)

    def answer(self, name: str, row: str, said: str) -> None:
        """Give a table's or sweep's run a name that begins with the answer, and say it on its experiment's page."""
        self.tags({RUN_NAME: name, ANSWER: said, ROW: row})
        self._post(op="answers")

    def finish(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self._post(op="finish", status=status)

    @contextmanager
    def closing(self) -> Generator[None]:
        """Close the run after the body: FAILED if it raised, KILLED if it was interrupted or asked to stop."""
        try:
            yield
        except BaseException as error:
            failed = isinstance(error, ValueError | RuntimeError | OSError) and not isinstance(error, StoppedError)
            try:
                self.finish("FAILED" if failed else "KILLED")
            except OSError as full:  # a person must hear of the first error
                say_once(f"{self.folder.name}: its end could not be noted for MLflow ({full})")
            raise
        self.finish("FINISHED")

    @property
    def run_id(self) -> str | None:
        """MLflow's id, once the run has been created there."""
        return Cursor.read(self.folder).run_id

    def flush(self, force: bool = False) -> str | None:
        """Send all waiting records; say once, and return, why a record could not be sent; None if all were sent.

        After a failure nothing is tried for 30 seconds unless ``force`` is given.
        """
        if not force and time.monotonic() < self._retry_at:
            return self._hindrance
        self._hindrance = None
        try:
            refusals = self._send()
        except _HinderedError as hindered:
            return self._note(hindered.hindrance)
        return refusals[-1] if refusals else None

    def _send(self) -> list[str]:
        """Send all waiting records; say and return what MLflow refused."""
        # Importing MLflow takes a second, which a run's workers need not spend.
        from orchestrator.tracking.hindrance import FAULTS, hindrance_of
        from orchestrator.tracking.mlflow_calls import Sender

        sender = Sender(self.folder, self.uri)
        try:
            sender.send()
        except FAULTS as error:
            raise _HinderedError(hindrance_of(error, self.uri, opening=sender.client is None)) from error
        finally:
            for refusal in sender.refused:
                say_once(refusal)
        return sender.refused

    def _note(self, hindrance: "Hindrance") -> str:
        """Say once why nothing can be sent for now; return it."""
        self._retry_at = time.monotonic() + RETRY_S
        how = f"MLflow at {hide_password(self.uri)}"
        if hindrance.lasting:
            self._hindrance = (
                f"{how} takes nothing from {self.folder.name}: {hindrance.words}; what could not be sent is kept in "
                "the run's folder: fix that, and `raydiology ui` sends it"
            )
        else:
            self._hindrance = (
                f"{how} cannot take anything now: {hindrance.words}; what could not be sent is kept in the runs' "
                "folders, and sent as soon as it can, or by `raydiology ui` later"
            )
        say_once(self._hindrance)
        return self._hindrance

    def _relative(self, path: Path) -> str:
        """Return the place of a file or folder, relative to the run's folder if both are in one home."""
        home, place = self.folder.absolute().parents[1], path.absolute()
        return os.path.relpath(place, self.folder.absolute()) if place.is_relative_to(home) else str(place)

    def _post(self, **line: Any) -> None:
        if line["op"] != "start" and not (self.folder / OUTBOX).exists():
            say_once(f"{self.folder}: deleted while it was in use; MLflow hears no more of that run")
            return
        append(self.folder / OUTBOX, [line])


class _HinderedError(Exception):
    """Sending had to stop."""

    def __init__(self, hindrance: "Hindrance") -> None:
        super().__init__(hindrance.words)
        self.hindrance = hindrance


def _origin(parent: Path | None) -> dict[str, str]:
    """Return who runs which command of which commit; a process of a pool was started by the command of its parent."""
    starts = posted(parent, ("start",)) if parent else []
    known = {key: value for key, value in (starts[-1]["tags"] if starts else {}).items() if key in ORIGIN}
    own = zip(ORIGIN, (user(), typed_command(), "LOCAL", git_commit()), strict=True)
    return known or {key: value for key, value in own if value != UNKNOWN}


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)
