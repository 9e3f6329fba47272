"""Rubik's cube: loss and gradient equal a slow reference; cubes are shuffled and turned as their labels say."""

from math import log

import numpy as np
import pytest
import torch

from methods.base import Views
from methods.rubiks_cube import PLANES, RubiksCube, half_turn
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import rubiks_cube as reference


def tiny(dims: int, **fields: object) -> RubiksCube:
    torch.manual_seed(0)
    patches = {"grid": (2,) * dims, "size": 2, "jitter": 0, "gap": 0}
    given = {"patches": patches, "num_permutations": 5} | fields
    return RubiksCube(RubiksCube.Config.model_validate(given), Pixels(dims), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method, generator = tiny(dims).double(), torch.Generator().manual_seed(2)
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    shape = (2**dims, 3, 1, *[2] * dims)
    cubes = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (3,), generator=generator)
    turned = torch.rand(3, 2**dims, len(PLANES[dims]), generator=generator) < 0.5

    losses = method.loss(Views(tuple(cubes), targets={"labels": labels, "turned": turned}))
    losses.total.backward()

    flat = cubes.detach().numpy().reshape(2**dims, 3, -1)
    given = (flat, labels.numpy(), turned.numpy(), weights)
    assert abs(losses.total.item() - reference.loss(*given)) < 1e-10
    expected = reference.gradients(*given)
    assert cubes.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in {**ours, "cubes": cubes.grad.numpy().reshape(flat.shape)}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"
    assert losses.of_constant == pytest.approx(log(5) + log(2))


@pytest.mark.parametrize("dims", [2, 3])
def test_each_cube_is_the_one_that_the_permutation_names_turned_as_its_target_says(dims: int) -> None:
    method = tiny(dims)
    batch = random_batch([(4, 4, 4)[-dims:]] * 12)
    views = method.views(batch, batch.rng(0))
    stored = batch.voxels[:, 0].float().numpy() / 255
    for i in range(12):
        order = method.permutations[views.targets["labels"][i]]
        for place, image in enumerate(views.images):
            corner = np.array(np.unravel_index(int(order[place]), (2,) * dims)) * 2
            cube = stored[(i, *(slice(a, a + 2) for a in corner))]
            for plane, chosen in zip(PLANES[dims], views.targets["turned"][i, place], strict=True):
                cube = np.rot90(cube, 2 * int(chosen), plane)
            np.testing.assert_allclose(image[i, 0].numpy(), cube, rtol=0, atol=1e-6)
    assert 0.3 < views.targets["turned"].float().mean() < 0.7


def test_half_turns_of_volumes_are_two_right_angles_about_depth_and_about_width() -> None:
    cube = np.random.default_rng(0).normal(size=(2, 3, 4))
    cubes = torch.from_numpy(np.stack([cube[None]] * 4)).float()
    turned = half_turn(cubes, torch.tensor([[False, False], [True, False], [False, True], [True, True]]))
    about_depth, about_width = np.rot90(cube, 2, (1, 2)), np.rot90(cube, 2, (0, 1))
    both = np.rot90(about_depth, 2, (0, 1))
    for image, expected in zip(turned, (cube, about_depth, about_width, both), strict=True):
        np.testing.assert_array_equal(image[0].numpy(), expected.astype(np.float32))


def test_four_squares_have_24_permutations_and_neighbours_are_5_to_15_voxels_apart() -> None:
    method = RubiksCube(RubiksCube.Config.model_validate({"patches": {"size": 8}}), Pixels(2), FACTS)
    assert method.permutations.shape == (24, 4)
    assert method.permutation_head.out_features == 24
    assert method.turn_head.out_features == 4
    default = RubiksCube.Config().patches
    batch = random_batch([(160, 160)] * 200)
    boxes = default.draw(batch.extents, batch.rng(0))
    gaps = boxes[:, 1, 0, 1] - boxes[:, 0, 1, 1]
    assert (gaps.min(), gaps.max()) == (5, 15)


@pytest.mark.slow
def test_permutations_and_turns_are_told_better_than_by_chance() -> None:
    method, batch = tiny_method("rubiks_cube", 2), samples_of("rubiks_cube", 2, 8)
    take_steps(method, sgd(method, lr=0.02), batch, range(100))
    with torch.no_grad():
        found = [method.loss(method.drawn(batch, batch.rng(seed))) for seed in (97, 98, 99)]
    assert np.mean([losses.total for losses in found]) < log(6) + log(2) - 0.3
