"""Parts of methods that restore voxels: boxes and what they cover, the best constant voxel, and the decoder."""

import numpy as np
import pytest
import torch
from torch import nn

from data.views.rng import SampleRng
from methods.encoders import ResNet3DEncoder, UNetEncoder
from methods.parts.box_maps import covered, draw_boxes, draw_clipped_boxes, fill_boxes, first_successes
from methods.parts.constant_voxel import mean_voxel, median_voxel
from methods.parts.reconstruction import WIDEST, Reconstruction
from tests.encoders import Pixels

CPU = torch.device("cpu")


def streams(count: int) -> SampleRng:
    return SampleRng.for_samples(0, [0] * count, [str(i) for i in range(count)])


def test_later_boxes_lie_over_earlier_ones_and_those_left_out_cover_nothing() -> None:
    boxes = np.array([[[[0, 0], [2, 3]], [[1, 1], [3, 3]], [[0, 0], [3, 3]]]])
    maps = fill_boxes((3, 3), boxes, np.array([[1, 2, -1]]), CPU)
    assert maps[0].tolist() == [[1, 1, 1], [1, 2, 2], [0, 2, 2]]
    assert covered((3, 3), boxes, np.array([1]), CPU)[0, 0].int().tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert not covered((3, 3), boxes, np.array([0]), CPU).any()


def test_boxes_have_every_length_and_every_place_that_the_margin_leaves() -> None:
    boxes = draw_boxes((12, 9), (2, 8), (4, 9), 5, 3, streams(2000)).reshape(-1, 2, 2)
    lengths = boxes[:, 1] - boxes[:, 0]
    assert sorted(set(lengths[:, 0].tolist())) == [2, 3, 4]
    for length in (2, 3, 4):
        low = boxes[lengths[:, 0] == length, 0, 0]
        assert sorted(set(low.tolist())) == list(range(3, 12 - 3 - length + 1))
    # Where there is less room than both margins, the box lies in the middle, or one voxel beside it.
    assert sorted(set(map(tuple, boxes[:, :, 1].tolist()))) == [(0, 8), (0, 9), (1, 9)]


def test_boxes_that_reach_beyond_the_border_are_cut_off_there_and_none_is_empty() -> None:
    boxes = draw_clipped_boxes((20, 20), (1, 1), (5, 5), 50, streams(500)).reshape(-1, 2, 2)
    lengths = boxes[:, 1] - boxes[:, 0]
    assert (lengths.min(), lengths.max()) == (1, 4)
    assert (boxes.min(), boxes.max()) == (0, 20)


def test_successes_in_a_row_are_counted_up_to_the_first_failure() -> None:
    counts = first_successes(3, 0.5, streams(20_000))
    assert np.bincount(counts) / len(counts) == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 8], abs=0.015)


@pytest.mark.parametrize("count", [9, 10])
def test_no_other_constant_voxel_restores_better(count: int) -> None:
    images = torch.randn(2, 1, count, 7, generator=torch.Generator().manual_seed(0)).exp()
    mean, median = mean_voxel(images), median_voxel(images)
    torch.testing.assert_close(mean, images.mean())
    best = (images - images.median()).abs().mean()
    torch.testing.assert_close((images - median).abs().mean(), best, rtol=1e-6, atol=0)
    for other in torch.linspace(images.min(), images.max(), 50):
        assert (images - mean).square().mean() <= (images - other).square().mean() + 1e-6
        assert best <= (images - other).abs().mean() + 1e-6


@pytest.mark.parametrize("skips", [True, False])
def test_the_decoder_ends_at_the_image_s_size_also_where_strides_differ(skips: bool) -> None:
    encoder = ResNet3DEncoder(ResNet3DEncoder.Config.model_validate({"init_features": 2, "depth_strides": "kept"}))
    images = torch.rand(2, 1, 3, 64, 64)
    decoded = Reconstruction(encoder, 4, skips)(encoder.features(images))
    assert decoded.shape == (2, 4, 3, 64, 64)


def test_no_block_is_wider_than_the_widest_and_an_encoder_of_one_map_needs_none() -> None:
    features = (8, 16, 300, 600, 900, 8)
    with torch.device("meta"):
        encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=features))
        decoder = Reconstruction(encoder, 1)
    firsts = [next(block.children()) for block in decoder.blocks]
    widths = [(first.in_channels, first.out_channels) for first in firsts if isinstance(first, nn.Conv2d)]
    assert widths == [(WIDEST + 600, WIDEST), (WIDEST + 300, WIDEST), (32, 16), (16, 8)]
    alone = Reconstruction(Pixels(2, 3), 5)
    assert len(alone.blocks) == 0
    assert alone([torch.rand(1, 3, 4, 4)]).shape == (1, 5, 4, 4)
