"""Two-view methods learn from slices of phantoms: their loss beats that of a constant, and features stay apart."""

from typing import Any

import numpy as np
import pytest
import torch

from methods import METHODS
from methods.base import Facts, Losses, Method, Progress
from methods.parts.flat_map import mean_features
from methods.parts.health import effective_rank
from tests.methods.test_clusters_learn import batch_of
from tests.methods.test_phantoms_learn import Convolutions, slices

pytestmark = pytest.mark.slow
STEPS, BATCH_SIZE, LEAST_RANK = 90, 32, 4.0
PLAIN: dict[str, Any] = {"flip_axes": ["W"], "flip_prob": 0.5, "transforms": []}
SMALL: dict[str, Any] = {
    "crops": {"size": 24, "iou": [0.4, 1.0]},
    "augment": PLAIN,
    "hidden_dim": 32,
    "projector_dim": 16,
    "queue_length": 128,
    "teacher_decay": 0.9,
    "maps_dim": 16,
}
NAMES = ["simclr", "byol", "moco_v2", "moco_v3", "barlow_twins", "vicreg", "vicregl", "c2l", "pgl"]


def small_method(name: str) -> Method:
    torch.manual_seed(0)
    kind, encoder = METHODS[name], Convolutions()
    encoder.stride = 8
    fields = {field: value for field, value in SMALL.items() if field in kind.Config.model_fields}
    config = kind.Config.model_validate({"name": name, "augment_other": PLAIN, **fields})
    return kind(config, encoder, Facts(len(slices(0)[0]), STEPS, BATCH_SIZE)).train()


def train(method: Method) -> tuple[list[Losses], float]:
    """Train for seconds; return what each step logged, and the rank of the trained encoder's features."""
    images, optimiser, logged = slices(0)[0], torch.optim.AdamW(method.parameters(), lr=3e-3), []
    for step in range(STEPS):
        rows = np.random.default_rng(step).choice(len(images), BATCH_SIZE, replace=False)
        batch = batch_of(images, rows, step)
        losses = method.loss(method.drawn(batch, batch.rng(0)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(Progress(step + 1, STEPS, 0))
        logged.append(losses)
    with torch.no_grad():
        features = mean_features(method.encoder.eval(), images[:128].float() / 255)
    return logged, effective_rank(features - features.mean(0)).item()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_below_that_of_a_constant_and_features_keep_their_rank(name):
    logged, rank = train(small_method(name))
    first, last = (torch.stack([one.total.detach() for one in part]).mean() for part in (logged[:5], logged[-5:]))
    of_constant = logged[-1].of_constant
    assert of_constant is not None
    if of_constant > 0:
        assert last < 0.9 * of_constant
    else:  # no loss is lower than a constant's
        assert last < 0.7 * first
        assert logged[-1].parts["collapse"] < 0.9
    assert rank > LEAST_RANK
