"""GVSL: loss and gradient equal a slow reference, images are moved as maps and flows say, and matching is learnt."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.base import Views
from methods.gvsl import GVSL
from methods.parts.registration import (
    affine_maps,
    correlation_loss,
    count_numbers,
    move_affinely,
    move_by_flow,
    roughness,
)
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import gvsl as reference
from tests.references.differences import differentiate

SIZES = {2: (4, 3), 3: (2, 1, 3)}


def tiny(dims: int, channels: int = 1, **fields: object) -> GVSL:
    torch.manual_seed(0)
    given = {"size": SIZES[dims], "local_dim": 4, "affine_dim": 8, "flow_dim": 8, "num_windows": 20} | fields
    return GVSL(GVSL.Config.model_validate(given), Pixels(dims, channels), FACTS)


def keep_output(layer: nn.Module, found: list[Tensor]) -> None:
    """Keep what a layer returns, and its gradient."""

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        found.append(output)

    layer.register_forward_hook(keep)


@pytest.mark.parametrize(("variant", "dims"), [("paper", 2), ("released", 3)])
def test_loss_and_gradients_equal_the_reference(variant: str, dims: int) -> None:
    method = tiny(dims, channels=2, variant=variant).double()
    outputs: list[Tensor] = []
    for layer in (method.matching.numbers, method.matching.flow, method.restoring):
        keep_output(layer, outputs)
    generator = torch.Generator().manual_seed(2)
    damaged, whole = torch.rand(2, 2, 2, *SIZES[dims], generator=generator, dtype=torch.float64)
    losses = method.loss(Views((damaged, whole)))
    losses.total.backward()

    other = np.roll(whole.numpy(), -1, axis=0)
    images = (whole.numpy(), other) if variant == "paper" else (other, whole.numpy())
    numbers, flow, restored = (output.detach().numpy() for output in outputs)
    assert abs(losses.total.item() - reference.loss(*images, numbers, flow, restored, whole.numpy())) < 1e-9
    # Of flows and restored voxels only: the affine map also moves what the flow is told from.
    of_flow = differentiate(lambda x: reference.loss(*images, numbers, x, restored, whole.numpy()), flow, 1e-6)
    assert outputs[1].grad is not None
    assert outputs[2].grad is not None
    np.testing.assert_allclose(outputs[1].grad.numpy(), of_flow, rtol=0, atol=1e-6)
    of_restored = 2 * (restored - whole.numpy()) / restored.size
    np.testing.assert_allclose(outputs[2].grad.numpy(), of_restored, rtol=0, atol=1e-12)
    assert (outputs[0].grad is None) == (variant == "released")
    assert np.abs(of_flow).max() > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradient_of_an_affine_map_equals_the_reference(dims: int) -> None:
    generator = torch.Generator().manual_seed(1)
    moving, fixed = torch.rand(2, 1, 1, *SIZES[dims], generator=generator, dtype=torch.float64)
    numbers = torch.rand(1, count_numbers(dims), generator=generator, dtype=torch.float64).mul(1.6).sub(0.8)
    numbers.requires_grad_()
    correlation_loss(move_affinely(moving, affine_maps(numbers, dims)), fixed).backward()

    def loss(x: np.ndarray) -> float:
        moved = reference.moved_affinely(moving[0, 0].numpy(), x[0])
        return reference.correlation_loss(moved[None, None], fixed.numpy())

    expected = differentiate(loss, numbers.detach().numpy(), 1e-6)
    assert numbers.grad is not None
    np.testing.assert_allclose(numbers.grad.numpy(), expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_a_map_and_a_flow_of_0_move_nothing_and_a_shift_moves_by_voxels(dims: int) -> None:
    images = torch.rand(2, 1, *SIZES[dims])
    numbers, flow = torch.zeros(2, count_numbers(dims)), torch.zeros(2, dims, *SIZES[dims])
    torch.testing.assert_close(move_affinely(images, affine_maps(numbers, dims)), images, rtol=0, atol=1e-6)
    torch.testing.assert_close(move_by_flow(images, flow), images, rtol=0, atol=1e-6)
    numbers[:, 3 * dims - 3] = flow[:, 0] = 1
    for moved in (move_affinely(images, affine_maps(numbers, dims)), move_by_flow(images, flow)):
        torch.testing.assert_close(moved[:, :, :-1], images[:, :, 1:], rtol=0, atol=1e-5)
        assert moved[:, :, -1].abs().max() < 1e-5


def test_an_image_correlates_with_itself_however_bright_and_a_flat_one_with_nothing() -> None:
    image, flat = torch.rand(1, 1, 20, 20), torch.ones(1, 1, 30, 30, requires_grad=True)
    assert correlation_loss(image, image) < 1e-4
    assert correlation_loss(image, 0.3 * image) < 1e-4
    loss = correlation_loss(torch.rand(1, 1, 30, 30) - 0.5, flat)
    loss.backward()
    # The windows at the border hold the edge of the flat image.
    assert 0.9 < loss.item() < 1
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
    assert roughness(torch.rand(2, 3, 1, 1, 1)) == 0


def test_views_are_whole_samples_and_what_is_damaged_of_them() -> None:
    batch = random_batch([(40, 44)] * 60)
    damaged, whole = tiny(2, size=(40, 44), shuffle_prob=0, curve_prob=0).views(batch, batch.rng(0)).images
    torch.testing.assert_close(whole, batch.voxels.float() / 255, rtol=0, atol=1e-6)
    painted = (damaged != whole).flatten(1).float().mean(1)
    # Most of 30 boxes of 4 to 8 voxels a side, one over the other.
    assert 0.1 < painted.mean() < 0.5


def test_the_other_image_comes_from_the_next_sample_and_a_single_sample_has_none() -> None:
    batch = random_batch([(8, 8)])
    method = tiny(2, size=(8, 8))
    with pytest.raises(ValueError, match=r"batch of 1 sample: .*raise budget\.batch_size to 2"):
        method.loss(method.views(batch, batch.rng(0)))
    same = torch.rand(1, 1, 8, 8).expand(3, 1, 8, 8)
    losses = method.loss(Views((same, same)))
    assert losses.of_constant == pytest.approx(same[0].var(unbiased=False).item(), abs=1e-3)


@pytest.mark.slow
def test_matching_and_restoring_are_learnt_better_than_by_the_best_constant() -> None:
    method, batch = tiny_method("gvsl paper", 2), samples_of("gvsl paper", 2, 8)
    take_steps(method, sgd(method, lr=0.1), batch, range(40))
    with torch.no_grad():
        views = method.drawn(batch, batch.rng(99))
        losses = method.loss(views)
    unmoved = correlation_loss(views.images[1], views.images[1].roll(-1, 0))
    assert losses.of_constant is not None
    assert losses.total < losses.of_constant - 0.03
    assert losses.parts["correlation_loss"] < unmoved - 0.01
    assert losses.parts["restoration_error"] < 0.6 * (losses.of_constant - unmoved)
