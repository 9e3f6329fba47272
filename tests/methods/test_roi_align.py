"""RoIAlign beside a reference that takes one sample after the other, on regions of every kind, and its gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.detection.roi_align import level_of, roi_align
from tests.references import detection as reference

STRIDES = (4, 8, 16)
# Inside, touching the border, beyond it, far outside, without an inside, inside out, thin, as large as the image.
REGIONS = [
    [3.0, 5, 21, 17],
    [0, 0, 8, 64],
    [-9, -7, 12, 11],
    [40, 50, 90, 80],
    [200, 200, 240, 230],
    [10, 10, 10, 10],
    [10, 12, 30, 12],
    [0.3, 1.7, 63.2, 2.1],
    [0, 0, 64, 64],
    [-60, -60, 170, 170],
]


def maps_of(dtype: torch.dtype = torch.float64, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, 64 // stride, 64 // stride + 1, generator=generator, dtype=dtype)
        for stride in STRIDES
    ]


def expected(maps: list[Tensor], regions: Tensor, images: Tensor, size: int, samples: int) -> np.ndarray:
    found = []
    for region, image in zip(regions.tolist(), images.tolist(), strict=True):
        level = reference.level(region, len(maps))
        planes = maps[level][image].detach().double().numpy()
        found.append(reference.aligned(planes, region, STRIDES[level], size, samples))
    return np.array(found)


def random_regions(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 80 - 10
    return torch.cat([low, low + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60], dim=1)


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_features_of_regions_are_those_of_one_sample_after_the_other(samples):
    maps, regions = maps_of(), torch.cat([torch.tensor(REGIONS, dtype=torch.float64), random_regions(30)])
    images = torch.arange(len(regions)) % 2
    found = roi_align(maps, STRIDES, regions, images, 3, samples)
    np.testing.assert_allclose(found.numpy(), expected(maps, regions, images, 3, samples), rtol=0, atol=1e-12)


def test_float32_is_as_near_as_float32_can_be_and_bf16_maps_are_taken_as_float32():
    maps, regions = maps_of(torch.float32), torch.tensor(REGIONS)
    images = torch.arange(len(regions)) % 2
    found = roi_align(maps, STRIDES, regions, images, 7, 2)
    np.testing.assert_allclose(found.numpy(), expected(maps, regions, images, 7, 2), rtol=0, atol=2e-5)
    halved = [one.bfloat16() for one in maps]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            roi_align(halved, STRIDES, regions, images, 7, 2),
            roi_align([one.float() for one in halved], STRIDES, regions, images, 7, 2),
            rtol=0,
            atol=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("samples", [0, 2])
def test_the_gradient_is_that_of_finite_differences(samples):
    maps = [one.requires_grad_() for one in maps_of(channels=1)]
    regions = torch.tensor(REGIONS, dtype=torch.float64)
    images = torch.arange(len(regions)) % 2
    assert torch.autograd.gradcheck(lambda *given: roi_align(given, STRIDES, regions, images, 2, samples), maps)


def test_a_region_s_side_is_14_to_28_values_long_on_its_level():
    sides = torch.tensor([0.0, 10, 111.9, 112, 200, 223.9, 224, 1000])
    regions = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert level_of(regions, STRIDES).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert level_of(regions, (8,)).tolist() == [0] * 8
    assert level_of(torch.tensor([[0.0, 0, 56, 224]]), STRIDES).tolist() == [1]


def test_no_region_has_no_features_and_a_constant_map_gives_its_value_inside():
    maps = [torch.full_like(one, 5.0).requires_grad_() for one in maps_of()]
    none = roi_align(maps, STRIDES, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7, 2)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert maps[0].grad is not None
    inside = roi_align(maps, STRIDES, torch.tensor([[3.0, 5, 40, 41]]), torch.zeros(1, dtype=torch.int64), 7, 2)
    torch.testing.assert_close(inside, torch.full_like(inside, 5.0))
