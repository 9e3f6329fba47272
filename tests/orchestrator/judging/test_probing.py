"""Probes of frozen encoders: what they compute, on which samples, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from methods.encoders import UNetEncoder
from orchestrator.config.files import resolve
from orchestrator.config.parts import Probe
from orchestrator.judging.probing import ProbeSet, linear_probabilities, neighbour_probabilities
from orchestrator.runs import pretrain
from orchestrator.training.world import World
from tests.encoders import Pixels
from tests.experiments import UNET, tiny_experiment
from tests.shardsets import write_pictures, write_slices

ALONE = World(0, 1, torch.device("cpu"))


def sides(seed: int, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = np.eye(num_classes, dtype=bool)[np.arange(30) % num_classes]
    return (
        rng.normal(size=(30, 4)) + 2 * classes @ rng.normal(size=(num_classes, 4)),
        classes,
        rng.normal(size=(7, 4)),
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_linear_probe_is_a_logistic_regression_on_standardised_features(seed: int) -> None:
    train, classes, val = sides(seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, classes.argmax(1))
    np.testing.assert_allclose(linear_probabilities(train, classes, val), model.predict_proba(val), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_nearest_vote_by_their_cosine(seed: int, neighbours: int) -> None:
    train, classes, val = sides(seed)
    expected = []
    for sample in val:
        cosines = [float(sample @ other / np.linalg.norm(sample) / np.linalg.norm(other)) for other in train]
        nearest = sorted(range(len(train)), key=lambda index: -cosines[index])[:neighbours]
        votes = np.array([np.exp(cosines[index] / 0.07) for index in nearest])
        expected.append(sum(vote * classes[index] for vote, index in zip(votes, nearest, strict=True)) / votes.sum())
    np.testing.assert_allclose(neighbour_probabilities(train, classes, val, neighbours), expected, rtol=1e-9)


def test_a_class_that_no_training_sample_has_gets_no_probability() -> None:
    train, classes, val = sides(0)
    for found in (linear_probabilities, lambda *given: neighbour_probabilities(*given, 5)):
        probabilities = found(train[classes[:, 1] == 0], classes[classes[:, 1] == 0], val)
        assert (probabilities[:, 1] == 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1)


def test_several_classes_per_sample_have_a_probability_each() -> None:
    train, classes, val = sides(1)
    both = classes | np.roll(classes, 1, axis=0)
    for found in (linear_probabilities, lambda *given: neighbour_probabilities(*given, 5)):
        probabilities = found(train, both, val)
        assert probabilities.shape == (7, 3)
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        assert probabilities.sum() > 7.5


def test_a_feature_that_shows_the_class_tells_it_to_the_linear_probe_and_not_by_its_direction(tmp_path: Path) -> None:
    samples = ProbeSet.open(Probe(shards=write_pictures(tmp_path / "pictures"), size=32, neighbours=5))
    shown = samples.measure(Pixels(2), ALONE)
    assert [shown.metrics[f"probe/linear_{name}"] for name in ("accuracy", "auc", "kappa")] == [1.0, 1.0, 1.0]
    assert shown.metrics["probe/knn_auc"] == 0.5  # a brightness has no direction: all are equally near
    assert any("knn probe: class grade 1 has the same probability in all of 6 samples" in r for r in shown.remarks)


def test_three_ranks_probe_what_one_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = ProbeSet.open(Probe(shards=write_pictures(tmp_path / "pictures"), size=32))
    torch.manual_seed(0)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(4, 4, 8, 8, 8, 4))).eval()
    with torch.no_grad():
        alone = samples._features(encoder, samples.train, [0, 1], ALONE)
        told: list[torch.Tensor] = []

        def gathered(parts: list[torch.Tensor], world: World) -> torch.Tensor:
            told.append(torch.cat(parts))
            return torch.from_numpy(alone[(len(told) - 1) % 2])

        monkeypatch.setattr("orchestrator.judging.probing.from_all_ranks", gathered)
        for rank in range(3):
            samples._features(encoder, samples.train, [0, 1], World(rank, 3, ALONE.device))
    for one, several in zip(alone, (told[::2], told[1::2]), strict=True):
        np.testing.assert_allclose(np.concatenate(several), one, rtol=1e-5)


def test_a_probe_without_two_classes_or_of_other_samples_is_refused(tmp_path: Path) -> None:
    slices = write_slices(tmp_path / "slices")
    with pytest.raises(ValueError, match=r"split 'train' has 0 samples of 0 classes, expected at least 2 classes"):
        ProbeSet.open(Probe(shards=slices, size=32))
    pictures = write_pictures(tmp_path / "pictures")
    tree = tiny_experiment("probe", slices, tmp_path, 4, UNET, probe={"shards": pictures, "size": 40})
    with pytest.raises(ValueError, match=r"probe.size.*40 is not a multiple of the encoder's stride 16"):
        pretrain.check(resolve(tree))
