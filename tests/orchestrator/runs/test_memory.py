"""What a training takes on a device: weights, with what is kept for each, and activations of each sample."""

from pathlib import Path

import pytest
import torch
from torch import nn

from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.deepcluster_v2 import DeepClusterV2
from methods.encoders import UNetEncoder
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.runs.course import Course
from orchestrator.runs.memory import OVERHEAD, Memory, on_device, saved_bytes, stage_memory
from orchestrator.training.outline import outline_method
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices


class Two(Method):
    """Two layers and a square."""

    Config = FrozenConfig

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))

    def views(self, batch, rng) -> Views:
        raise NotImplementedError

    def loss(self, views: Views) -> Losses:
        return Losses(self.encoder(views.images[0]).square().mean())


def test_saved_bytes_are_those_that_the_backward_pass_reads_without_the_weights() -> None:
    # Of 5 samples: the image (4), the sigmoid's result (8), which the second layer shares, and what is squared (2).
    assert saved_bytes(Two(), Views((torch.zeros(5, 4),))) == 5 * (4 + 8 + 2) * 4


def test_the_total_has_both_parts_and_chunks_save_activations_alone() -> None:
    memory = Memory(fixed_bytes=1000, per_sample_bytes=100, chunked_bytes=80)
    assert memory.total_bytes(8) == pytest.approx(OVERHEAD * (1000 + 800))
    # Two of eight samples hold what is held in chunks; all eight hold the rest.
    assert memory.total_bytes(8, num_chunks=4) == pytest.approx(OVERHEAD * (1000 + 8 * 20 + 2 * 80))


def test_what_each_rank_holds_a_part_of_takes_no_device_memory() -> None:
    method = Two()
    before = [tensor.data_ptr() for tensor in on_device(method)]
    method.register_share("bank", torch.zeros(10, 10))
    assert [tensor.data_ptr() for tensor in on_device(method)] == before
    outlined = outline_method(
        DeepClusterV2.Config(), UNetEncoder.Config(spatial_dims=2), Facts(10**6, steps=1, batch_size=4)
    )
    assert isinstance(outlined, DeepClusterV2)
    assert (outlined.clusters.bank.shape, outlined.clusters.bank.is_meta) == ((10**6, 2, 128), True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"))


def planned(shards: str, *overrides: str) -> Course:
    return Course.open(resolve(tiny_experiment("memory", shards, Path("runs"), 4), overrides))


@pytest.mark.parametrize(("optimiser", "kept"), [("sgd", 1), ("adam", 2), ("adamw", 2)])
def test_a_stage_takes_its_weights_gradients_and_what_its_optimiser_keeps_for_each(
    shards: str, optimiser: str, kept: int
) -> None:
    course = planned(shards, f"optimiser={{name: {optimiser}, lr: 0.05}}")
    method = course.build()
    weights = sum(4 * p.numel() for p in method.parameters() if p.requires_grad)
    others = sum(tensor.numel() * tensor.element_size() for tensor in method.buffers())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in method.parameters())
    assert stage_memory(course).fixed_bytes == weights * (1 + 1 + kept) + others


def test_a_stage_takes_for_each_sample_what_a_real_pass_holds_for_it(shards: str) -> None:
    course = planned(shards)
    method = course.build()
    weights = {tensor.data_ptr() for tensor in (*method.parameters(), *method.buffers())}
    held: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = next(stream.local_batches(course.feed, rank=0))
    views = method.views(batch, batch.rng(0))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        method.loss(views)
    real = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    forecast = stage_memory(course).per_sample_bytes
    assert forecast * len(batch) == pytest.approx(real, rel=0.02)
    assert forecast > 10_000
