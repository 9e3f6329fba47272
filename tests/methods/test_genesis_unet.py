"""The U-Net of Models Genesis: its size, its maps by hand, and the decoder that a task puts on it."""

import torch
import torch.nn.functional as F

from methods.downstream.networks import segmentation_network
from methods.encoders import GenesisUNetEncoder


def test_the_released_encoder_has_its_parameters() -> None:
    with torch.device("meta"):
        encoder = GenesisUNetEncoder(GenesisUNetEncoder.Config())
    pairs = [(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    assert sum(p.numel() for p in encoder.parameters()) == sum(27 * into * out + 3 * out for into, out in pairs)
    assert (encoder.channels, encoder.stride) == ((64, 128, 256, 512), 8)
    assert "down_tr512.ops.1.bn1.running_var" in encoder.state_dict()


def test_maps_are_two_convolutions_each_on_the_pooled_map_before() -> None:
    torch.manual_seed(0)
    encoder = GenesisUNetEncoder(GenesisUNetEncoder.Config(init_features=2))
    images = torch.randn(2, 1, 16, 8, 24)
    state, x = {key: value.clone() for key, value in encoder.state_dict().items()}, images
    maps = encoder.train().features(images)
    for level, name in enumerate(("down_tr64", "down_tr128", "down_tr256", "down_tr512")):
        x = F.max_pool3d(x, 2) if level else x
        for number in (0, 1):
            own = {key.rpartition(f"{name}.ops.{number}.")[2]: value for key, value in state.items() if name in key}
            x = F.conv3d(x, own["conv1.weight"], own["conv1.bias"], padding=1)
            x = x - x.mean((0, 2, 3, 4), keepdim=True)
            x = F.relu(x / (x.square().mean((0, 2, 3, 4), keepdim=True) + 1e-5).sqrt())
        torch.testing.assert_close(maps[level], x, rtol=1e-4, atol=1e-5)
    assert tuple(x.shape) == (2, 32, 2, 1, 3)


def test_a_decoder_gives_every_voxel_its_logits() -> None:
    encoder = GenesisUNetEncoder(GenesisUNetEncoder.Config(init_features=2))
    assert tuple(segmentation_network(encoder, 3)(torch.randn(1, 1, 16, 8, 24)).shape) == (1, 3, 16, 8, 24)
