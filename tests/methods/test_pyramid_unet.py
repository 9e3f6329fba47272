"""The pyramid transformer's decoder: logits equal a slow reference, sizes are the released ones, weights learn."""

import pytest
import torch
from torch.nn import functional as F

from methods.downstream.networks import segmentation_network
from methods.downstream.pyramid_unet import PyramidUNet
from methods.downstream.segmentation import Segmentation
from methods.encoders import PyramidTransformerEncoder, UNetEncoder
from tests.batches import facts_of
from tests.methods.test_pyramid_transformer import SIZES, encoder_of, images_of
from tests.references import pyramid_transformer as reference
from tests.references.vit import part

# The decoder has more heads than the encoder's map of its size.
FIELDS = {"stage_dims": (4, 6, 8, 8), "num_heads": (1, 2, 2, 4)}


def network_of(dims: int) -> PyramidUNet:
    network = segmentation_network(encoder_of(dims, **FIELDS), 3, "pyramid")
    assert isinstance(network, PyramidUNet)
    return network.double()


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_logits_equal_a_slow_reference(dims):
    network = network_of(dims)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        images = images_of(SIZES[dims])
        maps = [level[0] for level in network.encoder.features(images)]
        weights = network.state_dict()
        coarse = reference.logits(maps, weights, heads=(4, 2, 2))
        steps = (1.0, 2.0, 2.0)[-dims:]
        expected = F.interpolate(coarse[None], scale_factor=steps, mode=("bilinear", "trilinear")[dims - 2])[0]
        torch.testing.assert_close(network(images)[0], expected, rtol=1e-9, atol=1e-9)
    assert part(weights, "stages.2.blocks.0")["attn.reduce." + f"{dims}D.weight"].shape[2:] == (6,) * dims


@pytest.mark.parametrize("dims", [2, 3])
def test_every_voxel_of_images_of_any_size_has_logits_and_all_weights_learn(dims):
    network = network_of(dims)
    size = tuple(2 * length for length in SIZES[dims])
    logits = network(images_of(size, 2))
    assert tuple(logits.shape) == (2, 3, *size)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_widths_depths_and_heads_mirror_those_of_the_encoder_as_released():
    with torch.device("meta"):
        config = PyramidTransformerEncoder.Config(spatial_dims=3, volume_size=(48, 192, 192), switchable=False)
        network = PyramidUNet(PyramidTransformerEncoder(config), 14)
    blocks = [[block.attn for block in stage.blocks] for stage in network.stages]
    assert [(len(own), own[0].q.in_features, own[0].num_heads) for own in blocks] == [
        (3, 256, 8),
        (4, 128, 4),
        (3, 48, 2),
    ]
    assert [own[0].reduce["3D"].kernel_size[0] for own in blocks] == [2, 4, 6]
    assert [tuple(stage.grow.weight.shape) for stage in network.stages] == [
        (512, 256, 2, 2, 2),
        (256, 128, 2, 2, 2),
        (128, 48, 2, 2, 2),
    ]
    assert [stage.positions.shape[1] for stage in network.stages] == [6 * 12 * 12, 12 * 24 * 24, 24 * 48 * 48]


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (
            UNetEncoder(UNetEncoder.Config(spatial_dims=2)),
            "decoder pyramid decodes the encoder pyramid_transformer, found UNetEncoder; take that encoder, or",
        ),
        (
            encoder_of(2, stage_dims=(4, 6, 8, 8), num_heads=(1, 2, 4, 4)),
            r"num_heads\[2\] 4 does not divide stage_dims\[1\] 6; change one, or set decoder=unet",
        ),
    ],
)
def test_an_encoder_that_it_does_not_decode_is_refused(encoder, reason):
    task = Segmentation.Config(crop_size=32, decoder="pyramid")
    with pytest.raises(ValueError, match=reason):
        Segmentation(task, encoder, facts_of({0: "background", 1: "liver"}))
