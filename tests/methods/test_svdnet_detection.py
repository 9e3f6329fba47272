"""SVDNetDetection: a 3D encoder sees the colours of photographs as slices; the detector is that of ``detection``."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.boxes import Boxes
from data.phantoms.photographs import OBJECTS, make_photograph
from data.views.batch import Batch
from methods.downstream.detection import Detection
from methods.encoders import ResNet3DEncoder, ResNetEncoder
from methods.svdnet_detection import SVDNetDetection
from tests.batches import eight_bit_batch, facts_of

NAMES = dict(enumerate(OBJECTS))
SMALL: dict[str, Any] = {
    "size": 64,
    "scales": (48, 64),
    "pyramid_channels": 16,
    "norm_groups": 4,
    "head_dims": (32,),
    "sampled_anchors": 64,
    "sampled_regions": 32,
    "proposals": 64,
}


def tiny(**fields: Any) -> SVDNetDetection:
    torch.manual_seed(0)
    config = {"init_features": 4, "norm": "group", "norm_groups": 2, **fields.pop("encoder", {})}
    encoder = ResNet3DEncoder(ResNet3DEncoder.Config.model_validate(config))
    return SVDNetDetection(SVDNetDetection.Config.model_validate({**SMALL, **fields}), encoder, facts_of(NAMES))


def photographs(count: int, size: int = 64) -> Batch:
    pictures = [make_photograph(0, number, size) for number in range(count)]
    voxels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).movedim(3, 1).contiguous()
    batch = eight_bit_batch(voxels, [(size, size)] * count, tuple(map(str, range(count))))
    return replace(batch, boxes=tuple(picture.boxes for picture in pictures))


def test_views_are_those_of_a_2d_detection_with_colours_as_slices():
    method, batch = tiny(), photographs(4)
    flat = Detection(
        Detection.Config.model_validate({**method.config.model_dump(), "name": "detection"}),
        ResNetEncoder(ResNetEncoder.Config(spatial_dims=2, in_channels=3, depth=18, init_features=2)),
        facts_of(NAMES),
    )
    found, expected = method.views(batch, batch.rng(0)), flat.views(batch, batch.rng(0))
    assert found.images[0].shape == (4, 1, 3, 64, 64)
    assert torch.equal(found.images[0][:, 0], expected.images[0])
    for name, target in expected.targets.items():
        assert torch.equal(found.targets[name], target)
    assert len({float(w) for w in (found.targets["windows"][:, 2] - found.targets["windows"][:, 0])}) == 2


def test_every_level_has_a_transform_of_the_three_slices_that_the_encoder_keeps():
    network = tiny().network
    weights = [parameter for name, parameter in network.named_parameters() if name.startswith("transforms.")]
    assert [tuple(weight.shape[:2]) for weight in weights] == [(4, 3), (8, 3), (16, 3), (32, 3)]


def test_an_encoder_that_strides_along_the_depth_has_fewer_slices_to_transform():
    network = tiny(encoder={"depth_strides": "vanilla"}).network
    weights = [parameter for name, parameter in network.named_parameters() if name.startswith("transforms.")]
    assert [weight.shape[1] for weight in weights] == [1, 1, 1, 1]


def test_photographs_are_judged_as_slices_too():
    method, batch = tiny(score_threshold=0.0).eval(), photographs(2)
    judged = method.judge(batch)
    assert set(judged.evidence) == {"0", "1"}
    for number in range(2):
        rows = judged.evidence[str(number)]
        assert (rows[:, 0] == 1).sum() == len(make_photograph(0, number, 64).boxes)
        assert (rows[:, 0] == 0).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": {"in_channels": 3}}, "encoder.in_channels 3: the colours of a photograph are the slices"),
        ({"slices": 9}, "method.slices 9: a photograph has 3 slices, its colours; leave slices out"),
        ({"scales": (96,)}, "scales 96 exceeds the longer side of downstream.task.size, 64"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


def test_volumes_are_refused():
    with pytest.raises(ValueError, match=r"samples of size \(9, 64, 64\) have 3 axes, photographs have 2"):
        tiny().check_extent((9, 64, 64))


def test_a_photograph_without_boxes_gives_losses_too():
    method, batch = tiny(), photographs(2)
    none = Boxes(np.zeros((0, 2, 2), np.int64), np.zeros(0, np.int64))
    losses = method.loss(method.views(replace(batch, boxes=(none, none)), batch.rng(0)))
    losses.total.backward()
    assert losses.total.isfinite()
    assert losses.parts["box_loss"] == 0


@pytest.mark.slow
def test_it_learns_where_the_objects_of_photographs_are():
    method, batch = tiny(scales=None).train(), photographs(8)
    optimiser = torch.optim.AdamW(method.parameters(), lr=2e-3)
    for step in range(80):
        optimiser.zero_grad()
        method.loss(method.views(batch, batch.rng(step))).total.backward()
        optimiser.step()
    assert method.scores(method.eval().judge(batch).evidence).metrics["ap50"] > 0.4
