"""Detectors learn: objects in held-out photographs, and lesions in the planes of held-out abdomens."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from data.box_rule import LabelBoxes
from data.boxes import Boxes
from data.label_boxes import label_boxes
from data.phantoms.abdomen import LABEL_NAMES, LESION, make_phantom
from data.phantoms.photographs import OBJECTS, make_photograph
from data.views.batch import Batch
from methods.base import Facts
from methods.detection.average_precision import Findings
from methods.detection.froc import sensitivities
from methods.downstream.base import Evidence
from methods.downstream.detection import Detection
from methods.downstream.detection_metrics import findings_of
from methods.encoders import Encoder, ResNet3DEncoder, UNetEncoder
from tests.batches import eight_bit_batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL: dict[str, Any] = {
    "pyramid_channels": 32,
    "head_dims": [128],
    "anchor_scale": 2,
    "sampled_anchors": 64,
    "sampled_regions": 64,
    "level_proposals": (100, 50),
    "proposals": 60,
}
SIDE, NUM_TRAINED, HELD_OUT = 64, 200, range(1000, 1060)
PATIENTS, HELD_OUT_PATIENTS, SPACING_MM = range(36), range(1000, 1016), (8.0, 3.5, 3.5)
LIVER = next(number for number, name in LABEL_NAMES.items() if name == "liver")
LEAST_VOXELS = 9
RESAMPLED = 200


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


@pytest.mark.soak
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


@cache
def liver(patient: int) -> tuple[np.ndarray, Boxes] | None:
    """Return a patient's liver and what lies beside it, with the lesions of each plane; None where there is none."""
    phantom = make_phantom(0, patient, SPACING_MM)
    places = np.argwhere(phantom.label == LIVER)
    if not len(places):
        return None
    inside = tuple(slice(low, high) for low, high in zip(places.min(0), places.max(0) + 1, strict=True))
    lesions = (phantom.label[inside] == LESION).astype(np.uint8)
    boxes = label_boxes(lesions, LabelBoxes("planes", LEAST_VOXELS))
    window = np.clip((phantom.voxels[inside] + 20.0) / 200.0, 0, 1)
    return ((window * 255).astype(np.uint8), boxes) if len(boxes) else None


def livers(patients: Sequence[int], step: int = 0) -> Batch:
    found = [one for patient in patients if (one := liver(patient)) is not None]
    extents = [voxels.shape for voxels, _ in found]
    padded = np.zeros((len(found), 1, *np.max(extents, axis=0)), np.uint8)
    for own, (voxels, _) in zip(padded, found, strict=True):
        own[(0, *(slice(length) for length in voxels.shape))] = voxels
    names = tuple(f"{patient}-{step}" for patient in patients)
    return replace(eight_bit_batch(torch.from_numpy(padded), extents, names), boxes=tuple(own for _, own in found))


def by_patient(evidence: Evidence) -> dict[str, list[list[Findings]]]:
    """Return the findings of each patient's planes."""
    found: dict[str, list[list[Findings]]] = {}
    for unit, rows in evidence.items():
        found.setdefault(unit.partition("/")[0], []).append(findings_of(rows, 1))
    return found


def mean_sensitivity(planes: Sequence[Sequence[Findings]]) -> float:
    """Return the mean of the sensitivities at 0.5, 1, 2 and 4 false positives a plane."""
    found = sensitivities(planes, len(planes))
    assert found is not None
    return float(np.mean(found))


def test_lesions_of_held_out_patients_are_found_more_often_than_untrained_and_by_the_mean_box():
    steps, batch_size = 150, 8
    rng = np.random.default_rng(0)
    trained_on, held_out = (
        [patient for patient in patients if liver(patient) is not None] for patients in (PATIENTS, HELD_OUT_PATIENTS)
    )
    torch.manual_seed(0)
    encoder = ResNet3DEncoder(ResNet3DEncoder.Config(init_features=8, norm="group", norm_groups=8))
    config = Detection.Config.model_validate({**SMALL, "size": SIDE, "slices": 3})
    task = Detection(config, encoder, Facts(len(trained_on), steps, batch_size, {1: "lesion"}))
    batches = [livers([patient]) for patient in held_out]
    untrained = by_patient(judged(task.eval(), batches))
    chosen = [rng.choice(trained_on, batch_size, replace=False).tolist() for _ in range(steps)]
    train(task, [livers(patients, step) for step, patients in enumerate(chosen)], lr=0.005)
    trained = by_patient(judged(task, batches))
    task.network = task.mean_box([livers(trained_on)])
    trivial = by_patient(judged(task, batches))
    gains: list[float] = []
    for _ in range(RESAMPLED):
        patients = rng.choice([*trained], len(trained))
        own, *others = (
            mean_sensitivity([plane for patient in patients for plane in found[patient]])
            for found in (trained, untrained, trivial)
        )
        gains.append(own - max(others))
    assert np.quantile(gains, 0.025) > 0.05, "the 95 % interval over patients of the gain in mean sensitivity"
