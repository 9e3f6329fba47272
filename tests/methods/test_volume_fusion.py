"""Volume fusion: loss and gradient equal a slow reference, maps are the paper's, and levels are learnt."""

import numpy as np
import pytest
import torch

from data.views.rng import SampleRng
from methods.base import Views
from methods.volume_fusion import VolumeFusion, draw_levels
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import volume_fusion as reference


def tiny(dims: int, channels: int = 1, **fields: object) -> VolumeFusion:
    torch.manual_seed(0)
    given = {"crop_size": 4, "num_levels": 2, "augment": {}} | fields
    return VolumeFusion(VolumeFusion.Config.model_validate(given), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_loss_and_gradients_equal_the_reference(variant: str, dims: int) -> None:
    method = tiny(dims, channels=2, variant=variant).double()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    background, foreground = torch.rand(2, 3, 2, *[4] * dims, generator=generator, dtype=torch.float64)
    levels = torch.randint(0, 3, (3, *[4] * dims), generator=generator)

    losses = method.loss(Views((background, foreground), targets={"levels": levels}))
    losses.total.backward()

    mixed_in = np.roll(foreground.numpy(), -1, axis=0) if variant == "paper" else foreground.numpy()
    images = reference.fused(background.numpy(), mixed_in, levels.numpy(), 2)
    assert abs(losses.total.item() - reference.loss(images, levels.numpy(), weights)) < 1e-6
    expected = reference.gradients(images, levels.numpy(), weights)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-6, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


def test_crops_are_what_is_stored_and_maps_hold_all_levels() -> None:
    method = tiny(2, crop_size=32, num_levels=4)
    batch = random_batch([(40, 36)] * 20)
    views = method.views(batch, batch.rng(0))
    for image, boxes in zip(views.images, views.boxes, strict=True):
        for i, ((top, left), (bottom, right)) in enumerate(boxes):
            stored = batch.voxels[i, 0, top:bottom, left:right].float() / 255
            torch.testing.assert_close(image[i, 0], stored, rtol=0, atol=1e-6)
    shares = torch.bincount(views.targets["levels"].flatten(), minlength=5) / views.targets["levels"].numel()
    assert shares[1:] == pytest.approx([shares[1:].mean().item()] * 4, rel=0.35)
    assert 0.02 < shares[0] < 0.5


def test_blocks_are_as_many_as_drawn_and_all_levels_come_equally_often() -> None:
    levels = draw_levels((10, 40), 4, SampleRng.for_samples(0, [0] * 4000, [str(i) for i in range(4000)]))
    counts = (levels > 0).sum(axis=1)
    assert (counts.min(), counts.max()) == (10, 40)
    assert counts.mean() == pytest.approx(25, abs=0.5)
    assert np.bincount(levels[levels > 0])[1:] / counts.sum() == pytest.approx([0.25] * 4, abs=0.01)


def test_of_levels_that_are_all_alike_the_constant_makes_no_error() -> None:
    images = torch.rand(2, 2, 1, 4, 4)
    losses = tiny(2).loss(Views(tuple(images), targets={"levels": torch.ones(2, 4, 4, dtype=torch.int64)}))
    # Of the two levels that never come, the Dice of nothing with nothing is 1.
    assert losses.of_constant == pytest.approx(0, abs=1e-5)


def test_a_single_sample_has_no_other_to_be_fused_with() -> None:
    batch = random_batch([(4, 4)])
    method = tiny(2)
    with pytest.raises(ValueError, match=r"batch of 1 sample: .*raise budget\.batch_size to 2"):
        method.loss(method.views(batch, batch.rng(0)))
    own = tiny(2, variant="released")
    assert torch.isfinite(own.loss(own.views(batch, batch.rng(0))).total)


def test_blocks_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks \(5, 4\): expected the fewest before the most"):
        tiny(2, blocks=(5, 4))


@pytest.mark.slow
def test_levels_are_told_better_than_by_the_best_constant() -> None:
    method, batch = tiny_method("volume_fusion paper", 2), samples_of("volume_fusion paper", 2, 8)
    take_steps(method, sgd(method, lr=0.1), batch, range(60))
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(99)))
    assert losses.of_constant is not None
    assert losses.total < losses.of_constant - 0.05
