"""Barlow Twins: loss and gradient equal a slow reference; equal, independent dimensions cost nothing."""

import pytest
import torch

from methods.barlow_twins import BarlowTwins, correlation, correlation_terms
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake
from tests.references import redundancy as reference


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> BarlowTwins:
    torch.manual_seed(0)
    config = {"projector_dim": 3, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return BarlowTwins(BarlowTwins.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(num_views, dims):
    method = shake(tiny(dims, lambda_redundancy=0.4))
    assert_equal_to_reference(
        method, noise_views(num_views, dims=dims), lambda images, w: reference.barlow_loss(images, w, 0.4)
    )


def test_dimensions_that_are_equal_in_both_views_and_independent_cost_nothing():
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert [term.item() for term in correlation_terms(correlation(z, z))] == [0, 0]
    same = z[:, :1].expand(4, 2)
    assert [term.item() for term in correlation_terms(correlation(same, same))] == [0, 2]
    assert [term.item() for term in correlation_terms(correlation(z, -z))] == [8, 0]


def test_a_constant_costs_one_for_each_dimension():
    method = tiny().double()
    losses = method.loss(noise_views(2))
    assert losses.of_constant is not None
    assert losses.of_constant.item() == 3
    flat = method.standardise(torch.full((5, 3), 2.0, dtype=torch.float64))
    assert sum(term.item() for term in correlation_terms(correlation(flat, flat))) == 3


def test_variants_differ_in_the_weight_alone():
    weights = {variant: BarlowTwins.Config(variant=variant).lambda_redundancy for variant in ("paper", "released")}
    assert weights == {"paper": 0.005, "released": 0.0051}
