"""SwAV and DeepCluster-v2 learn from slices of phantoms: they share clusters, and show which organs there are."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from data.phantoms.abdomen import ORGANS, make_phantom
from methods.base import Facts
from methods.downstream.classification_metrics import score_multi_label
from methods.parts.flat_map import mean_features
from orchestrator.judging.probing import linear_probabilities
from tests.encoders import Pixels
from tests.methods.test_clusters_learn import at_the_end, method_of, train

pytestmark = pytest.mark.slow
SEEDS, NUM_PATIENTS, SIDE, STEPS, BATCH_SIZE, NUM_CLUSTERS = range(5), 24, 32, 200, 64, 8
# The others run through all slices.
SHOWN = {number: organ.name for number, organ in enumerate(ORGANS, start=1) if organ.radii_mm[0] < SIDE * 9}
LEAST_PIXELS = 4
SMALL: dict[str, Any] = {
    "hidden_dim": 32,
    "projector_dim": 16,
    "num_prototypes": NUM_CLUSTERS,
    "augment": {"transforms": []},
    "large_crops": {"size": 24, "area": (0.3, 1)},
}
CASES: dict[str, dict[str, Any]] = {
    "swav": {"name": "swav"},
    "deepcluster_v2": {"name": "deepcluster_v2", "num_heads": 1},
}


class Convolutions(Pixels):
    """Four convolutions, whose mean over space tells a slice."""

    def __init__(self) -> None:
        super().__init__(spatial_dims=2)
        widths = (1, 12, 12, 24, 24)
        self.channels = widths[-1:]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(wide, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU())
                for wide, wider, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False)
            )
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


@cache
def slices(first_patient: int) -> tuple[Tensor, np.ndarray]:
    """Return the slices of some patients (n, 1, SIDE, SIDE) in 8 bits, and which organs (n, k) each shows."""
    images: list[Tensor] = []
    shown: list[np.ndarray] = []
    for patient in range(first_patient, first_patient + NUM_PATIENTS):
        phantom = make_phantom(0, patient, (16.0, 9.0, 9.0))
        window = torch.from_numpy(phantom.voxels).float().add(160).div(400).clamp(0, 1)
        images.append(F.interpolate(window[:, None], (SIDE, SIDE), mode="bilinear").mul(255).round().byte())
        shown += [
            (slice_ == np.array([*SHOWN])[:, None, None]).sum((1, 2)) >= LEAST_PIXELS for slice_ in phantom.label
        ]
    return torch.cat(images), np.stack(shown)


def untrained(seed: int) -> Convolutions:
    """Return an encoder of random weights, whose batch norm knows the statistics of slices."""
    torch.manual_seed(seed)
    encoder = Convolutions().train()
    with torch.no_grad():
        for _ in range(20):
            encoder.maps(slices(0)[0].float() / 255)
    return encoder


@torch.no_grad()
def auc(encoder: Convolutions) -> float:
    """Return how well a linear probe of the frozen encoder tells organs in other patients; a mean over organs."""
    encoder.eval()
    (train_images, train_shown), (val_images, val_shown) = slices(0), slices(NUM_PATIENTS)
    train_features, val_features = (
        mean_features(encoder, images.float() / 255).double().numpy() for images in (train_images, val_images)
    )
    probabilities = linear_probabilities(train_features, train_shown, val_features)
    return score_multi_label(val_shown, probabilities, [*SHOWN.values()]).metrics["auc"]


@cache
def found(case: str) -> tuple[list[dict[str, float]], np.ndarray]:
    """Return for each seed what is logged at the end, with the chance to share a cluster, and the rise of the AUC."""
    images, logged, gains = slices(0)[0], [], []
    for seed in SEEDS:
        encoder = untrained(seed)
        before = auc(encoder)
        method = method_of({**SMALL, **CASES[case]}, encoder, Facts(len(images), STEPS, BATCH_SIZE))
        last = at_the_end(train(method, images, method.clusters.facts, lr=0.1, seed=seed))
        counts = torch.bincount(method.get_buffer("clusters.assigned").flatten())
        logged.append(last | {"by_chance": float((counts / counts.sum()).square().sum())})
        gains.append(auc(encoder) - before)
    return logged, np.array(gains)


@pytest.mark.parametrize("case", CASES)
def test_two_views_of_a_slice_share_a_cluster_far_more_often_than_by_chance(case):
    for last in found(case)[0]:
        assert last["shared_cluster"] > 2 * last["by_chance"]
        assert last["prototypes_in_use"] > 0.9 * NUM_CLUSTERS


def test_codes_become_sharp():
    for last in found("swav")[0]:
        spread = (last["code_entropy"] - last["code_entropy_least"]) / last["code_entropy_most"]
        assert spread < 0.5, "uniform codes are at 1"


@pytest.mark.parametrize("case", CASES)
def test_a_linear_probe_of_the_frozen_encoder_beats_that_of_the_untrained_one(case):
    gains = found(case)[1]
    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    assert gains.mean() - half > 0, f"gains in AUC {gains.round(4)}: their mean's 95 % interval reaches 0"
