"""The loss of the best constant prediction: what the equations give, and that no other constant does better."""

from math import exp, log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods.downstream.class_losses import Kind, multi_label_loss, ordinal_loss, single_loss
from methods.downstream.constants import class_loss_of_constant, classes_loss_of_constant, regions_loss_of_constant
from methods.downstream.targets import dice_bce_loss, dice_ce_loss
from methods.parts.class_numbers import class_shares
from methods.parts.classification import classification_losses
from methods.parts.constant_similarity import least_loss
from methods.voco import prediction_loss
from tests.methods.test_contract import samples_of, tiny_method


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("simsiam paper", -1.0),
        ("exemplar paper", 1.0),  # the margin
        ("rotation paper", log(4)),
        ("jigsaw paper", log(6)),
        ("patch_location paper", log(2)),
        ("cpc paper", log(8)),
        ("cpc released", log(2)),
        ("swav paper", 2 * log(6)),
        ("swav released", log(6)),
        ("deepcluster_v2 paper", log(6)),
        ("simclr paper", log(5)),
        ("simclr released", 2 * log(5)),
        ("byol paper", 0.0),
        ("moco_v2", log(1 + 32 * exp(-5))),
        ("moco_v3 paper", 4 * 0.2 * log(3)),
        ("moco_v3 released", 4 * log(3)),
        ("barlow_twins paper", 32.0),
        ("vicreg paper", 49.5),
        ("vicregl paper", 49.5 * 1.25),
        ("vicregl released", 24.75),
        ("c2l", log(1 + 32 * exp(-1 / 0.07))),
        ("pgl", 0.0),
        ("vicreg released", 24.75),
    ],
)
def test_the_loss_of_a_constant_is_what_the_equations_give(case: str, expected: float) -> None:
    method = tiny_method(case, 2)
    batch = samples_of(case, 2, 3)
    losses = method.loss(method.drawn(batch, batch.rng(0)))
    assert losses.of_constant is not None
    torch.testing.assert_close(losses.of_constant.item(), expected)


@pytest.mark.parametrize("background", [True, False])
def test_of_classes_of_voxels_the_constant_is_the_class_shares(background: bool) -> None:
    classes = torch.randint(0, 3, (2, 8, 9), generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(classes.flatten(), minlength=3) / classes.numel()
    logits = shares.log()[None, :, None, None].expand(2, 3, 8, 9)
    dice, cross_entropy = dice_ce_loss(logits, classes, background)
    found = classes_loss_of_constant(classes, 3, background, (1.0, 0.5))
    torch.testing.assert_close(found, dice + 0.5 * cross_entropy)


def test_of_regions_the_constant_is_the_share_of_each() -> None:
    regions = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    logits = torch.logit(regions.float().mean((0, 2, 3)))[None, :, None, None].expand(2, 3, 8, 9)
    dice, cross_entropy = dice_bce_loss(logits, regions)
    torch.testing.assert_close(regions_loss_of_constant(regions, (2.0, 1.0)), 2 * dice + cross_entropy)


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi_label"])
def test_no_other_constant_has_a_lower_loss_on_the_training_samples(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0] * 7 + [1] * 2 + [2] * 3)
    has = F.one_hot(classes, 3).bool()
    weights = torch.tensor([1.0, 3.0, 0.5])
    found = class_loss_of_constant(has, has.float().mean(0), weights, kind)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        if kind == "multi_label":
            return multi_label_loss(logits, has, weights)
        return (ordinal_loss if kind == "ordinal" else single_loss)(logits, classes, weights)

    others = [loss(torch.randn(3, generator=generator).expand(12, 3)) for _ in range(300)]
    assert found < min(others)
    assert min(others) - found < 0.1


def test_the_shares_of_classes_are_those_of_the_training_samples() -> None:
    classes = np.array([[4, -1], [4, 7], [7, -1], [4, -1]])
    assert class_shares(classes, [4, 7, 9]).tolist() == [0.75, 0.5, 0.0]
    labels = torch.tensor([0, 0, 0, 1])
    losses = classification_losses(torch.zeros(4, 2), labels, 0.1, torch.tensor([0.75, 0.25]))
    mixed = torch.tensor([0.9 * 0.75 + 0.05, 0.9 * 0.25 + 0.05])
    assert losses.of_constant is not None
    torch.testing.assert_close(losses.of_constant, -(mixed * mixed.log()).sum())


def test_of_voco_no_constant_similarity_that_orthogonal_bases_allow_is_better() -> None:
    shares = torch.zeros(1, 1, 4)
    shares[0, 0, 0] = 0.9
    found = least_loss(prediction_loss, shares, "split")
    # 1 / sqrt(4) is the closest that a direction is to four orthogonal ones, and 0.2 is farther from the target.
    assert found == prediction_loss(torch.full((1, 1, 4), 0.5), shares, "split")
    assert found < prediction_loss(torch.full((1, 1, 4), 0.2), shares, "split")
