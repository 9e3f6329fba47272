"""Methods hear when an epoch ends, and keep a state of which each rank holds a part."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing as mp

from data.views.batch import Batch
from methods.base import Facts, Progress
from orchestrator.config.optimiser import Optimiser
from orchestrator.training.checkpoint import METHOD, Stream
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.optimiser import Schedule
from orchestrator.training.world import World
from tests.methods.test_contract import batch_of, part_of, tiny_encoder
from tests.orchestrator.training.test_loop import Recorder
from tests.toys import ToyClusters

NUM_SAMPLES, BATCH_SIZE, STEPS, STOP = 6, 4, 7, 4
# Samples 6 and 12 and 18 and 24 are the first of an epoch: steps 2, 3, 5 and 6 see the last sample of one.
ENDS = [(2, 1), (3, 2), (5, 3), (6, 4)]


class Heard(ToyClusters):
    """Notes when epochs end."""

    def after_epoch(self, progress: Progress) -> None:
        super().after_epoch(progress)
        self.heard = [*getattr(self, "heard", []), (progress.step, progress.epoch)]


def toy() -> Heard:
    torch.manual_seed(0)
    facts = Facts(NUM_SAMPLES, STEPS, BATCH_SIZE)
    return Heard(Heard.Config(), tiny_encoder("unet", 2), facts)


def plan() -> Plan:
    schedule = Schedule(Optimiser(name="sgd", lr=0.01), STEPS, warmup_steps=0)
    return Plan(schedule, Stream("d", 0, BATCH_SIZE), NUM_SAMPLES, checkpoint_every_steps=STOP)


def batches(world: World, first: int, dims: int = 2) -> Iterator[Batch]:
    """Yield a rank's part of every step's batch, epoch after epoch in the order of the samples."""
    everything, share = batch_of(dims, NUM_SAMPLES), BATCH_SIZE // world.size

    def step(number: int) -> Batch:
        numbers = np.arange(BATCH_SIZE) + number * BATCH_SIZE
        own = numbers[world.rank * share : (world.rank + 1) * share]
        parts = [part_of(everything, slice(row, row + 1)) for row in own % NUM_SAMPLES]
        return replace(
            parts[0],
            voxels=torch.cat([part.voxels for part in parts]),
            extents=np.concatenate([part.extents for part in parts]),
            scale=torch.cat([part.scale for part in parts]),
            offset=torch.cat([part.offset for part in parts]),
            spacing_mm=np.concatenate([part.spacing_mm for part in parts]),
            sample_ids=tuple(name for part in parts for name in part.sample_ids),
            volumes=tuple(name for part in parts for name in part.volumes),
            numbers=own,
            rows=own % NUM_SAMPLES,
            epochs=own // NUM_SAMPLES,
        )

    return islice(map(step, range(STEPS)), first, None)


def trained(folder: Path, world: World, start: Path | None = None) -> tuple[Recorder, Heard]:
    recorder, method = Recorder(folder), toy()
    train(Trainee(method), plan(), lambda first: batches(world, first), world, recorder, start)
    return recorder, method


def losses(recorder: Recorder) -> list[float]:
    return [entry["loss"] for entry in recorder.entries]


def on_two_ranks(rank: int, folder: str, start: str | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    recorder, method = trained(Path(folder) / str(rank), World(rank, 2), Path(start) if start else None)
    torch.save((losses(recorder), method.heard, len(method.bank)), f"{folder}/found-{rank}.pt")
    dist.destroy_process_group()


def by_two_ranks(folder: Path, start: Path | None = None) -> list[tuple[list[float], list[tuple[int, int]], int]]:
    folder.mkdir()
    mp.spawn(on_two_ranks, args=(str(folder), str(start) if start else None), nprocs=2)
    return [torch.load(folder / f"found-{rank}.pt") for rank in (0, 1)]


def test_a_method_hears_of_each_epoch_s_end_after_the_step_that_saw_its_last_sample(tmp_path: Path) -> None:
    _, method = trained(tmp_path, World())
    assert method.heard == ENDS
    assert not torch.equal(method.centres, toy().centres)


@pytest.mark.slow
def test_a_state_of_which_each_rank_holds_a_part_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    undisturbed, method = trained(tmp_path / "one", World())
    expected = losses(undisturbed)
    two = by_two_ranks(tmp_path / "two")
    assert [(heard, rows) for _, heard, rows in two] == [(ENDS, 3), (ENDS, 3)]
    assert two[0][0] == pytest.approx(expected, rel=1e-3)

    by_one, by_two = tmp_path / "one" / str(STOP), tmp_path / "two" / "0" / str(STOP)
    whole = [load_file(folder / METHOD)["bank"] for folder in (by_one, by_two)]
    assert whole[1].shape == (NUM_SAMPLES, *method.bank.shape[1:])
    torch.testing.assert_close(whole[1], whole[0], rtol=1e-3, atol=1e-4)

    resumed_by_one, _ = trained(tmp_path / "one from two", World(), by_two)
    assert losses(resumed_by_one) == pytest.approx(expected[STOP:], rel=1e-3)
    for found, _, rows in by_two_ranks(tmp_path / "two from one", by_one):
        assert (found, rows) == (pytest.approx(expected[STOP:], rel=1e-3), 3)
