"""The light decoder joins three maps as the released head does, and gives every voxel its logits."""

import numpy as np
import pytest
import torch

from methods.downstream.fcn import FCN
from methods.downstream.networks import segmentation_network
from methods.encoders import ResNet3DEncoder, ResNetEncoder
from tests.encoders import Pixels
from tests.references.resnet3d import convolve, normalise

# As released for nodules: stem and pool do not stride, and the stages stride by 1, 2, 1 and 2.
NODULES = {"init_features": 2, "depth_strides": (1, 1, 1, 2, 1, 2), "plane_strides": (1, 1, 1, 2, 1, 2)}


def network_of(**fields: object) -> FCN:
    torch.manual_seed(0)
    encoder = ResNet3DEncoder(ResNet3DEncoder.Config.model_validate({**NODULES, **fields}))
    network = segmentation_network(encoder, 3, "fcn")
    assert isinstance(network, FCN)
    return network


def test_logits_equal_a_slow_reference():
    network = network_of().double().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
    images = torch.randn(2, 1, 8, 12, 16, dtype=torch.float64)
    weights = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    with torch.no_grad():
        found = network(images).numpy()
        stem, _, middle, _, coarsest = (level.numpy() for level in network.encoder.features(images))
    assert [level.shape[2:] for level in (stem, middle, coarsest)] == [(8, 12, 16), (4, 6, 8), (2, 3, 4)]

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        x = convolve(x, weights[f"{name}.0.weight"], (1, 1, 1))
        return np.maximum(normalise(x, weights, f"{name}.1", None), 0)

    def twice(x: np.ndarray) -> np.ndarray:
        return x.repeat(2, axis=2).repeat(2, axis=3).repeat(2, axis=4)

    x = layer(np.concatenate([middle, twice(coarsest)], axis=1), "join_middle")
    x = layer(np.concatenate([stem, twice(x)], axis=1), "join_stem")
    x = layer(x, "narrow")
    bias = weights["classify.bias"].reshape(1, -1, 1, 1, 1)
    np.testing.assert_allclose(found, convolve(x, weights["classify.weight"], (1, 1, 1)) + bias, rtol=0, atol=1e-10)


def test_widths_are_those_of_the_released_head_for_resnet3d_18():
    with torch.device("meta"):
        encoder = ResNet3DEncoder(ResNet3DEncoder.Config())
        network = FCN(encoder, 2)
    own = {name: tuple(p.shape[:2]) for name, p in network.named_parameters() if p.ndim == 5}
    assert {name: shape for name, shape in own.items() if not name.startswith("encoder.")} == {
        "join_middle.0.weight": (512, 128 + 512),
        "join_stem.0.weight": (512, 64 + 512),
        "narrow.0.weight": (128, 512),
        "classify.weight": (2, 128),
    }


@pytest.mark.parametrize("dims", [2, 3])
def test_where_the_stem_strides_every_voxel_has_logits_all_the_same_and_all_weights_learn(dims):
    torch.manual_seed(0)
    encoder = ResNetEncoder(ResNetEncoder.Config(spatial_dims=dims, depth=18, init_features=2))
    network = segmentation_network(encoder, 3, "fcn")
    logits = network(torch.randn(2, 1, *(64, 32, 32)[:dims]))
    assert tuple(logits.shape) == (2, 3, *(64, 32, 32)[:dims])
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_an_encoder_with_other_maps_is_refused():
    with pytest.raises(ValueError, match="of 5 maps, the encoder has 1; take the encoder resnet or resnet3d"):
        FCN(Pixels(2), 3)
