"""BYOL: loss and gradient equal a slow reference; the moving average follows its schedule and takes no gradient."""

import numpy as np
import pytest
import torch

from methods.base import Progress
from methods.byol import BYOL, regression_loss
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake, weights_of
from tests.references import byol as reference
from tests.references.embeddings import head, means


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> BYOL:
    torch.manual_seed(0)
    config = {"hidden_dim": 8, "projector_dim": 3, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return BYOL(BYOL.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(num_views, dims):
    method, views = shake(tiny(dims)), noise_views(num_views, dims=dims)
    taught = {
        name.removeprefix("teacher."): w for name, w in weights_of(method).items() if name.startswith("teacher")
    }
    targets = [head(means(image.numpy()), taught, "projector") for image in views.images[:2]]
    assert_equal_to_reference(method, views, lambda images, w: reference.loss(images, w, targets))


def test_equal_directions_cost_nothing_orthogonal_ones_2_and_opposite_ones_4():
    z = torch.eye(3)
    assert [regression_loss(z, other).item() for other in (5 * z, z.roll(1, 0), -z)] == [0, 2, 4]


def test_targets_take_no_gradient():
    p, target = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    regression_loss(p, target).backward()
    assert target.grad is None
    assert p.grad is not None
    method = tiny().double()
    method.loss(noise_views(2)).total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


@pytest.mark.parametrize(("step", "decay"), [(0, 0.996), (50, 0.998), (100, 1.0)])
def test_the_average_keeps_what_half_a_cosine_from_0_996_to_1_says(step, decay):
    method = shake(tiny())
    old, new = (dict(net.named_parameters()) for net in (method.teacher.projector, method.projector))
    before = {name: value.detach().clone() for name, value in old.items()}
    method.after_step(Progress(step, 100, 0))
    for name, value in old.items():
        expected = decay * before[name] + (1 - decay) * new[name]
        np.testing.assert_allclose(value.detach().numpy(), expected.detach().numpy(), rtol=0, atol=1e-12)


def test_the_average_begins_as_a_copy_or_with_other_random_weights():
    for start, same in (("copy", True), ("random", False)):
        method = tiny(teacher_start=start)
        first, second = (net[0].weight for net in (method.projector, method.teacher.projector))
        assert torch.equal(first, second) == same
        assert torch.equal(first.flatten().sort().values, second.flatten().sort().values)


def test_heads_of_the_paper_have_the_known_number_of_parameters():
    method = BYOL(BYOL.Config(), Pixels(2, 2048), FACTS)
    for part, in_dim in ((method.projector, 2048), (method.predictor, 256)):
        assert sum(p.numel() for p in part.parameters()) == in_dim * 4096 + 4096 + 2 * 4096 + 4096 * 256
