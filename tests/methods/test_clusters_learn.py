"""SwAV and DeepCluster-v2 find what images have in common: textures, wherever they begin."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.views.batch import Batch
from methods import METHODS
from methods.base import Facts, Method, Progress
from methods.clustering import Clustering
from tests.batches import eight_bit_batch
from tests.encoders import Pixels

SGD = partial(torch.optim.SGD, momentum=0.9)
NUM_SAMPLES, BATCH_SIZE, STEPS, KINDS = 32, 16, 40, 4
SIDE, VIEW = {2: 20, 3: 12}, {2: 16, 3: 9}
# Textures of one brightness and contrast each: with jitter of the published strength, forty steps learn brightness.
SMALL: dict[str, Any] = {
    "hidden_dim": 32,
    "projector_dim": 16,
    "num_prototypes": KINDS,
    "augment": {"transforms": []},
}
CASES: dict[str, dict[str, Any]] = {
    "swav paper": {"name": "swav", "frozen_steps": 5},
    "swav released": {"name": "swav", "variant": "released", "frozen_steps": 5,
                      "small_crops": {"num": 2, "size": 9, "area": (0.2, 0.3)}},
    "deepcluster_v2 paper": {"name": "deepcluster_v2", "num_heads": 2},
}  # fmt: skip


class Convolutions(Pixels):
    """Two convolutions, whose mean over space tells a texture."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(spatial_dims)
        self.channels = (16,)
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims - 2]
        self.layers = nn.Sequential(
            convolution(1, 16, 3), norm(16), nn.ReLU(), convolution(16, 16, 3), norm(16), nn.ReLU()
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


def texture(number: int, dims: int) -> np.ndarray:
    """Stripes one way, stripes the other way, squares, or noise, each shifted at random."""
    generator = np.random.default_rng(number)
    places = np.indices((SIDE[dims],) * dims)
    rows, columns = (np.sign((places[axis] + generator.integers(6)) % 6 - 2.5) for axis in (-2, -1))
    drawn = (rows, columns, rows * columns, generator.choice([-1, 1], (SIDE[dims],) * dims))[number % KINDS]
    return (127 + 100 * drawn + generator.normal(0, 5, drawn.shape)).clip(0, 255).astype(np.uint8)


def batch_of(samples: Tensor, rows: np.ndarray, epoch: int) -> Batch:
    extents = [tuple(samples.shape[2:])] * len(rows)
    batch = eight_bit_batch(samples[rows], extents, tuple(f"sample-{row}" for row in rows), epoch=epoch)
    return replace(batch, rows=rows)


def trained(case: str, dims: int) -> tuple[Method, list[dict[str, float]]]:
    """Train for seconds; return the method, and the parts of each step's loss."""
    samples = torch.from_numpy(np.stack([texture(number, dims) for number in range(NUM_SAMPLES)]))[:, None]
    fields = {**SMALL, **CASES[case], "large_crops": {"size": VIEW[dims], "area": (0.5, 1)}}
    torch.manual_seed(0)
    method = method_of(fields, Convolutions(dims), Facts(NUM_SAMPLES, STEPS, BATCH_SIZE))
    return method, train(method, samples, method.clusters.facts, lr=0.05)


def method_of(fields: dict[str, Any], encoder: Pixels, facts: Facts) -> Clustering:
    kind = METHODS[fields["name"]]
    method = kind(kind.Config.model_validate(fields), encoder, facts).train()
    assert isinstance(method, Clustering)
    return method


def train(
    method: Method,
    samples: Tensor,
    facts: Facts,
    lr: float,
    seed: int = 0,
    kind: Callable[..., torch.optim.Optimizer] = SGD,
) -> list[dict[str, float]]:
    """Train in whole batches of each epoch's order; return the parts of each step's loss."""
    optimiser = kind([{"params": group.params} for group in method.param_groups()], lr=lr)
    per_epoch, logged = facts.num_samples // facts.batch_size, []
    for step in range(facts.steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng(epoch).permutation(facts.num_samples)[: per_epoch * facts.batch_size]
        batch = batch_of(samples, order.reshape(per_epoch, -1)[place], epoch)
        losses = method.loss(method.drawn(batch, batch.rng(seed)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        progress = Progress(step + 1, facts.steps, (step + 1) // per_epoch)
        method.after_step(progress)
        if place == per_epoch - 1:
            method.after_epoch(progress)
        logged.append({name: float(value) for name, value in losses.parts.items()})
    return logged


def at_the_end(logged: list[dict[str, float]]) -> dict[str, float]:
    """Return the means over the last steps."""
    return {name: float(np.mean([parts[name] for parts in logged[-6:]])) for name in logged[-1]}


def purity(clusters: Tensor) -> float:
    """Return the share of samples whose texture is the most frequent one of their cluster."""
    kinds = torch.arange(NUM_SAMPLES) % KINDS
    most = [torch.bincount(kinds[clusters == cluster], minlength=KINDS).max().item() for cluster in range(KINDS)]
    return sum(most) / NUM_SAMPLES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dims"), [*((case, 2) for case in CASES), ("swav paper", 3), ("deepcluster_v2 paper", 3)]
)
def test_textures_become_clusters_that_both_views_of_a_sample_share(case, dims):
    method, logged = trained(case, dims)
    last = at_the_end(logged)
    assert last["shared_cluster"] > 0.75, "chance is 0.25"
    assert last["prototypes_in_use"] > 2.5
    clusters = method.get_buffer("clusters.assigned")
    assert purity(clusters if clusters.ndim == 1 else clusters[:, 0]) > 0.7
    if "code_entropy" in last:
        spread = (last["code_entropy"] - last["code_entropy_least"]) / last["code_entropy_most"]
        assert spread < 0.3, "uniform codes are at 1"
        assert last["assignments_changed"] < 0.3
    else:
        assert last["accuracy"] > 0.75
        assert last["cluster_entropy"] > 0.7 * last["cluster_entropy_most"]
