"""PCRLv2: loss and gradient equal a slow reference; small crops lie where they should; blocks change places."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.views.rng import SampleRng
from methods.base import Progress, Views
from methods.pcrlv2 import PCRLv2, swap_blocks
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import effective_rank, samples_of
from tests.methods.two_views import shake
from tests.references import pcrlv2 as reference

STILL = {"augment": {}, "distort": {}, "num_swaps": 0}


class Halvings(Pixels):
    """Two maps, of half and of a quarter of the image."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(spatial_dims)
        self.channels, self.stride = (8, 16), 4
        kind = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        self.first, self.second = kind(1, 8, 2, 2), kind(8, 16, 2, 2)

    def maps(self, x: Tensor) -> list[Tensor]:
        fine = self.first(x).tanh()
        return [fine, self.second(fine).tanh()]


def tiny(dims: int = 2, **fields: object) -> PCRLv2:
    torch.manual_seed(0)
    small = {"num": 2, "size": 4}
    given = {"crops": {"size": 8, "iou": [0.3, 1]}, "small_crops": small, **STILL, **fields}
    return PCRLv2(PCRLv2.Config.model_validate(given), Halvings(dims), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method = tiny(dims)
    method.after_step(Progress(5, 20, 0))
    shake(method)
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(3, 1, *[side] * dims, generator=generator, dtype=torch.float64) for side in (8, 8, 4, 4, 8)]
    losses = method.loss(Views(tuple(images)))
    losses.total.backward()
    ours = {name: p.grad for name, p in method.named_parameters()}

    method.zero_grad(set_to_none=True)
    passed = [images[0], images[1], torch.cat(images[2:4])]
    maps = [method.decoder.decoded(method.encoder.features(image))[1:] for image in passed]
    weights: dict[str, Tensor] = {**dict(method.named_parameters())}
    expected = reference.loss(maps, method.decoder.out(maps[0][-1]), images[4], weights, (1 + 0.5**0.5) / 2)
    expected.backward()
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-7)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(
            ours[name], parameter.grad, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert ours[name] is not None, name


def test_small_crops_lie_in_the_box_that_holds_both_crops_or_anywhere() -> None:
    batch = random_batch([(40, 44)] * 30)
    for place, inside in (("crops", True), ("sample", False)):
        first, second, *small, whole = tiny(small_from=place).views(batch, batch.rng(0)).boxes
        low, high = np.minimum(first[:, 0], second[:, 0]), np.maximum(first[:, 1], second[:, 1])
        held = [(box[:, 0] >= low) & (box[:, 1] <= high) for box in small]
        assert np.all(held) == inside
        assert len(small) == 2
        np.testing.assert_array_equal(whole, first)
        assert min(box[:, 0].min() for box in small) >= 0


def test_the_last_image_is_the_first_view_moved_as_the_encoder_sees_it_but_not_distorted() -> None:
    batch = random_batch([(9, 10)] * 4)
    still = tiny(augment={"flip_axes": ["W"], "flip_prob": 0.5}).views(batch, batch.rng(0)).images
    assert torch.equal(still[0], still[-1])
    distorted = tiny(augment={"flip_axes": ["W"], "flip_prob": 0.5}, num_swaps=3).views(batch, batch.rng(0)).images
    assert torch.equal(distorted[-1], still[-1])
    assert not torch.equal(distorted[0], still[-1])


@pytest.mark.parametrize("size", [(9, 7), (6, 5, 9)])
def test_swaps_are_done_one_after_the_other_and_lose_no_voxel_where_blocks_are_single_voxels(
    size: tuple[int, ...],
) -> None:
    rng = SampleRng.for_samples(0, [0, 0], ["a", "b"])
    images = torch.arange(2.0 * np.prod(size)).view(2, 1, *size)
    single = swap_blocks(images, (1,) * len(size), 40, rng)
    assert torch.equal(single.flatten(1).sort(1).values, images.flatten(1))
    assert 0.1 < (single != images).double().mean() < 0.9
    block = (2, 3, 2)[-len(size) :]
    ours, room = swap_blocks(images, block, 5, rng), np.array(size) - block + 1
    low = (rng.words(5, 2, len(size)) >> np.uint64(32)).astype(object) * room // 2**32
    for image, found, corners in zip(images, ours, low, strict=True):
        expected = image[0].numpy().copy()
        for one, other in corners:
            places = [tuple(slice(c, c + b) for c, b in zip(corner, block, strict=True)) for corner in (one, other)]
            first, second = (expected[place].copy() for place in places)
            expected[places[0]] = second
            expected[places[1]] = first
        np.testing.assert_array_equal(found[0].numpy(), expected)


@pytest.mark.slow
def test_restoring_is_learnt_better_than_by_the_best_constant_and_features_differ() -> None:
    method = tiny(crops={"size": 16, "iou": [0.3, 1]}, small_crops={"num": 1, "size": 8})
    batch = samples_of("pcrlv2", 2, 8)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for step in range(60):
        optimiser.zero_grad()
        method.loss(method.drawn(batch, batch.rng(step))).total.backward()
        optimiser.step()
    views = method.drawn(batch, batch.rng(99))
    losses, whole = method.loss(views), views.images[-1]
    assert losses.parts["restoration_error"] < 0.8 * whole.var()
    assert effective_rank(method.encoder.features(whole)[-1].detach().flatten(2).mean(2)) > 1.5


def test_an_encoder_whose_only_map_is_as_fine_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its only map is as fine as the image.*give an encoder with a coarser map"):
        PCRLv2(PCRLv2.Config(), Pixels(2), FACTS)
