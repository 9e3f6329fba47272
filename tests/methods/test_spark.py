"""SparK: sparse maps equal those of visible voxels alone; what is hidden reaches nothing; the decoder fills it in."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import ENCODERS, Encoder
from methods.parts.hidden_blocks import draw_hidden, enlarge
from methods.parts.sparse import sparse
from methods.spark import Densifier, SparK
from tests.batches import FACTS, random_batch
from tests.encoders import BUILDS
from tests.methods.test_contract import TINY_ENCODERS, effective_rank, tiny_encoder
from tests.references import spark as reference

CONVOLUTIONAL = [(name, dims) for name, dims in BUILDS if name in SparK.encoders]
SLOW_BUT_UNET = [pytest.param(*one, marks=() if one[0] == "unet" else pytest.mark.slow) for one in CONVOLUTIONAL]


class TwoMaps(Encoder):
    """A convolution with batch norm, and after a pooling another one."""

    def __init__(self, spatial_dims: int, channels: int = 1) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims - 2]
        self.first, self.norm = convolution(channels, 3, 3, padding=1), norm(3)
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[spatial_dims - 2](2)
        self.second = convolution(3, 4, 3, padding=1)
        self.spatial_dims, self.in_channels, self.channels, self.stride = spatial_dims, channels, (3, 4), 2

    def maps(self, x: Tensor) -> list[Tensor]:
        fine = self.norm(self.first(x))
        return [fine, self.second(self.pool(fine))]

    def levels(self) -> list[nn.Module]:
        return []


def random_weights(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.double()


def drawn(blocks: tuple[int, ...], hidden: int, count: int) -> Tensor:
    rng = SampleRng.for_samples(0, [0] * count, [str(i) for i in range(count)])
    return torch.from_numpy(draw_hidden(blocks, hidden, rng))


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_densified_maps_and_gradients_equal_those_of_visible_voxels_alone(dims):
    encoder = random_weights(TwoMaps(dims, channels=2)).train()
    densify = random_weights(Densifier(dims, 4, 4, coarsest=True))
    hidden = drawn((3,) * dims, 4, count=2)
    images = torch.randn(2, 2, *[6] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = {name: p.detach().numpy() for name, p in (*encoder.named_parameters(), *densify.named_parameters("d"))}

    def expected(values: np.ndarray, w: dict[str, np.ndarray]) -> list[np.ndarray]:
        seen = [reference.visible_places(image, ~gone, 2) for image, gone in zip(values, hidden.numpy(), strict=True)]
        fine = reference.normalised(
            reference.convolved(seen, w["first.weight"], w["first.bias"], (6,) * dims),
            w["norm.weight"],
            w["norm.bias"],
        )
        coarse = reference.convolved(reference.pooled(fine, 2), w["second.weight"], w["second.bias"], (3,) * dims)
        normal = reference.normalised(coarse, w["d.norm.weight"], w["d.norm.bias"])
        sizes = ((6,) * dims, (3,) * dims)
        return [
            reference.dense(fine, sizes[0], 3),
            reference.dense(coarse, sizes[1], 4),
            reference.dense(normal, sizes[1], 4, w["d.token"]),
        ]

    with sparse(encoder, ~hidden[:, None]):
        maps = encoder.maps(images * ~enlarge(hidden, (2,) * dims))
    found = [*maps, densify(maps[1], ~hidden[:, None])]
    for ours, theirs in zip(found, expected(images.numpy(), weights), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-10)

    probe = torch.randn(found[2].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (found[2] * probe).sum().backward()
    for name, place in (("first.weight", (1, 0, *[1] * dims)), ("norm.bias", (2,)), ("d.token", (1,))):
        module = densify if name.startswith("d.") else encoder
        gradient = module.get_parameter(name.removeprefix("d.")).grad[place].item()
        sums = []
        for move in (1e-5, -1e-5):
            moved = weights[name].copy()
            moved[place] += move
            sums.append((expected(images.numpy(), {**weights, name: moved})[2] * probe.numpy()).sum())
        assert gradient == pytest.approx((sums[0] - sums[1]) / 2e-5, rel=1e-5, abs=1e-6)
        assert abs(gradient) > 1e-4


def tiny(name: str, dims: int, **fields: object) -> SparK:
    torch.manual_seed(0)
    encoder = tiny_encoder(name, dims)
    size = (3 * encoder.stride,) * dims if dims == 2 else tuple(2 * s for s in encoder.strides)
    config = {"crop_size": size, "decoder_dim": 16, **fields}
    return SparK(SparK.Config.model_validate(config), encoder, FACTS)


@pytest.mark.parametrize(("name", "dims"), SLOW_BUT_UNET)
def test_what_is_hidden_reaches_no_prediction_and_maps_are_0_there(name, dims):
    method = tiny(name, dims)
    hidden = drawn(method.blocks, method.num_hidden, count=2)
    shown = ~enlarge(hidden, method.encoder.strides)
    crops = torch.rand(2, 1, *method.size, generator=torch.Generator().manual_seed(0))
    predicted = []
    method.decoder.register_forward_hook(lambda module, given, voxels: predicted.append(voxels.detach()))
    for images in (crops, torch.where(shown, crops, torch.rand_like(crops))):
        for norm in method.modules():
            if hasattr(norm, "reset_running_stats"):
                norm.reset_running_stats()
        method.loss(Views((images,), targets={"hidden": hidden}))
    assert torch.equal(predicted[0], predicted[1])
    for values in method._sparse_maps(crops, ~hidden[:, None]):
        steps = tuple(m // g for m, g in zip(values.shape[2:], hidden.shape[1:], strict=True))
        assert not (values * enlarge(hidden, steps)).any()


@pytest.mark.parametrize(("name", "dims"), SLOW_BUT_UNET)
def test_with_nothing_hidden_and_after_the_block_an_encoder_computes_as_ever(name, dims):
    encoder = tiny_encoder(name, dims).double()
    images = torch.rand(2, 1, *(2 * s for s in encoder.strides), dtype=torch.float64)
    expected = encoder.maps(images)
    with sparse(encoder, torch.ones(2, 1, *[2] * dims, dtype=torch.bool)):
        found = encoder.maps(images)
    for ours, theirs, again in zip(found, expected, encoder.maps(images), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(again, theirs)
    assert not any("forward" in vars(module) for module in encoder.modules())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_running_statistics_are_those_of_visible_places():
    norm = nn.BatchNorm2d(3)
    values = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[[[True, False], [False, False]]], [[[True, True], [False, True]]]])
    with sparse(norm, visible):
        norm(values)
    rows = values.movedim(1, -1)[visible[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2)]
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(("size", "ratio", "hidden"), [(96, 0.6, 22), (32, 0.6, 2), (48, 0.6, 5)])
def test_the_number_of_visible_blocks_is_rounded(size, ratio, hidden):
    method = tiny("unet", 2, crop_size=size, mask_ratio=ratio)
    batch = random_batch([(size, size + 3)] * 3)
    assert method.views(batch, batch.rng(0)).targets["hidden"].flatten(1).sum(1).tolist() == [hidden] * 3


@pytest.mark.slow
def test_after_a_short_training_it_predicts_better_than_the_mean_and_features_differ():
    fields = {**TINY_ENCODERS["unet"], "norm": "batch", "features": (8, 8, 16, 16, 16, 8)}
    encoder = ENCODERS["unet"](ENCODERS["unet"].Config(spatial_dims=2, **fields))
    torch.manual_seed(0)
    method = SparK(SparK.Config(crop_size=64, decoder_dim=32, augment={}), encoder, FACTS)
    down, across = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    batch = random_batch([(64, 64)] * 8)
    for number, voxels in enumerate(batch.voxels):
        voxels[0] = (127 + 100 * ((down + number * across) / 10).sin()).byte()
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(60):
        losses = method.loss(method.drawn(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(1000)))
        features = encoder.features(method.drawn(batch, batch.rng(0)).images[0])[-1].flatten(2).mean(2)
    assert losses.total < 0.8 * losses.of_constant
    assert effective_rank(features) > 3


def test_what_cannot_be_hidden_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio 0\.6 hides 1 of the 1 blocks of a crop of \(16, 16\) voxels"):
        tiny("unet", 2, crop_size=16)
    with pytest.raises(ValueError, match=r"crop_size \(40, 40\): 40 is not a multiple of .* stride 16"):
        tiny("unet", 2, crop_size=40)
