"""Encoders whose strides differ between axes: what methods cut, flatten and predict follows each axis."""

from typing import Any

import pytest
import torch
from torch import nn

from methods import METHODS
from methods.encoders import ResNet3DEncoder
from methods.parts.sizes import check_coarsest, check_stride
from methods.simmim import Pixels
from tests.batches import FACTS
from tests.methods.test_contract import batch_of


def encoder_of(depth_strides: Any = "kept", init_features: int = 4) -> ResNet3DEncoder:
    torch.manual_seed(0)
    return ResNet3DEncoder(ResNet3DEncoder.Config(depth_strides=depth_strides, init_features=init_features))


# Each method by crops whose depth no number of its own divides, but for the cube of a rotation.
METHODS_ON_FEW_SLICES: dict[str, dict[str, Any]] = {
    "simsiam": {"crops": {"size": (5, 32, 32), "iou": (0.1, 1)}, "projector_dim": 8, "predictor_dim": 4},
    "simmim": {"crop_size": (3, 32, 64), "block": (1, 32, 32)},
    "voco": {"crop_size": (5, 32, 64), "grid": (1, 2, 2), "projector_dim": 8},
    "rotation": {"side": 32, "hidden_dims": (4,)},
}


@pytest.mark.parametrize("name", METHODS_ON_FEW_SLICES)
def test_a_method_trains_every_weight_of_a_network_that_keeps_its_depth(name: str) -> None:
    batch = batch_of(3, 3)
    config = METHODS[name].Config(**METHODS_ON_FEW_SLICES[name])
    method = METHODS[name](config, encoder_of("kept", 2), FACTS).train()
    losses = method.loss(method.drawn(batch, batch.rng(0)))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_pixels_are_predicted_where_the_voxels_of_unequal_strides_lie() -> None:
    """Each voxel of the last map answers with its own number for every pixel that it stands for."""
    encoder = encoder_of()
    pixels = Pixels(encoder)
    nn.init.zeros_(pixels.layer.weight)
    with torch.no_grad():
        pixels.layer.weight[:, 0] = torch.arange(32 * 32)
    last = torch.zeros(1, encoder.channels[-1], 3, 1, 2)
    last[0, 0, :, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = pixels(last) - pixels.layer.bias.view(32, 32).repeat(1, 2)
    inside = torch.arange(32.0 * 32).view(32, 32)
    for depth, column in ((0, 0), (1, 1), (2, 0)):
        block = found[0, 0, depth, :, 32 * column : 32 * column + 32]
        torch.testing.assert_close(block, last[0, 0, depth, 0, column] * inside, rtol=1e-5, atol=1e-3)


def test_a_size_is_checked_along_each_axis() -> None:
    strides = encoder_of((1, 1, 1, 2, 2, 3)).strides
    check_stride((12, 64, 32), strides, "size")
    with pytest.raises(
        ValueError, match=r"^size \(9, 64, 32\): 9 is not a multiple of the encoder's stride 12; use 12"
    ):
        check_stride((9, 64, 32), strides, "size")
    with pytest.raises(ValueError, match=r"a single voxel.* make one of the sizes 64$"):
        check_coarsest(strides, strides, "size")
    check_coarsest((24, 32, 32), strides, "size")
