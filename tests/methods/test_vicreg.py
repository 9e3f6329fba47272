"""VICReg: loss and gradient equal a slow reference; what is spread, equal and independent costs nothing."""

import pytest
import torch

from methods.parts.variance_covariance import covariance_penalty, variance_hinge
from methods.vicreg import VICReg, invariance
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake
from tests.references import redundancy as reference


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> VICReg:
    torch.manual_seed(0)
    config = {"projector_dim": 3, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return VICReg(VICReg.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("variance_terms", "distance"), [("sum", "mean"), ("mean", "mean"), ("sum", "squared")])
@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(variance_terms, distance, num_views, dims):
    method = shake(tiny(dims, variance_terms=variance_terms, distance=distance))
    assert_equal_to_reference(
        method,
        noise_views(num_views, dims=dims),
        lambda images, w: reference.vicreg_loss(images, w, (25.0, 25.0, 1.0), variance_terms, distance),
    )


def test_the_hinge_is_met_by_a_deviation_of_1_and_by_no_smaller_one():
    z = torch.tensor([[1.0, 0.1], [-1.0, -0.1]])
    assert variance_hinge(z).item() == pytest.approx((0 + 1 - (0.02 + 1e-4) ** 0.5) / 2)
    assert covariance_penalty(z).item() == pytest.approx(2 * 0.2**2 / 2)
    assert invariance(z, -z, "squared").item() == pytest.approx(4 * 1.01)
    assert invariance(z, -z, "mean").item() == pytest.approx(2 * 1.01)


def test_places_of_a_map_are_compared_over_samples_one_by_one():
    z = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    for function in (variance_hinge, covariance_penalty):
        expected = torch.stack([function(z[:, place]) for place in range(4)]).mean()
        torch.testing.assert_close(function(z), expected)


def test_a_constant_s_loss_is_that_of_its_variance():
    for variant, weight in (("paper", 50), ("released", 25)):
        losses = tiny(variant=variant).double().loss(noise_views(2))
        assert losses.of_constant is not None
        assert losses.of_constant.item() == pytest.approx(weight * 0.99)
    assert variance_hinge(torch.ones(4, 3)).item() == pytest.approx(0.99)


def test_a_batch_of_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"batch of 1 sample: .* raise budget\.batch_size to 2"):
        tiny().double().eval().loss(noise_views(2, samples=1))
