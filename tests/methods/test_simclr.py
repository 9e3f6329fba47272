"""SimCLR: loss and gradient equal a slow reference; candidates are the views of all other samples."""

from math import exp, log

import pytest
import torch

from methods.parts.contrast import contrast_loss
from methods.simclr import SimCLR, candidate_logits
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake
from tests.references import simclr as reference


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> SimCLR:
    torch.manual_seed(0)
    config = {"hidden_dim": 6, "projector_dim": 3, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return SimCLR(SimCLR.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(variant, num_views, dims):
    method = shake(tiny(dims, variant=variant, temperature=0.3))
    reduction = {"paper": "mean", "released": "sum"}[variant]
    assert_equal_to_reference(
        method, noise_views(num_views, dims=dims), lambda images, w: reference.loss(images, w, 0.3, reduction)
    )


def test_orthogonal_samples_with_equal_views_are_found_as_surely_as_the_temperature_allows():
    z, own = torch.eye(4), torch.arange(4)
    logits = candidate_logits(z, z, z, own, 0.5)
    assert torch.isfinite(logits).sum() == 4 * 7, "a view is no candidate of its own"
    expected = -log(exp(2) / (exp(2) + 6))
    assert contrast_loss(logits, own).item() == pytest.approx(expected, abs=1e-6)


def test_a_constant_has_the_stated_loss():
    own = torch.arange(5)
    alike = torch.ones(5, 3) / 3**0.5
    found = contrast_loss(candidate_logits(alike, alike, alike, own, 0.1), own).item()
    for variant, times in (("paper", 1), ("released", 2)):
        losses = tiny(variant=variant).double().loss(noise_views(2))
        assert losses.of_constant is not None
        assert losses.of_constant.item() == pytest.approx(times * log(9))
        assert times * found == pytest.approx(losses.of_constant.item(), abs=1e-5)


def test_a_batch_of_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"batch of 1 sample: .* raise budget\.batch_size to 2"):
        tiny().double().loss(noise_views(2, samples=1))


def test_variants_differ_in_two_contradictions_and_in_nothing_else():
    paper, released = (SimCLR.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    different = {name: (paper[name], released[name]) for name in paper if paper[name] != released[name]}
    assert different == {
        "variant": ("paper", "released"),
        "head_norm": ("none", "batch"),
        "reduction": ("mean", "sum"),
    }
