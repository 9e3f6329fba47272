"""CPC: both versions' loss and gradient equal a slow reference; patches are encoded once; cues give nothing away."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data.views.rng import SampleRng
from methods.base import Views
from methods.cpc import CPC, binary_loss, draw_others, infonce_loss
from methods.encoders import PooledUNetEncoder
from tests.batches import FACTS, eight_bit_batch, random_batch
from tests.cues import detect, edge_cues, intensity_cues, textures
from tests.encoders import Pixels
from tests.references import cpc as reference

GRIDS = {2: (4, 2), 3: (4, 1, 2)}


def tiny(variant: str, spatial_dims: int, patches: dict[str, object] | None = None, **fields: object) -> CPC:
    torch.manual_seed(0)
    given = {"size": 2, "grid": GRIDS[spatial_dims], **(patches or {})}
    small = {"projector_dim": 3, "context_dim": 2} | fields
    return CPC(
        CPC.Config.model_validate({"variant": variant, "patches": given, **small}), Pixels(spatial_dims), FACTS
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_loss_and_gradients_equal_the_reference(variant, dims):
    method, grid = tiny(variant, dims).double(), GRIDS[dims]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    shape = (int(np.prod(grid)), 2, 1, *[2] * dims)
    images = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    negatives = np.array([[1, 0]] * 2)

    losses = method.loss(Views(tuple(images), targets={"negatives": torch.from_numpy(negatives)}))
    losses.total.backward()

    flat = images.detach().numpy().reshape(*shape[:2], -1)
    assert abs(losses.total.item() - reference.LOSSES[variant](flat, grid, negatives, weights)) < 1e-10
    expected = reference.gradients(variant, flat, grid, negatives, weights)
    assert images.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in {**ours, "images": images.grad.numpy().reshape(flat.shape)}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-4, f"{name}: a zero gradient would prove nothing"


def test_every_patch_is_encoded_once():
    seen = []

    class Counting(Pixels):
        def maps(self, x: Tensor) -> list[Tensor]:
            seen.append(len(x))
            return [x]

    fields = {"variant": "released", "projector_dim": 3, "context_dim": 2, "patches": {"size": 2}}
    method = CPC(CPC.Config.model_validate(fields), Counting(3), FACTS)
    batch = random_batch([(40, 40, 40)] * 2)
    method.loss(method.views(batch, batch.rng(0)))
    assert seen == [2 * 64]


def test_predictions_that_are_the_codes_are_found_among_all_others():
    codes = 20 * torch.eye(6)[None]
    positives = torch.tensor([[3, 4], [5, 0]])
    total, found = infonce_loss(codes[:, positives], codes, positives)
    assert total.item() < 1e-6
    assert found.item() == 1
    total, found = infonce_loss(torch.zeros(1, 2, 2, 6), codes, positives)
    assert total.item() == pytest.approx(np.log(6))


def test_a_guess_that_knows_nothing_costs_the_logarithm_of_two():
    codes = torch.ones(2, 3, 1, 4)
    total, right = binary_loss(torch.zeros_like(codes), codes, codes)
    assert total.item() == pytest.approx(np.log(2))
    total, right = binary_loss(40 * codes, codes, -codes)
    assert total.item() < 1e-6
    assert right.item() == 1


def test_negatives_are_other_columns_each_as_likely():
    drawn = draw_others(5, SampleRng.for_samples(0, [0] * 8000, [str(i) for i in range(8000)]))
    for column in range(5):
        counts = np.bincount(drawn[:, column], minlength=5)
        assert counts[column] == 0
        np.testing.assert_allclose(np.delete(counts, column), 2000, rtol=0, atol=4 * np.sqrt(8000 * 0.25 * 0.75))


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_are_what_their_boxes_hold_or_its_mirror_image_along_the_first_axis(dims):
    method = tiny("released", dims, {"size": 3, "jitter": 1, "span": 1.0})
    size = tuple(4 * length for length in GRIDS[dims])
    batch = random_batch([size] * 6)
    views = method.views(batch, batch.rng(0))
    mirrored = 0
    for image, boxes in zip(views.images, views.boxes, strict=True):
        for i, (low, high) in enumerate(boxes):
            region = (i, slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
            stored = batch.voxels[region].float() / 255
            as_it_is = torch.allclose(image[i], stored, atol=1e-6)
            mirrored += not as_it_is
            assert as_it_is or torch.allclose(image[i], stored.flip(1), atol=1e-6)
    assert 0.3 < mirrored / (6 * len(views.images)) < 0.7


def pairs_of(method: CPC, extent: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], np.ndarray]:
    """Return each first column's last patch seen, beside what follows it or what follows the second column."""
    batch = eight_bit_batch(textures(800, extent, smoothed=2), [extent] * 800, tuple(map(str, range(800))))
    images = method.views(batch, batch.rng(0)).images
    followed = np.arange(800) % 2
    own, right, wrong = method.contexts[0, -1], method.rows[0, 0], method.rows[1, 0]
    choose = torch.from_numpy(followed).bool().view(-1, *[1] * (images[0].ndim - 1))
    return (images[own], torch.where(choose, images[right], images[wrong])), followed


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("dims", [2, 3])
def test_borders_and_intensities_do_not_tell_what_follows(variant, dims):
    method = tiny(variant, dims, {"size": 4, "jitter": 2, "gap": 1}, flip_prob=0.0)
    images, followed = pairs_of(method, tuple(8 * length for length in GRIDS[dims]))
    for cues in (intensity_cues(images), edge_cues(images)):
        accuracy, chance = detect(cues, followed)
        assert accuracy < chance


def test_the_detector_would_find_patches_that_touch():
    method = tiny("released", 2, {"size": 12, "jitter": 0, "gap": 0, "span": 1.0}, flip_prob=0.0)
    images, followed = pairs_of(method, (48, 24))
    accuracy, chance = detect(edge_cues(images), followed)
    assert accuracy > 1.2 * chance


def test_variants_differ_in_the_contradictions_and_in_nothing_else():
    paper, released = (CPC.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    assert {name for name in paper if paper[name] != released[name]} == {"variant", "loss", "skip_rows", "patches"}
    assert (paper["loss"], paper["skip_rows"], released["loss"], released["skip_rows"]) == ("infonce", 1, "binary", 0)
    assert released["patches"] == {**paper["patches"], "overlap": 0.0, "gap": 0}
    config = CPC.Config.model_validate({"variant": "released", "patches": {"jitter": 2}})
    assert (config.patches.jitter, config.patches.grid, config.patches.span) == (2, 4, 0.95)
    assert CPC.Config.model_validate_json(config.model_dump_json()) == config


def test_the_networks_of_the_paper_have_the_known_widths():
    encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=3))
    method = CPC(CPC.Config.model_validate({"variant": "released"}), encoder, FACTS)
    assert tuple(method.projector.weight.shape) == (1024, 256)
    assert sum(p.numel() for p in method.context.parameters()) == 3 * 256 * (1024 + 256) + 6 * 256
    assert [tuple(head.weight.shape) for head in method.predictors] == [(1024, 256)] * 2
    assert tuple(method.contexts.shape) == (16, 10)


def test_a_context_that_contains_what_is_to_be_predicted_is_refused():
    for grid in (2, 3):
        with pytest.raises(ValueError, match=r"the context of column \(0,\) contains a patch to be predicted"):
            tiny("released", 2, {"grid": grid})
    with pytest.raises(ValueError, match=r"shares voxels with .*more method\.skip_rows or less"):
        tiny("paper", 2, skip_rows=0)
    with pytest.raises(ValueError, match=r"jitter 4: the cells of samples of size \(12, 90\) are 4 voxels"):
        tiny("paper", 2).check_extent((12, 90))
