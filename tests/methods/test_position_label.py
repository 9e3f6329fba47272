"""Position label: loss and gradient equal a slow reference; crops are what is stored; places are learnt."""

from math import log

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import Views
from methods.encoders import PooledUNetEncoder
from methods.position_label import PositionLabel
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import position_label as reference


def tiny(dims: int, channels: int = 4, **fields: object) -> PositionLabel:
    torch.manual_seed(0)
    given = {"crop_size": 2} | fields
    return PositionLabel(PositionLabel.Config.model_validate(given), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("half", [True, False])
def test_loss_and_gradients_equal_the_reference(half: bool, dims: int) -> None:
    method = tiny(dims, half=half).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    images = torch.randn(3, 4, *[2] * dims, generator=generator, dtype=torch.float64, requires_grad=True)

    losses = method.loss(Views((images,)))
    losses.total.backward()

    values = images.detach().numpy()
    assert abs(losses.total.item() - reference.loss(values, weights, half)) < 1e-10
    expected = reference.gradients(values, weights, half)
    assert images.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in {**ours, "images": images.grad.numpy()}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"
    assert losses.of_constant == pytest.approx(log(2**dims))


def test_a_network_that_knows_every_place_makes_no_error() -> None:
    method = tiny(2, channels=8)
    wide, narrow, last = (layer for layer in method.head if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for layer in (wide, narrow, last):
            layer.bias.zero_()
        wide.weight.copy_(torch.eye(4))
        narrow.weight.copy_(torch.eye(2, 4))
        last.weight.copy_(torch.tensor([[9.0, 9], [9, -9], [-9, 9], [-9, -9]]))
    # Two of the channels that are seen say the row and the column; a GELU keeps what is far above 0.
    rows, columns = torch.meshgrid(torch.tensor([5.0, -5]), torch.tensor([5.0, -5]), indexing="ij")
    image = torch.zeros(1, 8, 2, 2)
    image[0, 0], image[0, 2] = rows + 8, columns + 8
    with torch.no_grad():
        narrow.bias.copy_(torch.tensor([-8.0, -8]))
    losses = method.loss(Views((image,)))
    assert losses.parts["accuracy"] == 1
    assert losses.total < 1e-6


def test_crops_are_what_is_stored() -> None:
    method = tiny(2, channels=1, crop_size=4, half=False)
    batch = random_batch([(6, 7)] * 20)
    views = method.views(batch, batch.rng(0))
    for i, ((top, left), (bottom, right)) in enumerate(views.boxes[0]):
        stored = batch.voxels[i, 0, top:bottom, left:right].float() / 255
        torch.testing.assert_close(views.images[0][i, 0], stored, rtol=0, atol=1e-6)


def test_a_map_of_one_voxel_is_refused() -> None:
    encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"crop_size \(32, 32\)"):
        PositionLabel(PositionLabel.Config(crop_size=32), encoder, FACTS)
    with pytest.raises(ValueError, match=r"\(4, 4\) exceeds samples of size \(3, 9\); lower method\.crop_size"):
        tiny(2, crop_size=4).check_extent((3, 9))


@pytest.mark.slow
def test_places_are_told_better_than_by_chance() -> None:
    method, batch = tiny_method("position_label", 2), samples_of("position_label", 2, 8)
    take_steps(method, sgd(method, lr=0.05), batch, range(60))
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(99)))
    assert losses.of_constant is not None
    assert losses.total < 0.8 * losses.of_constant
