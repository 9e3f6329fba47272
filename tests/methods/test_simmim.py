"""SimMIM: loss and gradient equal a slow reference; what is hidden is drawn evenly, never seen, and never all."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import Encoder, UNetEncoder
from methods.parts.hidden_blocks import draw_hidden, enlarge
from methods.simmim import SimMIM
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.references import simmim as reference


class Means(Encoder):
    """Its only map has the mean of each cube of two voxels a side."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.channels, self.stride = spatial_dims, channels, (channels,), 2

    def maps(self, x: Tensor) -> list[Tensor]:
        return [(F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, 2)]

    def levels(self) -> list[nn.Module]:
        return []


def tiny(encoder: Encoder, **fields: object) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(SimMIM.Config.model_validate({"crop_size": 4, "block": 2, **fields}), encoder, FACTS)


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims):
    method = tiny(Means(dims, channels=2)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    whole = torch.randn(3, 2, *[4] * dims, generator=generator, dtype=torch.float64)
    rng = SampleRng.for_samples(0, [0] * 3, ["a", "b", "c"])
    hidden = torch.from_numpy(draw_hidden((2,) * dims, method.num_hidden, rng))
    seen = whole.masked_fill(enlarge(hidden, (2,) * dims), 0)

    losses = method.loss(Views((seen, whole), targets={"hidden": hidden}))
    losses.total.backward()

    assert abs(losses.total.item() - reference.loss(whole.numpy(), hidden.numpy(), 2, weights)) < 1e-12
    expected = reference.gradients(whole.numpy(), hidden.numpy(), 2, weights)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-8, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


def test_the_error_beside_the_loss_is_that_of_the_mean_of_what_is_seen():
    method = tiny(Pixels(2))
    whole = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [3, 3, 9, 9], [3, 3, 9, 9]])[None, None]
    hidden = torch.tensor([[[False, True], [False, True]]])
    losses = method.loss(Views((whole, whole), targets={"hidden": hidden}))
    assert losses.parts["mean_error"].item() == pytest.approx((2 + 7) / 2)


@pytest.mark.parametrize(("dims", "ratio", "hidden"), [(2, 0.6, 10), (3, 0.75, 48), (3, 0.01, 1)])
def test_so_many_blocks_are_hidden_in_every_crop_and_seen_is_the_rest_of_the_whole(dims, ratio, hidden):
    method = tiny(Means(dims, channels=1), crop_size=8, mask_ratio=ratio)
    batch = random_batch([(9, 11, 10)[-dims:], (8, 8, 12)[-dims:]] * 10)
    views = method.views(batch, batch.rng(0))
    seen, whole = views.images
    assert views.targets["hidden"].flatten(1).sum(1).tolist() == [hidden] * 20
    voxels = enlarge(views.targets["hidden"], method.block)
    assert torch.equal(seen, torch.where(voxels, 0, whole))
    assert voxels.sum() == 20 * hidden * 2**dims


def test_crops_are_what_is_stored_or_its_mirror_image():
    method = tiny(Pixels(2))
    batch = random_batch([(6, 7)] * 40)
    views = method.views(batch, batch.rng(0))
    mirrored = 0
    for i, ((top, left), (bottom, right)) in enumerate(views.boxes[0]):
        stored = batch.voxels[i, 0, top:bottom, left:right].float() / 255
        same = torch.allclose(views.images[1][i, 0], stored, atol=1e-6)
        assert same or torch.allclose(views.images[1][i, 0], stored.flip(1), atol=1e-6)
        mirrored += not same
    assert 8 < mirrored < 32


def test_every_block_is_hidden_as_often_as_any_other_and_beside_any_other():
    rng = SampleRng.for_samples(0, [0] * 20000, [str(i) for i in range(20000)])
    hidden = draw_hidden((3, 3), 4, rng).reshape(-1, 9)
    together = (hidden.T.astype(float) @ hidden) / 20000
    expected = np.where(np.eye(9) > 0, 4 / 9, (4 / 9) * (3 / 8))
    np.testing.assert_allclose(together, expected, rtol=0, atol=4 * np.sqrt(0.25 / 20000))


def test_what_is_hidden_reaches_no_prediction():
    network = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    method = tiny(network, crop_size=32, block=16)
    batch = random_batch([(40, 40)] * 2)
    views = method.views(batch, batch.rng(0))
    hidden = enlarge(views.targets["hidden"], method.block)
    other = torch.where(hidden, torch.rand_like(views.images[1]), views.images[1])
    maps = []
    method.pixels.register_forward_hook(lambda module, given, predicted: maps.append(predicted.detach()))
    for images in (views.images, (other, views.images[1])):
        method.loss(Views(images, targets=views.targets))
    assert torch.equal(maps[0], maps[1])


def test_variants_differ_in_ratio_and_block():
    paper, volumes = (SimMIM.Config.model_validate({"variant": name}) for name in ("paper", "volumes"))
    assert (paper.mask_ratio, paper.block) == (0.6, 32)
    assert (volumes.mask_ratio, volumes.block) == (0.75, 16)
    assert SimMIM.Config.model_validate({"variant": "volumes", "mask_ratio": 0.5}).block == 16


def test_what_cannot_be_hidden_is_refused():
    with pytest.raises(ValueError, match=r"method\.block \(3, 3\) does not divide crops of \(4, 4\) voxels"):
        tiny(Pixels(2), block=3)
    with pytest.raises(ValueError, match=r"mask_ratio 0\.9 hides all of the 4 blocks of a crop; lower method\.mask"):
        tiny(Pixels(2), mask_ratio=0.9)
    with pytest.raises(ValueError, match=r"\(4, 4\) exceeds samples of size \(3, 9\); lower method\.crop_size"):
        tiny(Pixels(2)).check_extent((3, 9))
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"crop_size \(40, 40\): 40 is not a multiple of .* stride 16"):
        tiny(encoder, crop_size=40, block=8)
