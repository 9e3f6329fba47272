"""Codes equal a slow reference, stay finite, use all prototypes, and say how little a small batch tells."""

from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods.parts.cluster_health import code_parts, least_entropy
from methods.parts.sinkhorn import sinkhorn
from tests.references import clustering as reference


def scores_of(num_samples: int, num_prototypes: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Return the scores of random embeddings for random prototypes, all of length 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (num_samples, num_prototypes))
    z, prototypes = (F.normalize(vectors, dim=1) for vectors in drawn)
    return z @ prototypes.T


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("num_samples", "num_prototypes"), [(5, 9), (9, 4)])
def test_codes_equal_the_reference(num_samples, num_prototypes, iterations):
    scores = scores_of(num_samples, num_prototypes, dim=6)
    found = sinkhorn(scores, 0.05, iterations)
    expected = reference.sinkhorn(scores.numpy(), 0.05, iterations)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    single = sinkhorn(scores.float(), 0.05, iterations)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=1e-5)


def test_problems_are_solved_apart():
    first, second = scores_of(5, 7, 6), scores_of(5, 7, 6, seed=1)
    both = sinkhorn(torch.stack([first, second]), 0.05, 3)
    assert torch.equal(both[0], sinkhorn(first, 0.05, 3))
    assert torch.equal(both[1], sinkhorn(second, 0.05, 3))


def test_codes_are_computed_in_float32_under_autocast():
    scores = scores_of(6, 8, 6).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn(scores, 0.05, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sinkhorn(scores.float(), 0.05, 3), rtol=0, atol=0)


def test_codes_of_scores_of_50_are_finite_and_exact():
    generator = torch.Generator().manual_seed(0)
    scores = 100 * torch.rand(12, 7, generator=generator) - 50
    scores[0], scores[:, 0] = 50, -50  # one embedding likes all prototypes, and one prototype is liked by none
    codes = sinkhorn(scores, 0.05, 3)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(12))
    torch.testing.assert_close(codes, sinkhorn(scores.double(), 0.05, 3).float(), rtol=0, atol=1e-3)


def test_every_prototype_is_used_equally_in_the_end():
    codes = sinkhorn(scores_of(30, 5, 8), 0.05, 200)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 6.0, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(codes.sum(1), torch.ones(30, dtype=torch.float64))


@pytest.mark.parametrize(
    ("num_samples", "num_prototypes", "dim", "expected", "tolerance"),
    [(12, 3000, 640, 7.745, 0.005), (96, 64, 128, 2.97, 0.06)],
)
def test_at_random_weights_codes_have_the_entropy_of_the_signal_check(
    num_samples, num_prototypes, dim, expected, tolerance
):
    """methods.md 1.1: volumes of JSSL have 640 dimensions, slices 128; 3.01 of 4.16 lies in the spread of seeds."""
    found = [sinkhorn(scores_of(num_samples, num_prototypes, dim, seed), 0.05, 3) for seed in range(2)]
    parts = [code_parts(torch.stack([codes, codes]), num_samples) for codes in found]
    entropies = [part["code_entropy"].item() for part in parts]
    assert entropies == pytest.approx([expected] * 2, abs=tolerance)
    assert entropies[0] == pytest.approx(reference.entropy(found[0].numpy()), abs=1e-9)
    assert parts[0]["code_entropy_most"].item() == pytest.approx(log(num_prototypes))
    assert parts[0]["code_entropy_least"].item() == pytest.approx(max(0, log(num_prototypes / num_samples)))


def test_no_codes_of_a_small_batch_are_sharper_than_the_bound():
    scores = 50 * torch.eye(40, dtype=torch.float64)[:4]
    codes = sinkhorn(scores, 0.05, 100)
    assert reference.entropy(codes.numpy()) >= least_entropy(40, 4) - 1e-9
    shared = torch.arange(40) // 10 == torch.arange(4)[:, None]  # ten prototypes for each embedding
    sharpest = sinkhorn(50 * shared.double(), 0.05, 3)
    assert reference.entropy(sharpest.numpy()) == pytest.approx(least_entropy(40, 4))
    assert least_entropy(4, 40) == 0
