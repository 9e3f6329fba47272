"""JSSL's third stage learns what a linear probe sees: nodules from vessels, of whatever brightness and noise.

Both show discs in their slices; in which slices tells a ball from a tube. A nodule phantom as it is would be too
easy: with 48 labelled volumes of each kind, a probe of an untrained encoder is never wrong. So here each volume
has a gain, an offset and noise of its own, which fill most of an untrained encoder's features.

The method and its views are as published, but for the size of the encoder, Adam, and these:

views         of another gain and offset as well: the published transforms leave both as they are, and clusters of
              these tell volumes apart, too. Without them, two of five seeds gain 0.01 with few labels
epsilon       0.02 in place of 0.05, and prototypes that learn from the first step: see ``test_jssl_learns``
prototypes    8 in place of 3000: a step has 24 embeddings

The untrained encoder is one whose batch norm knows the statistics of the slices of views: these alone raise the AUC
with few labels by up to 0.15.
"""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from data.phantoms.nodules import CANDIDATES, make_candidate
from data.views.transforms import JSSL
from methods.base import Facts
from methods.clustering import Clustering
from methods.encoders import Encoder, SliceTransformerEncoder
from methods.parts.flat_map import mean_features
from tests.methods.test_clusters_learn import batch_of, method_of, train
from tests.methods.test_jssl_learns import CLUSTERS, ENCODER, SIDE

pytestmark = [pytest.mark.slow, pytest.mark.soak]
SEEDS, STEPS, BATCH_SIZE, LR = range(5), 88, 12, 0.001
PRETRAINED, LABELLED, JUDGED = range(48), range(48, 96), range(96, 160)
FEW, MANY, DRAWS = 4, 48, 10
METHOD = {
    "name": "jssl_cluster",
    "size": SIDE,
    "augment": {
        "scale": (-0.4, 0.4),
        "scale_prob": 1,
        "shift": (-0.2, 0.2),
        "shift_prob": 1,
        "one_of": JSSL,
    },
    "clusters": CLUSTERS["clusters"],
}


def volume(patient: int, kind: int) -> Tensor:
    """Return a nodule or a vessel (1, 1, SIDE, SIDE, SIDE) in 8 bits, with a gain, an offset and noise of its own."""
    window = torch.from_numpy(make_candidate(0, patient, kind).voxels).float().add(1000).div(1200).clamp(0, 1)
    small = F.interpolate(window[None, None], (SIDE,) * 3, mode="trilinear").numpy()
    rng = np.random.default_rng((1, patient, kind))
    gain, offset, sigma = rng.uniform((0.5, 0, 0), (1, 0.3, 0.2))
    return torch.from_numpy((gain * small + offset + rng.normal(0, sigma, small.shape)).clip(0, 1) * 255).byte()


@cache
def volumes(patients: range) -> tuple[Tensor, np.ndarray]:
    """Return a volume of each kind of some patients, and the kinds."""
    kinds = range(len(CANDIDATES))
    images = [volume(patient, kind) for patient in patients for kind in kinds]
    return torch.cat(images), np.tile(kinds, len(patients))


def untrained(seed: int) -> Clustering:
    """Return the method with random weights, whose batch norm knows the statistics of the views' slices."""
    torch.manual_seed(seed)
    encoder = SliceTransformerEncoder(SliceTransformerEncoder.Config.model_validate(ENCODER))
    images, _ = volumes(PRETRAINED)
    method = method_of(METHOD, encoder, Facts(len(images), STEPS, BATCH_SIZE))
    for epoch in range(3):
        for rows in np.random.default_rng(epoch).permutation(len(images)).reshape(-1, BATCH_SIZE):
            batch = batch_of(images, rows, epoch)
            with torch.no_grad():
                method.embed(method.drawn(batch, batch.rng(seed)))
    return method


@torch.no_grad()
def features(encoder: Encoder) -> list[np.ndarray]:
    """Return what the frozen encoder says of the labelled and of the judged volumes.

    Features have mean 0 and deviation 1 over the volumes of the pretraining.
    """
    encoder.eval()
    pretrained, labelled, judged = (
        torch.cat([mean_features(encoder, part.float() / 255) for part in volumes(patients)[0].split(24)])
        for patients in (PRETRAINED, LABELLED, JUDGED)
    )
    scaler = StandardScaler().fit(pretrained.double().numpy())
    return [np.asarray(scaler.transform(each.double().numpy())) for each in (labelled, judged)]


def auc(labelled: np.ndarray, judged: np.ndarray, per_kind: int, draws: int) -> float:
    """Return how well a logistic regression on ``per_kind`` volumes of each kind tells others; a mean over draws."""
    (_, kinds), (_, truth) = volumes(LABELLED), volumes(JUDGED)
    found: list[float] = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(kinds == kind))[:per_kind] for kind in np.unique(kinds)]
        )
        probe = LogisticRegression(max_iter=2000).fit(labelled[rows], kinds[rows])
        found.append(float(roc_auc_score(truth, probe.decision_function(judged))))
    return float(np.mean(found))


def probed(encoder: Encoder) -> dict[str, float]:
    """Return the AUC with few and many labels, and which share of the features' variance is between the kinds."""
    labelled, judged = features(encoder)
    kinds = volumes(JUDGED)[1]
    middles = np.stack([judged[kinds == kind].mean(0) for kind in np.unique(kinds)])
    return {
        "few": auc(labelled, judged, FEW, DRAWS),
        "many": auc(labelled, judged, MANY, 1),
        "share": float(middles.var(0).sum() / judged.var(0).sum()),
    }


@cache
def found() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what is probed before and after training, by seed."""
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []
    for seed in SEEDS:
        method = untrained(seed)
        before.append(probed(method.encoder))
        method.train()
        train(method, volumes(PRETRAINED)[0], method.clusters.facts, LR, seed, torch.optim.Adam)
        after.append(probed(method.encoder))
    ones, others = ({name: np.array([each[name] for each in side]) for name in before[0]} for side in (before, after))
    return ones, others


@pytest.mark.parametrize(("labels", "untrained_below", "least_gain"), [("few", 0.8, 0.15), ("many", 0.95, 0.03)])
def test_a_linear_probe_of_the_frozen_encoder_beats_that_of_the_untrained_one(labels, untrained_below, least_gain):
    before, after = (side[labels] for side in found())
    gains = after - before
    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    assert before.mean() < untrained_below, "nothing can be learnt where the untrained encoder knows it all"
    assert gains.mean() > least_gain
    assert gains.mean() - half > 0, f"gains in AUC {gains.round(4)}: their mean's 95 % interval reaches 0"


def test_the_kind_fills_a_larger_share_of_the_volumes_features_than_before():
    before, after = (side["share"] for side in found())
    assert before.mean() < 0.15, "gain, offset and noise fill the rest"
    assert after.mean() > 3 * before.mean()
