"""SwAV: loss and gradient equal a slow reference; codes, queue, prototypes and health are what the config says."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from methods.base import Facts, Progress, Views
from methods.parts.embedding_queue import EmbeddingQueue
from methods.parts.sinkhorn import sinkhorn
from methods.parts.swapped_codes import swapped_loss
from methods.swav import SwAV
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.references import clustering as reference

CROPS = {"large_crops": {"size": 4}, "small_crops": {"size": 2}}


def tiny(facts: Facts = FACTS, dims: int = 2, channels: int = 5, **fields: object) -> SwAV:
    torch.manual_seed(0)
    config = SwAV.Config.model_validate({"hidden_dim": 7, "projector_dim": 6, "num_prototypes": 9, **CROPS} | fields)
    return SwAV(config, Pixels(dims, channels), facts)


def views_of(num_crops: int, seed: int = 0, first: int = 0, samples: int = 4, dims: int = 2) -> Views:
    """Return noise as large and small crops of the samples from row ``first`` on."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(4,) * dims if number < 2 else (2,) * dims for number in range(num_crops)]
    images = tuple(torch.randn(samples, 5, *size, generator=generator, dtype=torch.float64) for size in sizes)
    return Views(images, rows=torch.arange(first, first + samples))


def embeddings_of(method: SwAV, views: Views) -> torch.Tensor:
    """Return (crops, samples, d) embeddings, computed without the method's own code."""
    features = torch.cat([image.flatten(2).mean(2) for image in views.images])
    layers = list(method.projector)
    hidden = F.relu(F.batch_norm(layers[0](features), None, None, layers[1].weight, layers[1].bias, training=True))
    z = layers[3](hidden)
    return (z / z.square().sum(1, keepdim=True).sqrt()).unflatten(0, (len(views.images), -1))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_and_gradient_equal_the_reference(reduction):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    codes = torch.softmax(torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), -1)
    loss = swapped_loss(scores, codes, 0.3, reduction)
    loss.backward()
    given = scores.detach().numpy(), codes.numpy(), 0.3, reduction
    assert loss.item() == pytest.approx(reference.swapped_loss(*given), abs=1e-12)
    np.testing.assert_allclose(scores.grad.numpy(), reference.swapped_gradient(*given), rtol=0, atol=1e-8)
    assert scores.grad[0].abs().max() > 1e-3


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("temperature", "epsilon"), [(0.1, 0.05), (0.1, 0.02), (0.5, 0.05)])
@pytest.mark.parametrize("excess", [0.9, 1.1])
def test_small_differences_grow_only_where_two_views_correlate_by_more_than_epsilon_by_temperature(
    together, temperature, epsilon, excess
):
    """Of small scores s, codes are (1 + s / epsilon) / k, and predictions (1 + s / temperature) / k."""
    correlation, generator = excess * epsilon / temperature, torch.Generator().manual_seed(0)
    shared, *own = torch.randn(3, 4000, 8, generator=generator, dtype=torch.float64)
    scores = 0.002 * (correlation**0.5 * shared + (1 - correlation) ** 0.5 * torch.stack(own))
    codes = sinkhorn(scores.flatten(0, 1) if together else scores, epsilon, 3).view_as(scores)
    swapped_loss(scores.requires_grad_(), codes, temperature, "sum").backward()
    assert scores.grad is not None
    growth = -(scores.grad * scores.detach()).sum()
    assert growth > 0 if excess > 1 else growth < 0


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_method_s_loss_is_that_of_its_codes(variant, dims):
    method = tiny(variant=variant, dims=dims).double()
    views = views_of(2 if variant == "paper" else 8, dims=dims)
    losses = method.loss(views)
    with torch.no_grad():
        z = embeddings_of(method, views)
        scores = (z @ method.clusters.prototypes.weight.T).numpy()
    if variant == "paper":
        codes = reference.sinkhorn(scores.reshape(8, 9), 0.05, 3).reshape(2, 4, 9)
        expected = reference.swapped_loss(scores, codes, 0.1, "sum")
    else:
        codes = np.stack([reference.sinkhorn(own, 0.05, 3) for own in scores[:2]])
        expected = reference.swapped_loss(scores, codes, 0.1, "mean")
    assert losses.total.item() == pytest.approx(expected, abs=1e-9)
    assert losses.parts["code_entropy"].item() == pytest.approx(reference.entropy(codes.reshape(8, 9)), abs=1e-9)
    least = log(9 / 8) if variant == "paper" else log(9 / 4)
    assert losses.parts["code_entropy_least"].item() == pytest.approx(least)
    assert losses.parts["prototypes_in_use"].item() == len(set(codes.argmax(-1).flatten()))
    agree = np.mean(codes[0].argmax(-1) == codes[1].argmax(-1))
    assert losses.parts["shared_cluster"].item() == pytest.approx(agree)
    losses.total.backward()
    assert method.clusters.prototypes.weight.grad.abs().sum() > 0


def test_codes_take_no_gradient():
    method, views = tiny().double(), views_of(2)
    method.loss(views).total.backward()
    found = method.clusters.prototypes.weight.grad.clone()
    method.zero_grad()
    z = embeddings_of(method, views)
    scores = method.clusters.prototypes(z)
    codes = torch.from_numpy(reference.sinkhorn(scores.detach().numpy().reshape(8, 9), 0.05, 3)).view(2, 4, 9)
    swapped_loss(scores, codes, 0.1, "sum").backward()
    torch.testing.assert_close(found, method.clusters.prototypes.weight.grad, rtol=1e-8, atol=1e-12)


def test_prototypes_have_length_1_after_each_step_and_wait_for_their_turn():
    method = tiny(replace(FACTS, steps=1000))
    torch.testing.assert_close(method.clusters.prototypes.weight.norm(dim=1), torch.ones(9))
    with torch.no_grad():
        method.clusters.prototypes.weight.mul_(3)
    method.double().loss(views_of(2))
    method.after_step(Progress(1, 1000, 0))
    torch.testing.assert_close(method.clusters.prototypes.weight.norm(dim=1), torch.ones(9).double())
    *others, last = method.param_groups()
    assert [id(p) for p in last.params] == [id(method.clusters.prototypes.weight)]
    assert (last.starts_at, {group.starts_at for group in others}) == (0.313, {0.0})


def test_a_queue_holds_the_last_embeddings_the_newest_first():
    queue, z = EmbeddingQueue(2, 5, 1), torch.arange(12.0).view(2, 6, 1)
    for first in (0, 2):
        queue.push(z[:, first : first + 2])
        assert queue.num_read == 0
        assert queue.own_part().shape == (2, 0, 1)
    queue.push(z[:, 4:6])
    assert queue.num_read == 5
    assert queue.own_part()[..., 0].tolist() == [[4, 5, 2, 3, 0], [10, 11, 8, 9, 6]]


@pytest.mark.parametrize("codes", ["together", "apart"])
def test_a_full_queue_is_coded_with_the_batch_and_predicts_nothing(codes):
    method = tiny(codes=codes, queue_length=6, queue_start_epoch=0).double()
    with torch.no_grad():
        seen = [embeddings_of(method, views_of(2, seed)) for seed in range(3)]
        for step in range(2):
            method.loss(views_of(2, step))
            method.after_step(Progress(step + 1, 20, 0))
        losses = method.loss(views_of(2, 2))
        queued = torch.cat([seen[1], seen[0]], dim=1)[:, :6]
        both = torch.cat([queued, seen[2]], dim=1) @ method.clusters.prototypes.weight.T
    if codes == "together":
        coded = reference.sinkhorn(both.numpy().reshape(20, 9), 0.05, 3).reshape(2, 10, 9)
    else:
        coded = np.stack([reference.sinkhorn(own, 0.05, 3) for own in both.numpy()])
    expected = reference.swapped_loss(both[:, 6:].numpy(), coded[:, 6:], 0.1, "sum")
    assert losses.total.item() == pytest.approx(expected, abs=1e-9)
    least = max(0.0, log(9 / (20 if codes == "together" else 10)))
    assert losses.parts["code_entropy_least"].item() == pytest.approx(least)


def test_a_queue_begins_with_the_first_step_of_its_epoch():
    method = tiny(Facts(num_samples=8, steps=20, batch_size=4), queue_length=30, queue_start_epoch=2).double()
    filled = []
    for step in range(1, 7):  # two steps are an epoch: the fifth is the first of epoch 2
        method.loss(views_of(2, step))
        method.after_step(Progress(step, 20, step // 2))
        filled.append(int(method.clusters.queue.filled))
    assert filled == [0, 0, 0, 0, 4, 8]


def test_health_tells_which_samples_changed_their_cluster_and_how_large_clusters_are():
    method = tiny(Facts(num_samples=8, steps=20, batch_size=4)).double()
    first = method.loss(views_of(2, 0))
    assert "assignments_changed" not in first.parts
    method.after_step(Progress(1, 20, 0))
    other = method.loss(views_of(2, 1, first=4))
    assert "assignments_changed" not in other.parts
    method.after_step(Progress(2, 20, 1))
    before = method.clusters.assigned.clone()
    assert before.min() >= 0
    method.after_epoch(Progress(2, 20, 1))
    same = method.loss(views_of(2, 0))
    assert same.parts["assignments_changed"].item() == 0
    counts = torch.bincount(before, minlength=9)
    assert same.parts["smallest_cluster"].item() == counts.min()
    assert same.parts["largest_cluster"].item() == counts.max()
    changed = method.loss(views_of(2, 5))
    method.after_step(Progress(3, 20, 1))
    assert changed.parts["assignments_changed"].item() == (before != method.clusters.assigned)[:4].double().mean() > 0


def test_a_batch_that_cannot_fill_the_prototypes_is_doubted_with_numbers():
    facts = Facts(num_samples=100, steps=100, batch_size=12)
    (doubt,) = tiny(facts, num_prototypes=3000).doubts()
    assert "num_prototypes 3000: 24 embeddings are coded together (12 samples, 2 of each)" in doubt
    assert "spread over 125 prototypes or more" in doubt
    assert "at least 4.83 of 8.01 nats" in doubt
    assert (
        "set method.num_prototypes to 24 or fewer, raise budget.batch_size, or set method.queue_length to 1488"
        in doubt
    )
    assert tiny(facts, num_prototypes=24).doubts() == ()
    assert tiny(replace(facts, steps=500), num_prototypes=3000, queue_length=1488).doubts() == ()
    assert len(tiny(replace(facts, steps=500), num_prototypes=3000, queue_length=1487).doubts()) == 1
    (late, few) = tiny(facts, num_prototypes=3000, queue_length=1488, queue_start_epoch=1).doubts()
    assert "queue_length 1488: the queue is filled from step 9 on and read once it is full, after step 133" in late
    assert "the budget has 100 steps; lower method.queue_start_epoch" in late
    assert "24 embeddings are coded together" in few
    assert len(tiny(facts, variant="released", num_prototypes=13).doubts()) == 1
    assert tiny(facts, variant="released", num_prototypes=12).doubts() == ()


def test_variants_differ_in_the_three_contradictions_and_in_nothing_else():
    paper, released = (SwAV.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    assert SwAV.Config().model_dump() == paper
    different = {name: (paper[name], released[name]) for name in paper if paper[name] != released[name]}
    assert {name: pair for name, pair in different.items() if name != "small_crops"} == {
        "variant": ("paper", "released"),
        "codes": ("together", "apart"),
        "reduction": ("sum", "mean"),
    }
    assert released["small_crops"] == {**paper["small_crops"], "num": 6}
    config = SwAV.Config.model_validate({"variant": "released", "small_crops": {"size": 32}})
    assert (config.small_crops.num, config.small_crops.area, config.small_crops.size) == (6, (0.05, 0.14), 32)
    assert SwAV.Config.model_validate_json(config.model_dump_json()) == config


def test_the_released_views_are_two_large_and_six_small_crops():
    method = tiny(channels=1, variant="released")
    batch = random_batch([(30, 40), (20, 24)])
    views = method.views(batch, batch.rng(0))
    assert [tuple(image.shape) for image in views.images] == [(2, 1, 4, 4)] * 2 + [(2, 1, 2, 2)] * 6


def test_a_single_large_crop_is_refused():
    with pytest.raises(ValidationError, match=r"large_crops\s.*num 1: expected at least 2 crops"):
        SwAV.Config.model_validate({"large_crops": {"num": 1}})
