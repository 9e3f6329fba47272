"""Spherical k-means equals a slow reference, with empty clusters and with rows that have no embedding yet."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods.parts import kmeans
from methods.parts.cluster_health import renamed_share, size_entropy, sizes
from methods.parts.kmeans import UNASSIGNED, random_rows, spherical_kmeans
from tests.references import clustering as reference

CPU = torch.device("cpu")


def points_of(count: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("iterations", [1, 10])
def test_clusters_and_centroids_equal_the_reference(iterations, chunk, monkeypatch):
    monkeypatch.setattr(kmeans, "CHUNK", chunk)
    points, first = points_of(40), points_of(6, seed=1)
    points[[4, 17]] = 0
    for kind in (torch.float64, torch.float32):
        found, centroids = spherical_kmeans(points.to(kind), first.to(kind), iterations)
        expected, means = reference.spherical_kmeans(points.numpy(), first.numpy(), iterations)
        assert found.tolist() == expected
        np.testing.assert_allclose(centroids.numpy(), means, rtol=0, atol=1e-12 if kind == torch.float64 else 1e-6)
    assert expected[4] == expected[17] == UNASSIGNED


def test_an_empty_cluster_keeps_its_centroid_as_in_the_reference():
    points = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1]]), dim=1)
    first = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    found, centroids = spherical_kmeans(points, first, 10)
    assert found.tolist() == [0, 0]
    torch.testing.assert_close(centroids, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    expected, means = reference.spherical_kmeans(points.double().numpy(), first.double().numpy(), 10)
    assert expected == [0, 0]
    np.testing.assert_allclose(centroids.numpy(), means, rtol=0, atol=1e-6)


def test_the_first_centroids_are_different_rows_that_have_an_embedding():
    points = points_of(30)
    points[::3] = 0
    first = random_rows(points, slice(0, 30), 30, 20, 5, CPU)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, points[points.any(1)].tolist()))
    fewer = random_rows(points, slice(0, 30), 30, 7, 5, CPU)
    assert len(set(map(tuple, fewer.tolist()))) == 7
    assert not torch.equal(fewer, random_rows(points, slice(0, 30), 30, 7, 6, CPU))


def test_more_clusters_than_rows_leave_some_empty():
    points = points_of(4)
    first = random_rows(points, slice(0, 4), 4, 9, 0, CPU)
    found, centroids = spherical_kmeans(points, first, 3)
    assert sorted(sizes(found, 9).tolist()) == [0] * 5 + [1] * 4
    assert torch.isfinite(centroids).all()


def test_sizes_and_their_entropy_count_assigned_samples_only():
    counts = sizes(torch.tensor([2, 0, 2, -100, 2, 0, -1]), 4)
    assert counts.tolist() == [2, 0, 3, 0]
    shares = np.array([2, 3]) / 5
    assert size_entropy(counts).item() == pytest.approx(-(shares * np.log(shares)).sum())


def test_samples_changed_their_cluster_whatever_it_is_called():
    before = torch.tensor([0, 0, 0, 1, 1, 2, 2, -100])
    assert renamed_share(before, torch.tensor([2, 2, 2, 0, 0, 1, 1, 1]), 3).item() == 0
    assert renamed_share(before, torch.tensor([2, 2, 0, 0, 0, 1, 1, 1]), 3).item() == pytest.approx(1 / 7)
    assert renamed_share(torch.full((8,), -100), before, 3).item() == 1
