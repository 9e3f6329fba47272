"""Model record: what MLflow is told of a run's encoder or network."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorShape:
    """A tensor's name, number type and lengths, -1 where any length will do."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelRecord:
    """A model: its weights and what describes them.

    kind     ``encoder`` or ``network``
    key      of the run that made it
    files    the weights, what describes them, and the script that loads them if there is one
    card     the description in Markdown
    params   a few settings that tell models apart
    scores   by which it was judged; none for an encoder
    loss     a pretraining's last: value, time in milliseconds and step, as its history has them
    dataset  name and digest of the shards on which it was trained
    start    the key of the pretraining that its weights began with, if there was one
    """

    name: str
    kind: str
    key: str
    files: tuple[Path, ...]
    card: str
    params: dict[str, str]
    scores: dict[str, float]
    loss: tuple[float, int, int] | None
    dataset: tuple[str, str]
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]
    start: str | None
