"""Jigsaw: loss and gradient equal a slow reference; labels name permutations; cues give nothing away."""

import numpy as np
import pytest
import torch

from methods.base import Views
from methods.encoders import UNetEncoder
from methods.jigsaw import Jigsaw
from methods.parts.permutations import greedy_permutations, random_permutations
from tests.batches import FACTS, eight_bit_batch
from tests.cues import detect, edge_cues, intensity_cues, textures
from tests.encoders import Pixels
from tests.references import classification


def tiny(variant: str, spatial_dims: int, num_permutations: int = 4, **patches: object) -> Jigsaw:
    torch.manual_seed(0)
    given = {"size": 6, "grid": (1, 2, 2)[-spatial_dims:], "jitter": 2} | patches
    small = {"hidden_dims": (5, 4), "dropout": 0.0, "num_permutations": num_permutations}
    return Jigsaw(
        Jigsaw.Config.model_validate({"variant": variant, "patches": given, **small}), Pixels(spatial_dims), FACTS
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims):
    method = tiny("paper", dims, size=2).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    images = torch.randn(4, 6, 1, *[2] * dims, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = [0, 3, 1, 2, 1, 0]

    losses = method.loss(Views(tuple(images), targets={"labels": torch.tensor(labels)}))
    losses.total.backward()

    features = np.concatenate(list(images.detach().numpy().reshape(4, 6, -1)), axis=1)
    assert abs(losses.total.item() - classification.loss(features, labels, weights)) < 1e-10
    expected = classification.gradients(features, labels, weights)
    assert images.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    ours["features"] = np.concatenate(list(images.grad.numpy().reshape(4, 6, -1)), axis=1)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-4, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_label_is_the_permutation_in_which_the_cells_are_shown(variant, dims):
    method = tiny(variant, dims, num_permutations=6, grid=2, jitter=1)
    cells = torch.arange(2**dims).view([2] * dims).byte()
    for axis in range(dims):
        cells = cells.repeat_interleave(7, dim=axis)
    size = (14,) * dims
    batch = eight_bit_batch(cells.expand(30, 1, *size), [size] * 30, tuple(map(str, range(30))))
    views = method.views(batch, batch.rng(0))
    shown = torch.stack([(image.flatten(1).mean(1) * 255).round().long() for image in views.images], dim=1)
    labels = views.targets["labels"]
    assert torch.equal(shown, method.permutations[labels])
    assert set(labels.tolist()) == set(range(6))
    for place, boxes in enumerate(views.boxes):
        corner = (boxes[:, 0] // 7 * 2 ** np.arange(dims)[::-1]).sum(axis=1)
        np.testing.assert_array_equal(corner, shown[:, place].numpy())


@pytest.mark.parametrize(("dims", "size"), [(2, 6), (3, 4)])
def test_borders_and_intensities_do_not_give_the_permutation_away(dims, size):
    method, extent = tiny("paper", dims, size=size), (2 * size + 4,) * dims
    voxels = textures(800, extent, smoothed=2)
    batch = eight_bit_batch(voxels, [extent] * 800, tuple(map(str, range(800))))
    views = method.views(batch, batch.rng(0))
    for cues in (edge_cues, intensity_cues):
        accuracy, chance = detect(cues(views.images), views.targets["labels"].numpy())
        assert accuracy < chance, cues.__name__


def test_the_detector_would_solve_a_puzzle_whose_pieces_touch():
    method, voxels = tiny("released", 2, size=12, jitter=0, gap=0), textures(800, (24, 24), smoothed=2)
    batch = eight_bit_batch(voxels, [(24, 24)] * 800, tuple(map(str, range(800))))
    views = method.views(batch, batch.rng(0))
    accuracy, chance = detect(edge_cues(views.images), views.targets["labels"].numpy())
    assert accuracy > 2 * chance


@pytest.mark.parametrize("normalise", [False, True])
def test_a_ramp_of_brightness_solves_the_puzzle_unless_patches_are_normalised(normalise):
    ramp = torch.linspace(0, 40, 16)
    voxels = (textures(800, (16, 16)) * 0.6 + ramp + ramp[:, None]).byte()
    batch = eight_bit_batch(voxels, [(16, 16)] * 800, tuple(map(str, range(800))))
    views = tiny("paper", 2, normalise=normalise).views(batch, batch.rng(0))
    accuracy, chance = detect(intensity_cues(views.images), views.targets["labels"].numpy())
    assert (accuracy < chance) if normalise else (accuracy > 2 * chance)


def test_a_checkpoint_brings_its_own_permutations():
    method, other = tiny("paper", 2), tiny("released", 2)
    assert not torch.equal(method.permutations, other.permutations)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.permutations, other.permutations)


def test_variants_differ_in_the_two_contradictions_and_in_nothing_else():
    paper, released = (Jigsaw.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    assert {name for name in paper if paper[name] != released[name]} == {"variant", "permutations", "patches"}
    assert (paper["permutations"], released["permutations"]) == ("greedy", "random")
    assert released["patches"] == {**paper["patches"], "gap": 0}
    config = Jigsaw.Config.model_validate({"variant": "released", "patches": {"jitter": 8}})
    assert Jigsaw.Config.model_validate_json(config.model_dump_json()) == config
    assert (config.patches.gap, config.permutations) == (0, "random")


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "pieces"), [(2, 9), (3, 27)])
def test_the_papers_puzzle_has_100_permutations_of_its_pieces(dims, pieces):
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=dims, features=(2, 2, 2, 2, 2, 2)))
    for variant, choose in (("paper", greedy_permutations), ("released", random_permutations)):
        method = Jigsaw(Jigsaw.Config.model_validate({"variant": variant, "hidden_dims": (8, 4)}), encoder, FACTS)
        np.testing.assert_array_equal(method.permutations.numpy(), choose(100, pieces, 0))
        weights = [tuple(p.shape) for p in method.head.parameters() if p.ndim > 1]
        assert weights == [(8, pieces * 2**dims * 2), (4, 8), (100, 4)]


def test_more_permutations_than_there_are_and_cells_without_patches_are_refused():
    with pytest.raises(ValueError, match=r"num_permutations 25: 4 pieces have only 24 permutations"):
        tiny("paper", 2, num_permutations=25)
    with pytest.raises(
        ValueError, match=r"jitter 2: the cells of samples of size \(6, 30\) are 3 voxels long along H"
    ):
        tiny("paper", 2).check_extent((6, 30))
