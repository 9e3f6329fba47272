"""Averages, queues and heads are the same on all ranks after a few steps, and those of one rank."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from methods import METHODS
from methods.base import Method, Progress, Views
from methods.parts.ranks import from_next_sample, gathered, next_samples, own_places, share_of
from methods.parts.sync_batch_norm import convert_sync_batch_norm
from methods.transvw import nearest_rows
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import noise_views

pytestmark = pytest.mark.slow
STEPS, SAMPLES, RANKS = 3, 4, 2
SMALL = {"crops": {"size": 4}, "hidden_dim": 6, "projector_dim": 3, "queue_length": 21, "teacher_decay": 0.9}
NAMES = ("byol", "moco_v2", "moco_v3", "c2l")
POINTS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
SHARES = torch.linspace(0.5, 1, SAMPLES).double()


def state_after_steps(name: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Train on a rank's rows of noise; return the method's state."""
    torch.manual_seed(0)
    kind = METHODS[name]
    fields = {field: value for field, value in SMALL.items() if field in kind.Config.model_fields}
    method: Method = kind(kind.Config.model_validate({"name": name, **fields}), Pixels(2, 4), FACTS).double().train()
    model: torch.nn.Module = method
    if ranks > 1:
        convert_sync_batch_norm(method)
        model = DistributedDataParallel(method)
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    rows = slice(rank * SAMPLES // ranks, (rank + 1) * SAMPLES // ranks)
    for step in range(STEPS):
        images = tuple(image[rows] for image in noise_views(2, SAMPLES, seed=step).images)
        losses = model(Views(images, targets={"shares": SHARES[rows]}))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(Progress(step + 1, STEPS, 0))
    return method.state_dict()


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    for name in NAMES:
        torch.save(state_after_steps(name, rank, RANKS), Path(folder, f"{name}-{rank}.pt"))
    rows = (10.0 * torch.arange(2) + rank + 1)[:, None].requires_grad_()
    everyone = gathered(rows)
    (everyone * torch.arange(1.0, 5.0)[:, None] * (rank + 1)).sum().backward()
    found = (everyone.detach(), rows.grad, own_places(rows), next_samples(rows), from_next_sample(rows).detach())
    torch.save(found, Path(folder, f"rows-{rank}.pt"))
    torch.save(nearest_rows(POINTS[share_of(9)], POINTS[:2], 4, POINTS.device), Path(folder, f"nearest-{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_hold_the_state_of_one_after_three_steps(name: str, two_ranks: Path) -> None:
    expected = state_after_steps(name)
    for rank in range(RANKS):
        found = torch.load(two_ranks / f"{name}-{rank}.pt")
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=f"{key} of rank {rank}")
    if "queue.rows" in expected:
        filled = STEPS * SAMPLES * (3 if name == "c2l" else 1)
        assert int(expected["queue.filled"]) == min(filled, SMALL["queue_length"])


def test_gathered_rows_come_from_all_ranks_and_their_gradients_go_back(two_ranks: Path) -> None:
    for rank in range(RANKS):
        everyone, gradient, places, following, next_one = torch.load(two_ranks / f"rows-{rank}.pt")
        assert everyone.flatten().tolist() == [1, 11, 2, 12]
        assert places.tolist() == [2 * rank, 2 * rank + 1]
        # Each rank weighs row k by k, and rank 1 twice as much.
        assert gradient.flatten().tolist() == [3 * (2 * rank + 1), 3 * (2 * rank + 2)]
        assert following.flatten().tolist() == next_one.flatten().tolist() == [[11, 2], [12, 1]][rank]


def test_two_ranks_find_the_nearest_samples_that_one_finds(two_ranks: Path) -> None:
    found = torch.cat([torch.load(two_ranks / f"nearest-{rank}.pt") for rank in range(RANKS)])
    assert torch.equal(found, nearest_rows(POINTS, POINTS[:2], 4, POINTS.device))
    assert found.sum(0).tolist() == [4, 4]
