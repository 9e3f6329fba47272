"""Detectors learn: objects in held-out photographs, and lesions in the planes of held-out abdomens."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from data.phantoms.photographs import OBJECTS, make_photograph
from data.views.batch import Batch
from methods.base import Facts
from methods.downstream.base import Evidence
from methods.downstream.detection import Detection
from methods.encoders import Encoder, UNetEncoder
from tests.batches import eight_bit_batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL: dict[str, Any] = {
    "pyramid_channels": 32,
    "head_dims": [128],
    "anchor_scale": 2,
    "sampled_anchors": 64,
    "sampled_regions": 64,
    "level_proposals": (200, 100),
    "proposals": 100,
}
SIDE, NUM_TRAINED, HELD_OUT = 64, 200, range(1000, 1060)


@cache
def photograph(number: int) -> Any:
    return make_photograph(0, number, SIDE)


def photographs(numbers: Sequence[int], step: int = 0) -> Batch:
    """Return photographs whose ids, and so what is drawn for them, change from step to step."""
    drawn = [photograph(number) for number in numbers]
    voxels = torch.from_numpy(np.stack([one.pixels.transpose(2, 0, 1) for one in drawn]))
    batch = eight_bit_batch(voxels, [(SIDE, SIDE)] * len(drawn), tuple(f"{number}-{step}" for number in numbers))
    return replace(batch, boxes=tuple(one.boxes for one in drawn))


def train(task: Detection, batches: Sequence[Batch], lr: float) -> None:
    """Train with AdamW, one step a batch, whose rate rises and falls."""
    optimiser = torch.optim.AdamW(task.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=len(batches), pct_start=0.1)
    task.train()
    for batch in batches:
        optimiser.zero_grad()
        task.loss(task.views(batch, batch.rng(0))).total.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    task.eval()


def judged(task: Detection, batches: Sequence[Batch]) -> Evidence:
    evidence: Evidence = {}
    for batch in batches:
        evidence |= task.judge(batch).evidence
    return evidence


def unet() -> Encoder:
    torch.manual_seed(0)
    features = (8, 16, 16, 32, 32, 8)
    return UNetEncoder(UNetEncoder.Config(spatial_dims=2, in_channels=3, features=features, norm="batch"))


def test_objects_of_held_out_photographs_are_found_with_an_ap50_above_a_half():
    rng, steps, batch_size = np.random.default_rng(0), 240, 8
    facts = Facts(NUM_TRAINED, steps, batch_size, dict(enumerate(OBJECTS)))
    task = Detection(Detection.Config.model_validate({**SMALL, "size": SIDE}), unet(), facts)
    held_out = [photographs(HELD_OUT[at : at + 20]) for at in range(0, len(HELD_OUT), 20)]
    before = task.eval().scores(judged(task, held_out)).metrics["ap50"]
    chosen = [rng.choice(NUM_TRAINED, batch_size, replace=False).tolist() for _ in range(steps)]
    train(task, [photographs(numbers, step) for step, numbers in enumerate(chosen)], lr=0.005)
    scores = task.scores(judged(task, held_out)).metrics
    task.network = task.mean_box([photographs(range(NUM_TRAINED))])
    trivial = task.scores(judged(task, held_out)).metrics
    assert scores["ap50"] > 0.5
    assert max(before, trivial["ap50"]) < 0.1, "neither an untrained detector nor the mean box finds them"
    assert scores["mfroc"] > trivial["mfroc"] + 0.2
