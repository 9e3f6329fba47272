"""DeepCluster-v2: loss, banks, clusters and prototypes equal slow references; the first epoch has labels too."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from methods.base import Facts, Progress, Views
from methods.deepcluster_v2 import DeepClusterV2
from methods.parts.kmeans import UNASSIGNED
from methods.parts.kmeans_clusters import cluster_loss
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.test_swav import CROPS, embeddings_of, views_of
from tests.references import clustering as reference

FOUR = Facts(num_samples=12, steps=20, batch_size=4)


def tiny(facts: Facts = FOUR, **fields: object) -> DeepClusterV2:
    torch.manual_seed(0)
    sizes = {"hidden_dim": 7, "projector_dim": 6, "num_prototypes": 4}
    config = DeepClusterV2.Config.model_validate({**sizes, **CROPS} | fields)
    return DeepClusterV2(config, Pixels(2, 5), facts)


def epoch(method: DeepClusterV2, seed: int = 0, number: int = 1) -> list[Views]:
    """Let a method see all its samples once, and hear that the epoch has ended."""
    seen = [views_of(2, seed + step, first=4 * step) for step in range(3)]
    for step, views in enumerate(seen):
        method.loss(views)
        method.after_step(Progress(3 * number - 2 + step, 20, number))
    method.after_epoch(Progress(3 * number, 20, number))
    return seen


def test_loss_and_gradient_equal_the_reference():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    clusters = torch.randint(5, (4, 2), generator=generator)
    loss = cluster_loss(scores, clusters, 0.3)
    loss.backward()
    given = scores.detach().numpy(), clusters.numpy(), 0.3
    assert loss.item() == pytest.approx(reference.cluster_loss(*given), abs=1e-12)
    np.testing.assert_allclose(scores.grad.numpy(), reference.cluster_gradient(*given), rtol=0, atol=1e-8)
    assert scores.grad.abs().max() > 1e-3


def test_banks_hold_the_embeddings_of_each_large_crop_by_row():
    method = tiny(small_crops={"num": 2, "size": 2}).double()
    views = views_of(4, 3, first=5)
    with torch.no_grad():
        expected = embeddings_of(method, views)
        method.loss(views)
    method.after_step(Progress(1, 20, 0))
    torch.testing.assert_close(method.clusters.bank[5:9], expected[:2].transpose(0, 1))
    assert method.clusters.bank[:5].abs().sum() == method.clusters.bank[9:].abs().sum() == 0


def test_heads_cluster_the_banks_in_turn_and_take_the_centroids_as_prototypes(monkeypatch):
    method, first = tiny().double(), {}

    def first_rows(points, share, num_rows, count, seed, device):
        first[seed] = points[seed % 3 :: 3][:count].clone()
        return first[seed]

    monkeypatch.setattr("methods.parts.kmeans_clusters.random_rows", first_rows)
    with torch.no_grad():
        method.clusters.seed.zero_()
        epoch(method)
    assert list(first) == [3, 4, 5]
    for number, head in enumerate(method.clusters.prototypes):
        points = method.clusters.bank[:, number % 2].numpy()
        found, centroids = reference.spherical_kmeans(points, first[3 + number].numpy(), 10)
        assert method.clusters.assigned[:, number].tolist() == found
        np.testing.assert_allclose(head.weight.detach().numpy(), centroids, rtol=0, atol=1e-12)


def test_after_an_epoch_samples_predict_their_clusters():
    method = tiny().double()
    seen = epoch(method)
    with torch.no_grad():
        scores = torch.stack([embeddings_of(method, seen[1]) @ head.weight.T for head in method.clusters.prototypes])
    losses = method.loss(seen[1])
    clusters = method.clusters.assigned[4:8]
    assert losses.total.item() == pytest.approx(
        reference.cluster_loss(scores.numpy(), clusters.numpy(), 0.1), abs=1e-9
    )
    right = (scores.argmax(-1) == clusters.T[:, None]).double().mean()
    assert losses.parts["accuracy"].item() == pytest.approx(right.item())


def test_samples_without_a_cluster_take_the_strongest_prototype_of_their_code():
    method = tiny().double()
    views = views_of(2, 0, first=4)
    with torch.no_grad():
        scores = torch.stack(
            [embeddings_of(method, views) @ head.weight.T for head in method.clusters.prototypes]
        ).numpy()
    codes = np.stack([reference.sinkhorn(scores[head, head % 2], 0.05, 3) for head in range(3)])
    coded = codes.argmax(-1).T
    assert method.loss(views).total.item() == pytest.approx(reference.cluster_loss(scores, coded, 0.1), abs=1e-9)
    assert all(len(set(column)) > 1 for column in coded.T), "codes of a batch are spread over prototypes"

    known = torch.tensor([[0, 1, 2], [UNASSIGNED] * 3, [3, 3, 3], [UNASSIGNED] * 3])
    method.clusters.assigned[4:8] = known
    mixed = np.where(known.numpy() >= 0, known.numpy(), coded)
    assert method.loss(views).total.item() == pytest.approx(reference.cluster_loss(scores, mixed, 0.1), abs=1e-9)
    bare = method.loss(replace(views, rows=None))
    assert bare.total.item() == pytest.approx(reference.cluster_loss(scores, coded, 0.1), abs=1e-9)


def test_the_first_epoch_has_a_loss_with_a_gradient():
    method = tiny(variant="released").double()
    method.loss(views_of(2)).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters() if p.ndim > 1)


def test_prototypes_stay_centroids_or_learn_after_some_steps():
    frozen = tiny(replace(FOUR, steps=1000))
    assert not any(p.requires_grad for p in frozen.clusters.prototypes.parameters())
    assert {id(p) for group in frozen.param_groups() for p in group.params} == {
        id(p) for p in (*frozen.encoder.parameters(), *frozen.projector.parameters())
    }
    learning = tiny(replace(FOUR, steps=1000), variant="released")
    last = learning.param_groups()[-1]
    assert [id(p) for p in last.params] == [id(p) for p in learning.clusters.prototypes.parameters()]
    assert last.starts_at == 0.313


def test_health_tells_sizes_and_changes_since_the_epoch_before():
    method = tiny().double()
    start = method.loss(views_of(2)).parts
    assert [start[name].item() for name in ("assignments_changed", "largest_cluster")] == [1, 0]
    epoch(method)
    before = method.clusters.assigned.clone()
    parts = method.loss(views_of(2)).parts
    counts = torch.stack([torch.bincount(column, minlength=4) for column in before.T])
    assert parts["assignments_changed"].item() == 1
    assert parts["smallest_cluster"].item() == counts.min()
    assert parts["largest_cluster"].item() == counts.max()
    assert parts["prototypes_in_use"].item() == pytest.approx((counts > 0).sum(1).double().mean().item())
    shares = counts / 12
    entropies = -torch.xlogy(shares, shares).sum(1)
    assert parts["cluster_entropy"].item() == pytest.approx(entropies.mean().item(), abs=1e-6)
    assert parts["cluster_entropy_most"].item() == pytest.approx(np.log(4))
    epoch(method, seed=7, number=2)
    changed = []
    for old, new in zip(before.T, method.clusters.assigned.T, strict=True):
        stayed = sum(torch.bincount(old[new == cluster], minlength=4).max().item() for cluster in range(4))
        changed.append(1 - stayed / 12)
    assert 0 < np.mean(changed) < 1
    assert method.loss(views_of(2)).parts["assignments_changed"].item() == pytest.approx(np.mean(changed))


def test_more_clusters_than_samples_are_doubted_and_train():
    method = tiny(num_prototypes=30).double()
    (doubt,) = method.doubts()
    assert "num_prototypes 30: there are 12 samples to cluster, so that 18 or more clusters stay empty" in doubt
    assert "set it to 6 or fewer" in doubt
    epoch(method)
    assert method.clusters.assigned.min() >= 0
    assert torch.isfinite(method.loss(views_of(2)).total)
    assert tiny(num_prototypes=12).doubts() == ()


def test_banks_stay_in_host_memory_without_a_device_and_follow_a_type():
    method = tiny()
    held = method.clusters.bank.data_ptr()
    method.to("cpu")
    assert method.clusters.bank.data_ptr() == held
    assert method.double().clusters.bank.dtype == torch.float64
    assert method.clusters.assigned.dtype == torch.int64
    assert method.to("meta").clusters.bank.is_meta
    assert {"clusters.bank", "clusters.assigned"} <= set(method.state_dict())


def test_variants_differ_in_whether_prototypes_learn_and_in_nothing_else():
    paper, released = (DeepClusterV2.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    assert DeepClusterV2.Config().model_dump() == paper
    assert {name for name in paper if paper[name] != released[name]} == {"variant", "learn_after"}
    assert (paper["learn_after"], released["learn_after"]) == (None, 313)
    assert tiny(FACTS).config.num_heads == 3
