"""Samples: rows of shards as batches, a part for each rank; for measurements that repeat on the same samples."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from data.labels import Labels
from data.shards.index import ShardSet
from data.shards.reader import ShardReader
from data.views.batch import Batch
from data.views.collate import collate
from orchestrator.training.world import World

SLICES_PER_BATCH = 32


def batches_of(
    shards: ShardSet, row_ids: Int[np.ndarray, " n"], world: World, labels: Labels | None = None
) -> Iterator[Batch]:
    """Yield a rank's part of the rows in order, on its device: many slices at once, volumes one by one.

    All samples count as samples of epoch 0, so that their views are the same each time.
    """
    reader = ShardReader(shards, labels)
    own = np.array_split(row_ids, world.size)[world.rank]
    size = SLICES_PER_BATCH if shards.spatial_dims == 2 else 1
    for start in range(0, len(own), size):
        table = reader.read(own[start : start + size])
        for name, value in (("number", 0), ("epoch", 0), ("row", -1)):
            table = table.append_column(name, pa.array(np.full(table.num_rows, value)))
        yield collate(table).to(world.device)
