"""JSSL's three stages through the real loop, each handing its encoder over to the next, and each interrupted.

In float64, but for the views, as in ``test_clusterings``: so ranks differ by rounding alone.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch import multiprocessing as mp

from methods import METHODS
from methods.base import Facts, Method, Views
from methods.encoders import Encoder
from orchestrator.runs.course import part_of
from orchestrator.training.checkpoint import METHOD, export_encoder, load_encoder
from orchestrator.training.loop import Trainee
from orchestrator.training.world import World
from tests.methods.test_contract import tiny_encoder
from tests.orchestrator.training.test_clusterings import SMALL, assert_alike, assert_same, followed
from tests.orchestrator.training.test_epochs import BATCH_SIZE, NUM_SAMPLES, STEPS, STOP

pytestmark = pytest.mark.slow
# Epochs end after steps 2, 3, 5 and 6, and each stage is resumed after step 4: before the queue is full, and before
# the prototypes learn.
CLUSTERS: dict[str, dict[str, Any]] = {
    "swav": {"queue_length": 20, "queue_start_epoch": 0, "frozen_steps": 5},
    "deepcluster_v2": {"num_heads": 2, "num_iterations": 2, "learn_after": 5},
}
STATE = {
    "swav": {"queue.rows", "queue.filled", "assigned", "cluster_sizes", "prototypes.weight"},
    "deepcluster_v2": {"bank", "assigned", "seed", "health", "prototypes.0.weight", "prototypes.1.weight"},
}
DIMS = {"intra": 2, "mask": 3, "inter": 3}
# The part of a stage's encoder that begins as the stage before left it.
PARTS = {"mask": "slices", "inter": ""}
SIDE = 32
# Ranks differ by 7e-9 at most; all weights that are trained move by more than 4e-6 after step 4.
BOUND = 1e-7
Chain = dict[str, tuple[list[Any], dict[str, Tensor]]]


def method_of(clusters: str, stage: str, encoder: Encoder) -> Method:
    """Build a stage's method in float64, on views in float32."""
    name = {"intra": clusters, "mask": "jssl_mask", "inter": "jssl_cluster"}[stage]
    fields: dict[str, dict[str, Any]] = {
        "intra": {**SMALL, **CLUSTERS[clusters], "large_crops": {"size": SIDE}, "small_crops": {"num": 0}},
        "mask": {"size": SIDE},
        "inter": {"size": SIDE, "clusters": {**CLUSTERS[clusters], "name": clusters, "num_prototypes": 3}},
    }
    config = METHODS[name].Config.model_validate(fields[stage])
    method = METHODS[name](config, encoder, Facts(NUM_SAMPLES, STEPS, BATCH_SIZE)).double()
    method.register_forward_pre_hook(_in_float64)
    return method


def _in_float64(_: nn.Module, given: tuple[Views]) -> Views:
    return replace(given[0], images=tuple(image.double() for image in given[0].images))


def encoder_of(stage: str, before: Path | None) -> Encoder:
    """Build a stage's encoder, which begins with what the stage before left in a folder."""
    torch.manual_seed(0)
    encoder = tiny_encoder("resnet" if DIMS[stage] == 2 else "slice_transformer", DIMS[stage]).double()
    if before is not None:
        load_encoder(before, part_of(encoder, PARTS[stage]))
    return encoder


def export(folder: Path, method: Method) -> None:
    export_encoder(folder, method.encoder, {})


def trained(clusters: str, folder: Path, world: World, start: Path | None = None) -> Chain:
    """Train all stages, each from a checkpoint of another chain if there is one; all ranks take over rank 0's."""
    found: Chain = {}
    before: Path | None = None
    for stage, dims in DIMS.items():
        trainee = Trainee(method_of(clusters, stage, encoder_of(stage, before)), export=export)
        saved = start / stage / "0" / str(STOP) if start else None
        found[stage] = followed(trainee, dims, folder / stage / str(world.rank), world, saved)
        if world.size > 1:
            dist.barrier()
        before = folder / stage / "0" / str(STEPS)
    return found


def on_two_ranks(rank: int, folder: str, by_one: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world, found = World(rank, 2), {}
    for clusters in CLUSTERS:
        own = Path(folder, clusters)
        found[clusters] = {
            "whole": trained(clusters, own / "whole", world),
            "from two": trained(clusters, own / "from two", world, own / "whole"),
            "from one": trained(clusters, own / "from one", world, Path(by_one, clusters)),
        }
    torch.save(found, f"{folder}/found-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Chain]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, {clusters: trained(clusters, folder / clusters, World()) for clusters in CLUSTERS}


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, alone: tuple[Path, dict[str, Chain]]
) -> tuple[Path, list[dict[str, dict[str, Chain]]]]:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(on_two_ranks, args=(str(folder), str(alone[0])), nprocs=2)
    return folder, [torch.load(folder / f"found-{rank}.pt") for rank in (0, 1)]


def encoder_in(state: dict[str, Tensor], part: str = "") -> dict[str, Tensor]:
    """Return the weights of an encoder, or of a part of it, from a method's state."""
    prefix = f"encoder.{part}." if part else "encoder."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_each_stage_begins_with_the_encoder_that_the_one_before_has_trained(clusters, alone):
    folder, found = alone[0] / clusters, {stage: state for stage, (_, state) in alone[1][clusters].items()}
    for earlier, stage in pairwise(DIMS):
        handed, begun = encoder_in(found[earlier]), encoder_of(stage, folder / earlier / "0" / str(STEPS))
        taken, trained_on = part_of(begun, PARTS[stage]).state_dict(), encoder_in(found[stage], PARTS[stage])
        assert taken.keys() == handed.keys() == trained_on.keys()
        assert all(torch.equal(taken[name], value) for name, value in handed.items())
        moved = {name for name, value in handed.items() if not torch.equal(trained_on[name], value)}
        weights = {name for name, _ in part_of(begun, PARTS[stage]).named_parameters()}
        assert moved >= weights if stage == "inter" else not moved, "the masks' stage trains no encoder of slices"
    assert not torch.equal(encoder_in(found["mask"])["layers.0.attention.query.weight"],
                           encoder_of("mask", None).state_dict()["layers.0.attention.query.weight"])  # fmt: skip


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_what_a_restart_needs_lies_in_the_checkpoint_and_moves_after_it(clusters, alone):
    for stage in ("intra", "inter"):
        saved = load_file(alone[0] / clusters / stage / "0" / str(STOP) / METHOD)
        state = alone[1][clusters][stage][1]
        names = {f"clusters.{name}" for name in STATE[clusters]}
        assert names <= saved.keys()
        assert saved.keys() == state.keys()
        moved = {name for name in names if not torch.equal(saved[name], state[name])}
        assert moved >= {name for name in names if name.endswith(("rows", "filled", "bank", "weight"))}
        if clusters == "swav":
            counts = [one["clusters.queue.filled"].item() for one in (saved, state)]
            assert counts == [STOP * BATCH_SIZE, CLUSTERS["swav"]["queue_length"]]
            frozen = method_of(clusters, stage, encoder_of(stage, None)).state_dict()["clusters.prototypes.weight"]
            torch.testing.assert_close(saved["clusters.prototypes.weight"], frozen, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_a_chain_that_is_interrupted_in_every_stage_goes_on_bit_for_bit(clusters, alone, tmp_path):
    resumed = trained(clusters, tmp_path, World(), alone[0] / clusters)
    for stage in DIMS:
        assert_same(resumed[stage], alone[1][clusters][stage], slice(STOP, None))


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_two_ranks_equal_one_in_every_step_and_state_of_the_chain(clusters, alone, pair):
    for found in pair[1]:
        for stage in DIMS:
            assert_alike(found[clusters]["whole"][stage], alone[1][clusters][stage], atol=BOUND)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_a_chain_goes_on_with_another_number_of_ranks_and_bit_for_bit_with_the_same(clusters, alone, pair, tmp_path):
    folder, (found, _) = pair
    by_one = trained(clusters, tmp_path, World(), folder / clusters / "whole")
    for stage in DIMS:
        assert_same(found[clusters]["from two"][stage], found[clusters]["whole"][stage], slice(STOP, None))
        assert_alike(found[clusters]["from one"][stage], alone[1][clusters][stage], slice(STOP, None), BOUND)
        assert_alike(by_one[stage], alone[1][clusters][stage], slice(STOP, None), BOUND)
