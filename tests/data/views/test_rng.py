"""SampleRng: what a sample gets depends on seed, epoch, sample id and name, and on nothing else."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from data.views.rng import SampleRng

IDS = [f"sample-{i}" for i in range(4000)]


def streams(seed: int = 0, epoch: int = 0, ids: list[str] = IDS) -> SampleRng:
    return SampleRng.for_samples(seed, np.full(len(ids), epoch), ids)


def test_known_numbers_do_not_change_between_releases():
    drawn = SampleRng.for_samples(7, [0, 3], ["a", "b"]).fold("zoom").words(2)
    assert drawn.tolist() == [[2652637014366212498, 7547480208105745688], [7568509341754104870, 4841061528985928633]]


def test_splitting_a_batch_changes_nothing():
    whole = streams().fold("zoom").uniform(3)
    parts = [streams(ids=IDS[:17]).fold("zoom").uniform(3), streams(ids=IDS[17:]).fold("zoom").uniform(3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    "other",
    [streams(seed=1), streams(epoch=1), streams().fold("zoom"), streams().fold(0), streams(ids=IDS[::-1])],
    ids=["seed", "epoch", "name", "number", "sample"],
)
def test_streams_of_different_use_are_uncorrelated(other):
    correlation = np.corrcoef(streams().uniform(), other.uniform())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(IDS))


def test_uniform_numbers_are_uniform_over_samples_and_within_one_sample():
    assert kstest(streams().uniform(), "uniform").pvalue > 1e-3
    assert kstest(streams(ids=["one"]).uniform(5000)[0], "uniform").pvalue > 1e-3


def test_uniform_keeps_to_its_bounds():
    drawn = streams().uniform(low=0.8, high=1.2)
    assert drawn.min() >= 0.8
    assert drawn.max() < 1.2
    assert abs(drawn.mean() - 1.0) < 0.01


def test_integers_reach_every_value_below_their_bound_alike():
    drawn = streams().integers(7)
    counts = np.bincount(drawn, minlength=7)
    assert len(counts) == 7
    expected = len(IDS) / 7
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), 6) > 1e-3


def test_integers_take_one_bound_per_sample():
    bounds = np.arange(1, len(IDS) + 1)
    drawn = streams().integers(bounds)
    assert np.all(drawn < bounds)
    assert drawn[0] == 0


def test_chance_comes_true_as_often_as_asked():
    assert abs(streams().chance(0.25).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(IDS))
    assert not streams().chance(0.0).any()
    assert streams().chance(1.0).all()


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    rng = streams(ids=IDS[:6])
    whole = rng.normal_voxels((1, 5, 5), torch.device("cpu"))
    assert torch.equal(whole[2:4], rng.take(np.array([2, 3])).normal_voxels((1, 5, 5), torch.device("cpu")))


def test_noise_is_standard_normal_and_differs_between_samples():
    noise = streams(ids=IDS[:50]).normal_voxels((1, 10, 10), torch.device("cpu"))
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert len(torch.unique(noise[:, 0, 0, 0])) == 50
