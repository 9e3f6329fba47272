"""Timing: what steps, validation and checkpoints of a training took on this machine, in a process of its own.

The process is niced and has as many threads as a worker that Ray starts; its peak of memory is its own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter

from data.shards.writer import write_atomically
from methods.scratch import Scratch
from orchestrator.config.computing import Health
from orchestrator.config.experiment import Experiment
from orchestrator.config.samples import Data
from orchestrator.runs.labelled import downstream_of
from orchestrator.stop import RunError

# As Ray starts its workers: below what a person does on the machine meanwhile.
NICENESS, RAY_NICENESS = "RAY_worker_niceness", 15
BUSY = 0.7  # a step that computed for a smaller share of its time shared the cores with other programs
_MAIN = "import sys; from orchestrator.runs.stopwatch import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Spell:
    """Seconds that passed, and those that processors computed meanwhile."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: "Spell") -> "Spell":
        return Spell(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __mul__(self, times: "float | Spell") -> "Spell":
        """Return this as often as said; a spell says it for the seconds and for the computed ones."""
        if isinstance(times, Spell):
            return Spell(self.wall_s * times.wall_s, self.cpu_s * times.cpu_s)
        return Spell(self.wall_s * times, self.cpu_s * times)


NONE = Spell()


@dataclass(frozen=True)
class Timing:
    """What a training took on this machine.

    start       from the start of the process until the trainee was built
    steps       how many steps were timed
    step        the median step, without waiting for samples
    reading     to read and collate the samples of a step
    epoch_end   what the method does at the end of an epoch
    watches     a measurement of each watch, in the order of the trainee's
    validation  of all samples
    saving      a checkpoint
    drawing     the picture of the first views
    host_bytes    the peak of memory that is the process's alone
    device_bytes  the peak of memory on its GPU
    checkpoint    the bytes of a checkpoint's files by name, without its history
    entry_bytes   of a step in the history
    numbers       that a step sends to MLflow
    picture_bytes of the picture of the first views
    """

    start: Spell
    steps: int
    step: Spell
    reading: Spell
    epoch_end: Spell = NONE
    watches: tuple[Spell, ...] = ()
    validation: Spell = NONE
    saving: Spell = NONE
    drawing: Spell = NONE
    host_bytes: int = 0
    device_bytes: int = 0
    checkpoint: dict[str, int] = field(default_factory=dict)
    entry_bytes: int = 0
    numbers: int = 0
    picture_bytes: int = 0

    @property
    def checkpoint_bytes(self) -> int:
        return sum(self.checkpoint.values())

    @property
    def busy(self) -> bool:
        """Whether other programs kept the steps from computing; unknown on a GPU, for which a process waits."""
        return not self.device_bytes and self.step.cpu_s < BUSY * self.step.wall_s


TIMING: TypeAdapter[Timing] = TypeAdapter(Timing)


def timing_of(experiment: Experiment, place: int | None) -> Timing:
    """Time a training in a process of its own: stage number ``place``, or the fine-tuning if that is None.

    Trainings that differ in seeds, budgets, names and homes are timed once. Raises RunError if the process failed.
    """
    return _timed(_alike(experiment, place).model_dump_json(), place)


def time_anew(experiment: Experiment, place: int | None) -> Timing:
    """Time a training as ``timing_of`` does, whether or not it was timed before."""
    return _timed.__wrapped__(_alike(experiment, place).model_dump_json(), place)


def _alike(experiment: Experiment, place: int | None) -> Experiment:
    """Return the experiment without what changes no step of the training, so that rows of a table share a timing."""
    changes: dict[str, object] = {"name": "timed", "home": "timed", "seed": 0}
    if place is not None:
        return experiment.model_copy(update={**changes, "downstream": None})
    task = downstream_of(experiment)
    changes |= {"method": Scratch.Config(), "optimiser": None, "budget": None, "start": None, "stages": ()}
    changes |= {"data": Data(shards=task.shards), "health": Health(), "probe": None}
    changes |= {"encoder": experiment.pretrained_encoder, "downstream": task.model_copy(update={"seed": 0})}
    return experiment.model_copy(update=changes)


@cache
def _timed(experiment: str, place: int | None) -> Timing:
    with TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "experiment.json", Path(folder) / "timing.json"
        write_atomically(asked, experiment)
        named = "finetune" if place is None else str(place)
        command = [sys.executable, "-c", _MAIN, str(asked), named, str(answer)]
        run = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        if run.returncode:
            raise RunError(_words(experiment, place, run.stderr))
        return TIMING.validate_json(answer.read_bytes())


def _words(experiment: str, place: int | None, said: str) -> str:
    asked = Experiment.model_validate_json(experiment)
    name = "finetune" if place is None else asked.pretraining[place].name
    last = (said.strip().splitlines() or ["it said nothing; was memory short?"])[-1]
    return f"stage {name}: its steps could not be timed: {last}"


def _environment() -> dict[str, str]:
    """Return the environment of a worker: our packages, one thread per pool."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **threads}
