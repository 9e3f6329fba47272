"""Health metrics against plain implementations, and at the ends of their ranges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.parts.health import alignment, effective_rank, uniformity


def features(seed: int, n: int = 12, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_effective_rank_is_the_exponential_of_the_singular_values_entropy(seed: int) -> None:
    x = features(seed).numpy()
    shares = np.sqrt(np.linalg.eigvalsh(x.T @ x).clip(0))
    shares = shares / shares.sum()
    assert float(effective_rank(torch.from_numpy(x))) == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5
    )


def test_orthogonal_directions_count_one_each_and_a_single_one_counts_one() -> None:
    assert float(effective_rank(torch.eye(7))) == pytest.approx(7, rel=1e-4)
    assert float(effective_rank(torch.ones(9, 4))) == pytest.approx(1, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_alignment_and_uniformity_equal_their_loops(seed: int) -> None:
    x, y = features(seed).numpy(), features(seed + 1).numpy()
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    apart = np.mean([sum((a - b) ** 2) for a, b in zip(x, y, strict=True)])
    pairs = [math.exp(-2 * sum((x[i] - x[j]) ** 2)) for i in range(len(x)) for j in range(i)]
    assert float(alignment(3 * features(seed), features(seed + 1))) == pytest.approx(apart, rel=1e-9)
    assert float(uniformity(3 * features(seed))) == pytest.approx(math.log(np.mean(pairs)), rel=1e-9)


def test_features_that_are_alike_are_aligned_and_not_uniform() -> None:
    alike = torch.ones(6, 3)
    assert float(alignment(alike, alike)) == 0
    assert float(alignment(alike, -alike)) == pytest.approx(4)
    assert float(uniformity(alike)) == pytest.approx(0, abs=1e-6)
