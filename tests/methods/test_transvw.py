"""TransVW: loss and gradient equal a slow reference; words are places of the samples that are nearest to one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.base import Progress, Views
from methods.parts.flat_map import mean_features
from methods.transvw import TransVW, nearest_rows
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import effective_rank, samples_of, take_steps
from tests.methods.test_pcrlv2 import Halvings
from tests.methods.two_views import shake
from tests.references import transvw as reference

CPU = torch.device("cpu")


def tiny(dims: int = 2, channels: int = 2, **fields: object) -> TransVW:
    torch.manual_seed(0)
    given = {"crop_size": 4, "num_words": 5, "num_instances": 3, "hidden_dim": 6, "num_windows": 5, **fields}
    return TransVW(TransVW.Config.model_validate(given), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("discovered", [False, True])
def test_loss_and_gradients_equal_the_reference(dims: int, discovered: bool) -> None:
    method = tiny(dims)
    shake(method)
    words, rows = torch.tensor([4, 0, 1, 2]), torch.tensor([3, 9, 0, 11])
    instances = [True, not discovered, True, True]
    if discovered:
        method.discovered.fill_(1)
        method.members[9, 0] = 0
    generator = torch.Generator().manual_seed(2)
    images = list(torch.rand(3, 4, 2, *[4] * dims, generator=generator, dtype=torch.float64))
    losses = method.loss(Views(tuple(images), targets={"words": words}, rows=rows))
    losses.total.backward()
    weights: dict[str, Tensor] = {k: p.detach().clone().requires_grad_() for k, p in method.named_parameters()}
    expected = reference.loss(images, words.tolist(), instances, weights, discovered)
    expected.backward()
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-9)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-7, atol=1e-9)
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_instances_are_the_nearest_samples_that_have_features() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    points[7] = 0
    found = nearest_rows(torch.from_numpy(points), torch.from_numpy(points[:6]), 9, CPU)
    np.testing.assert_array_equal(found.numpy(), reference.nearest(points, points[:6], 9))
    every = nearest_rows(torch.from_numpy(points), torch.from_numpy(points[:6]), 100, CPU)
    assert every.sum(0).tolist() == [39] * 6


def test_words_are_discovered_once_from_the_features_of_whole_samples() -> None:
    method, batch = tiny(channels=1), random_batch([(9, 10)] * 16)
    views = method.drawn(batch, batch.rng(0))
    method.loss(views)
    method.after_step(Progress(1, 20, 0))
    torch.testing.assert_close(method.bank, mean_features(method.encoder, views.images[2]))
    assert method.members.all()
    method.after_epoch(Progress(1, 20, 1))
    found = method.members.clone()
    assert found.sum(0).tolist() == [3] * 5
    method.bank.add_(1)
    method.after_epoch(Progress(2, 20, 2))
    assert torch.equal(method.members, found)


def test_words_are_not_discovered_before_their_epoch_and_no_instance_costs_nothing() -> None:
    method, batch = tiny(channels=1, discover_after=2), random_batch([(9, 10)] * 16)
    method.after_epoch(Progress(1, 20, 1))
    assert method.members.all()
    method.members.zero_()
    losses = method.loss(method.drawn(batch, batch.rng(0)))
    assert losses.parts["cross_entropy"] == 0
    assert "accuracy" not in losses.parts


def test_crops_of_a_word_lie_at_one_share_of_the_way_and_are_distorted_in_one_way() -> None:
    method, batch = tiny(channels=1, crop_size=7), random_batch([(20, 30), (11, 9)] * 20)
    views = method.drawn(batch, batch.rng(0))
    words, low = views.targets["words"].numpy(), views.boxes[0][:, 0]
    expected = np.floor(method.places[words] * (batch.extents - 6))
    np.testing.assert_array_equal(low, expected)
    assert (views.boxes[0][:, 1] <= batch.extents).all()
    assert set(words) == set(range(5))
    changed = (views.images[0] != views.images[1]).flatten(1).any(1).float().mean()
    assert 0.5 < changed <= 0.9  # windows of a crop this small are single voxels, which stay where they are
    again = method.drawn(replace(batch, epochs=batch.epochs + 1), batch.rng(1)).targets["words"]
    assert not torch.equal(views.targets["words"], again)


@pytest.mark.slow
def test_words_and_crops_are_learnt_better_than_by_the_best_constant_and_features_differ() -> None:
    torch.manual_seed(0)
    fields = {"crop_size": 16, "num_words": 4, "hidden_dim": 16, "lambda_classify": 0.1, "num_windows": 5}
    method, batch = TransVW(TransVW.Config.model_validate(fields), Halvings(2), FACTS), samples_of("transvw", 2, 8)
    take_steps(method, torch.optim.AdamW(method.parameters(), lr=1e-2), batch, range(50))
    views = method.drawn(batch, batch.rng(99))
    with torch.no_grad():
        losses, features = method.loss(views), mean_features(method.encoder, views.images[1])
    assert losses.of_constant is not None
    assert losses.total < 0.8 * losses.of_constant
    assert effective_rank(features) > 2


def test_words_that_all_samples_are_instances_of_are_doubted() -> None:
    (doubt,) = tiny(num_instances=16).doubts()
    assert "num_instances 16: there are 16 samples" in doubt
    assert tiny(num_instances=15).doubts() == ()
