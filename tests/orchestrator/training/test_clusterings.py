"""SwAV and DeepCluster-v2 through the real loop: two ranks equal one, and a resumed training an undisturbed one.

In float64, but for the views: smoothing them together with others moves their last digit.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp

from methods import METHODS
from methods.base import Facts, Method
from orchestrator.training.checkpoint import whole_state
from orchestrator.training.loop import Trainee, train
from orchestrator.training.world import World
from tests.encoders import Pixels
from tests.orchestrator.training.test_epochs import BATCH_SIZE, NUM_SAMPLES, STEPS, STOP, batches, plan
from tests.orchestrator.training.test_loop import Recorder

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {
    "large_crops": {"size": 8},
    "small_crops": {"num": 1, "size": 4},
    "hidden_dim": 8,
    "projector_dim": 6,
    "num_prototypes": 3,
}
# The epochs end after steps 2, 3, 5 and 6. The queue is full after the third step, and the prototypes learn, or
# learn again, after a checkpoint: the one that is gone on from is that of step 4.
CASES: dict[str, dict[str, Any]] = {
    "swav together": {"name": "swav", "queue_length": 7, "queue_start_epoch": 0, "frozen_steps": 5},
    "swav apart": {"name": "swav", "variant": "released", "queue_length": 5, "queue_start_epoch": 1,
                   "frozen_steps": 2},
    "deepcluster_v2 frozen": {"name": "deepcluster_v2", "num_iterations": 3},
    "deepcluster_v2 learning": {"name": "deepcluster_v2", "variant": "released", "learn_after": 5,
                                "num_heads": 2, "num_iterations": 2},
}  # fmt: skip
STATE = {
    "swav together": {
        "clusters.queue.rows",
        "clusters.queue.filled",
        "clusters.assigned",
        "clusters.cluster_sizes",
        "clusters.prototypes.weight",
    },
    "deepcluster_v2 frozen": {
        "clusters.bank",
        "clusters.assigned",
        "clusters.seed",
        "clusters.health",
        "clusters.prototypes.0.weight",
        "clusters.prototypes.2.weight",
    },
}


class Wide(Pixels):
    """One trained convolution in float64."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2)
        self.channels = (5,)
        self.convolution = nn.Conv2d(1, 5, 3)

    def maps(self, x: Tensor) -> list[Tensor]:
        return [self.convolution(x.double()).relu()]


def method_of(case: str) -> Method:
    torch.manual_seed(0)
    kind = METHODS[CASES[case]["name"]]
    config = kind.Config.model_validate({**SMALL, **CASES[case]})
    return kind(config, Wide(), Facts(NUM_SAMPLES, STEPS, BATCH_SIZE)).double()


def followed(
    trainee: Trainee, dims: int, folder: Path, world: World, start: Path | None = None
) -> tuple[list[Any], dict[str, Tensor]]:
    """Train, from a checkpoint if there is one; return all steps and the whole state."""
    recorder = Recorder(folder)
    train(trainee, plan(), lambda first: batches(world, first, dims), world, recorder, start)
    times = ("samples_per_s", "data_wait_share")
    entries = [{name: value for name, value in entry.items() if name not in times} for entry in recorder.entries]
    return entries, whole_state(trainee.method, world)


def trained(case: str, folder: Path, world: World, start: Path | None = None) -> tuple[list[Any], dict[str, Tensor]]:
    return followed(Trainee(method_of(case)), 2, folder, world, start)


def on_two_ranks(rank: int, folder: str, by_one: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world, found = World(rank, 2), {}
    for case in CASES:
        own = Path(folder, str(rank), case)
        found[case] = trained(case, own / "whole", world)
        saved = Path(folder, "0", case, "whole", str(STOP))
        if case in STATE:
            found[f"{case}, from two"] = trained(case, own / "from two", world, saved)
        found[f"{case}, from one"] = trained(case, own / "from one", world, Path(by_one, case, str(STOP)))
    torch.save(found, f"{folder}/found-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, {case: trained(case, folder / case, World()) for case in CASES}


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, alone: tuple[Path, dict[str, Any]]
) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(on_two_ranks, args=(str(folder), str(alone[0])), nprocs=2)
    return folder, [torch.load(folder / f"found-{rank}.pt") for rank in (0, 1)]


def without(entry: dict[str, Any]) -> dict[str, Any]:
    """Leave out text, and the epoch: it is that of the rank's own first sample."""
    return {name: value for name, value in entry.items() if name not in ("samples", "epoch")}


def assert_same(found: Any, expected: Any, steps: slice = slice(None)) -> None:
    """Compare steps and states bit for bit."""
    assert found[0] == expected[0][steps]
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


def assert_alike(found: Any, expected: Any, steps: slice = slice(None), atol: float = 1e-6) -> None:
    """Compare numbers logged in float32, and states in float64."""
    for entry, other in zip(found[0], expected[0][steps], strict=True):
        assert (entry["samples"], without(entry)) == (
            other["samples"],
            pytest.approx(without(other), rel=2e-6, abs=1e-6),
        )
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_the_state_that_a_restart_needs_moves_and_is_saved(case, alone):
    entries, state = alone[1][case]
    assert STATE.get(case, set()) <= state.keys()
    if case.startswith("swav"):
        start = method_of(case).get_parameter("clusters.prototypes.weight")
        assert (state["clusters.assigned"] >= 0).all()
        assert state["clusters.queue.filled"] == CASES[case]["queue_length"]
        assert state["clusters.queue.rows"].norm(dim=2).min() > 0.99
        assert not torch.equal(state["clusters.prototypes.weight"], start)
    else:
        assert state["clusters.assigned"].shape == (NUM_SAMPLES, CASES[case].get("num_heads", 3))
        assert state["clusters.bank"].norm(dim=2).min() > 0.99
        assert [entry["largest_cluster"] for entry in entries][:2] == [0, 0]
        assert min(entry["largest_cluster"] for entry in entries[2:]) >= 2


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_training_goes_on_bit_for_bit(case, alone, tmp_path):
    folder, undisturbed = alone
    resumed = trained(case, tmp_path, World(), folder / case / str(STOP))
    assert_same(resumed, undisturbed[case], slice(STOP, None))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_in_every_step_and_in_their_state(case, alone, pair):
    for found in pair[1]:
        assert_alike(found[case], alone[1][case])


@pytest.mark.parametrize("case", CASES)
def test_a_training_goes_on_with_another_number_of_ranks_and_bit_for_bit_with_the_same(case, alone, pair, tmp_path):
    folder, (found, _) = pair
    assert_alike(found[f"{case}, from one"], alone[1][case], slice(STOP, None))
    by_one = trained(case, tmp_path, World(), folder / "0" / case / "whole" / str(STOP))
    assert_alike(by_one, alone[1][case], slice(STOP, None))
    if case in STATE:
        assert_same(found[f"{case}, from two"], found[case], slice(STOP, None))
