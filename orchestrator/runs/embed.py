"""Embed: write an encoder's features of every sample of some shards to Parquet, a row for each sample.

A row has ``sample_id``, ``patient`` (the pseudonym), ``volume``, ``split``, ``classes`` (names; null where unknown)
and ``features``: a map averaged over space. Rows are in the shards' order; the same command writes the same numbers.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from data.shards.index import ShardSet
from data.views.batch import Batch
from methods.encoders import ENCODERS, Encoder
from methods.parts.fitting import Fitting
from methods.parts.precision import at_least_float32
from methods.parts.sizes import check_stride
from orchestrator.runs.card import TrainedPart
from orchestrator.runs.encoder_weights import encoder_of
from orchestrator.terminal.progress import phase, update
from orchestrator.training.checkpoint import ENCODER, ENCODER_CARD
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World

NAME = "raydiology"  # of the metadata that says where the features are from


@dataclass(frozen=True)
class EmbeddingRequest:
    """What is embedded, and how.

    split   of the shards; None: all samples
    size    to which whole samples are resized, one number or one per axis; None: they are padded with 0 at their far
            end, to a multiple of the encoder's strides
    level   of the map that is averaged, from 0, the finest; negative numbers count from the coarsest
    """

    encoder: Path
    shards: str
    split: str | None = None
    size: int | tuple[int, ...] | None = None
    level: int = -1


def embed(asked: EmbeddingRequest, target: Path) -> int:
    """Write the features of all samples that are asked for to a Parquet file; return the number of rows.

    The file appears when it is whole. Raises ValueError where encoder, shards, size and level do not fit.
    """
    trained = _trained_part(asked.encoder)
    shards, encoder = ShardSet.open(asked.shards), _built(trained)
    level, fitting = _checked(asked, encoder, shards)
    rows = shards.select(asked.split).row_ids
    if not len(rows):
        raise ValueError(f"shards {asked.shards}: no samples in split {asked.split!r}; see `raydiology shards show`")
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    schema = _schema(encoder.channels[level]).with_metadata(_origin(asked, trained, shards, level))
    partial = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with phase("embedding", len(rows), "sample") as shown, pq.ParquetWriter(partial, schema) as writer:
            done = 0
            for features in _features(encoder.to(world.device), batches_of(shards, rows, world), level, fitting):
                own = rows[done : done + len(features)]
                writer.write_table(_table(shards, own, features, schema))
                update(shown, done := done + len(features))
        os.replace(partial, target)  # noqa: PTH105 (also where the file is there already)
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)


def _trained_part(folder: Path) -> TrainedPart:
    """Return what a run has trained, or the encoder that lies in a folder; raise ValueError where there is none."""
    if found := TrainedPart.of(folder):
        return found
    if (folder / ENCODER).is_file() and (folder / ENCODER_CARD).is_file():
        return TrainedPart(folder, "encoder", alone=True)
    raise ValueError(
        f"encoder {folder}: no {ENCODER} with {ENCODER_CARD} there; give the folder of a finished run, or of an "
        "export --to monai or --to safetensors"
    )


def _built(trained: TrainedPart) -> Encoder:
    kind: Any = ENCODERS[trained.card["encoder"]["name"]]
    encoder: Encoder = kind(kind.Config.model_validate(trained.card["encoder"]))
    encoder.load_state_dict(encoder_of(trained)[1])
    return encoder.eval()


def _checked(asked: EmbeddingRequest, encoder: Encoder, shards: ShardSet) -> tuple[int, Fitting | None]:
    """Return the level from 0, and how samples are resized; raise ValueError where something does not fit."""
    for what, takes, have in (
        ("spatial dimensions", encoder.spatial_dims, shards.spatial_dims),
        ("input channels", encoder.in_channels, shards.num_channels),
    ):
        if takes != have:
            raise ValueError(
                f"encoder {asked.encoder} takes images of {takes} {what}, shards {asked.shards} have {have}; embed "
                "shards like those that it was trained on, or ingest them with the recipe in its card"
            )
    count = len(encoder.channels)
    if not -count <= asked.level < count:
        raise ValueError(
            f"--level {asked.level}: the encoder has {count} maps; give 0 to {count - 1}, or -1 for the last"
        )
    if asked.size is None:
        return asked.level % count, None
    fitting = Fitting.of(asked.size, None, encoder.spatial_dims, "embed")
    check_stride(fitting.size, encoder.strides, "--size")
    return asked.level % count, fitting


def _features(
    encoder: Encoder, batches: Iterator[Batch], level: int, fitting: Fitting | None
) -> Iterator[Float[np.ndarray, "n d"]]:
    """Yield the features of each batch; samples that are not resized pass one by one, so that no other pads them."""
    for batch in batches:
        if fitting:
            images = [fitting.apply(batch, None)[0]]
        else:
            images = [_padded(batch.sample(index)[None], encoder.strides) for index in range(len(batch))]
        yield torch.cat([_means(encoder, one, level) for one in images]).float().cpu().numpy()


@torch.no_grad()
def _means(encoder: Encoder, images: Float[Tensor, "b c *s"], level: int) -> Float[Tensor, "b d"]:
    return at_least_float32(encoder.features(images)[level]).flatten(2).mean(2)


def _padded(image: Float[Tensor, "1 c *s"], strides: tuple[int, ...]) -> Float[Tensor, "1 c *t"]:
    """Pad an image with 0 to a multiple of the strides, and so that its last map has more than one voxel."""
    lengths = [-(-length // stride) * stride for length, stride in zip(image.shape[2:], strides, strict=True)]
    if lengths == list(strides):
        lengths[-1] *= 2
    missing = [wanted - length for wanted, length in zip(lengths, image.shape[2:], strict=True)]
    return F.pad(image, [side for one in reversed(missing) for side in (0, one)])


def _schema(width: int) -> pa.Schema:
    texts = [pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "patient", "volume", "split")]
    features = pa.field("features", pa.list_(pa.float32(), width), nullable=False)
    return pa.schema([*texts, pa.field("classes", pa.list_(pa.string())), features])


def _table(
    shards: ShardSet, rows: Int[np.ndarray, " n"], features: Float[np.ndarray, "n d"], schema: pa.Schema
) -> pa.Table:
    held = shards.rows.take(rows)
    names = shards.class_names
    classes = [None if own is None else [names.get(n, str(n)) for n in own] for own in held["classes"].to_pylist()]
    columns = {name: held[name] for name in ("sample_id", "patient", "volume", "split")}
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel(), pa.float32()), features.shape[1])
    return pa.table({**columns, "classes": pa.array(classes, pa.list_(pa.string())), "features": flat}, schema=schema)


def _origin(asked: EmbeddingRequest, trained: TrainedPart, shards: ShardSet, level: int) -> dict[str, str]:
    """Return the file's metadata: digests of the shards and of the weights, and how the features came about."""
    weights = hashlib.sha256(trained.weights.read_bytes()).hexdigest()
    told = {"shards": shards.digest, "weights": weights, "level": level, "size": asked.size}
    return {NAME: json.dumps({**told, "encoder": trained.card["encoder"]["name"]}, sort_keys=True)}
