"""Jigsaw clustering: loss and gradient equal a slow reference, also on two ranks; montages hold what they should."""

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from methods.base import Views
from methods.jigsaw_clustering import JigsawClustering, apart, cluster_loss, montage, regions
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import jigsaw_clustering as reference


def tiny(dims: int, channels: int = 3, **fields: object) -> JigsawClustering:
    torch.manual_seed(0)
    given = {"size": 2, "projector_dim": 4, "temperature": 0.5} | fields
    return JigsawClustering(JigsawClustering.Config.model_validate(given), Pixels(dims, channels), FACTS)


def drawn(dims: int, samples: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw patches (b, k, c, *s) and the numbers that order them."""
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(samples, 2**dims, 3, *[2] * dims, generator=generator, dtype=torch.float64)
    return patches, torch.rand(samples, 2**dims, generator=generator, dtype=torch.float64)


def check(method: JigsawClustering, total: float, dims: int) -> None:
    """Assert that loss and gradients are the reference's."""
    patches, order = (part.numpy() for part in drawn(dims))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    assert abs(total - reference.loss(patches, order, weights, 0.5)) < 1e-10
    expected = reference.gradients(patches, order, weights, 0.5)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-4, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method, (patches, order) = tiny(dims).double(), drawn(dims)
    losses = method.loss(Views(tuple(patches.unbind(1)), targets={"order": order}))
    losses.total.backward()
    check(method, losses.total.item(), dims)
    assert losses.of_constant == pytest.approx(log(2**dims) + log(4 * 2**dims - 1))


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    method, (patches, order) = tiny(2).double(), drawn(2)
    own = slice(2 * rank, 2 * rank + 2)
    losses = method.loss(Views(tuple(patches[own].unbind(1)), targets={"order": order[own]}))
    losses.total.backward()
    gradients = {name: p.grad for name, p in method.named_parameters()}
    torch.save((losses.total.detach(), gradients), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_make_montages_of_both_ranks_samples_and_find_the_reference_s_loss(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    method = tiny(2).double()
    for name, parameter in method.named_parameters():
        parameter.grad = (found[0][1][name] + found[1][1][name]) / 2
    check(method, (found[0][0] + found[1][0]).item() / 2, 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_montage_holds_its_patches_in_order_and_is_taken_apart_again(dims: int) -> None:
    patches = torch.arange(2 * 2**dims).float().view(2, 2**dims, 1, *[1] * dims).expand(-1, -1, -1, *[3] * dims)
    whole = montage(patches, 2)
    assert whole.shape == (2, 1, *[6] * dims)
    assert apart(whole, 2).flatten().tolist() == list(range(2 * 2**dims))
    # Five voxels cannot be shared out between two patches: the map is first made six long.
    assert apart(torch.rand(2, 4, *[5] * dims), 2).shape == (2 * 2**dims, 4)


def test_cells_are_enlarged_by_a_share_of_the_sample_and_stay_inside() -> None:
    cells = regions(np.array([[100, 60]]), 2, 0.3)[0]
    assert cells.tolist() == [[[0, 0], [80, 48]], [[0, 12], [80, 60]], [[20, 0], [100, 48]], [[20, 12], [100, 60]]]


def test_patches_lie_in_their_enlarged_cells_and_orders_are_drawn_for_each() -> None:
    method, batch = tiny(2, 1, augment={}, size=8), random_batch([(40, 60)] * 50)
    views = method.views(batch, batch.rng(0))
    cells = regions(batch.extents, 2, 0.3)
    for number, boxes in enumerate(views.boxes):
        assert (boxes[:, 0] >= cells[:, number, 0]).all()
        assert (boxes[:, 1] <= cells[:, number, 1]).all()
        area = (boxes[:, 1] - boxes[:, 0]).prod(axis=1) / (32 * 48)
        assert 0.15 < area.min() < area.max() <= 1
    assert len(views.targets["order"].unique()) == 200


def test_embeddings_that_are_all_alike_cost_the_logarithm_of_the_others() -> None:
    z, samples = torch.ones(8, 2) / 2**0.5, torch.arange(8) // 4
    assert cluster_loss(z, z, torch.arange(8), samples, 0.07).item() == pytest.approx(log(7), rel=1e-5)
    apart_by_sample = torch.nn.functional.one_hot(samples).float()
    found = cluster_loss(apart_by_sample, apart_by_sample, torch.arange(8), samples, 0.07)
    # Three others are the sample's own, as near as can be.
    assert found.item() == pytest.approx(log(3), abs=1e-5)


@pytest.mark.slow
def test_clusters_and_places_are_told_better_than_by_the_best_constant() -> None:
    # The means of maps after instance norm, which the tiny U-Net has, tell nothing.
    method = tiny_method("jigsaw_clustering", 2, "pooled_unet")
    batch = samples_of("jigsaw_clustering", 2, 8)
    take_steps(method, sgd(method, lr=0.02), batch, range(60))
    with torch.no_grad():
        found = [method.loss(method.drawn(batch, batch.rng(seed))) for seed in (97, 98, 99)]
    assert found[0].of_constant is not None
    assert np.mean([losses.total for losses in found]) < found[0].of_constant - 0.05
