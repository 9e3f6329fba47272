"""The detector and its parts: levels, group transforms, pyramid, proposals, losses and detections."""

import math

import pytest
import torch
from torch import Tensor

from methods.detection.assignments import Truth, assign_anchors, assign_regions
from methods.detection.boxes import encode
from methods.detection.detections import detections_of
from methods.detection.detector import Detector
from methods.detection.feature_pyramid import FeaturePyramid
from methods.detection.group_transform import GroupTransform
from methods.detection.levels import detector_levels, slices_for
from methods.detection.losses import proposal_losses, region_losses
from methods.detection.proposals import LevelAnswer, Proposals, proposals_of
from methods.encoders import Encoder, ResNet3DEncoder, ResNetEncoder, UNetEncoder
from tests.encoders import BUILDS
from tests.methods.test_contract import tiny_encoder

SMALL = {"pyramid_channels": 8, "head_dims": (16,), "region_size": 3, "sampled_anchors": 32, "sampled_regions": 24}
WINDOW = torch.tensor([0.0, 0, 64, 64])


def detector_of(encoder: Encoder, num_classes: int = 2, slices: int | None = None, **fields: object) -> Detector:
    torch.manual_seed(0)
    config = Detector.Config.model_validate({**SMALL, **fields})
    return Detector(config, encoder, num_classes, slices)


def scene(count: int = 2, size: int = 64, depth: int | None = None) -> dict[str, Tensor]:
    """Images with two, one and no boxes, and so on."""
    generator = torch.Generator().manual_seed(1)
    plane = (size, size) if depth is None else (depth, size, size)
    boxes = torch.tensor([[[4.0, 6, 24, 30], [30, 20, 60, 50]], [[8, 8, 20, 40], [0, 0, 0, 0]], [[0] * 4] * 2])
    classes = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    which = torch.arange(count) % 3
    return {
        "images": torch.rand(count, 1, *plane, generator=generator),
        "boxes": boxes[which],
        "classes": classes[which],
        "seeds": torch.arange(count) * 7919 - 3,
    }


def test_a_group_transform_sums_each_channel_s_planes_with_weights_of_their_own():
    torch.manual_seed(0)
    transform, volumes = GroupTransform(3, 4), torch.randn(2, 3, 4, 5, 6)
    weights = transform.planes.weight.detach().reshape(3, 4)
    expected = torch.zeros(2, 3, 5, 6)
    for image in range(2):
        for channel in range(3):
            for plane in range(4):
                expected[image, channel] += weights[channel, plane] * volumes[image, channel, plane]
    torch.testing.assert_close(transform(volumes), expected)
    assert [name for name, _ in transform.named_parameters()] == ["planes.weight"]
    with pytest.raises(ValueError, match="a map with 5 planes, expected 4; give the detector volumes"):
        transform(torch.zeros(1, 3, 5, 2, 2))


def resnet3d(**fields: object) -> ResNet3DEncoder:
    return ResNet3DEncoder(ResNet3DEncoder.Config.model_validate({"init_features": 2, **fields}))


def test_levels_are_the_maps_at_least_four_times_coarser_in_the_plane():
    resnet = ResNetEncoder(ResNetEncoder.Config(spatial_dims=2, depth=18, init_features=2))
    found = [(level.place, level.channels, level.stride, level.depth) for level in detector_levels(resnet, None)]
    assert found == [(1, 2, 4, 0), (2, 4, 8, 0), (3, 8, 16, 0), (4, 16, 32, 0)]
    unet = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(1, 2, 3, 4, 5, 1)))
    assert [level.stride for level in detector_levels(unet, None)] == [4, 8, 16]
    assert [level.channels for level in detector_levels(unet, None)] == [3, 4, 5]


def test_depths_of_levels_are_those_of_the_paper_and_of_the_kept_depth():
    # As SVD-Net strides for lesions, in its stages; convolutions round 3 planes up to 2, its pooling to 1.
    strided = resnet3d(depth_strides=(1, 1, 1, 2, 2, 2))
    assert [level.depth for level in detector_levels(strided, 9)] == [9, 5, 3, 2]
    vanilla = resnet3d(depth_strides="vanilla")
    assert [level.depth for level in detector_levels(vanilla, 9)] == [3, 2, 1, 1]
    assert [level.depth for level in detector_levels(resnet3d(), 9)] == [9] * 4


@pytest.mark.parametrize(("name", "dims"), BUILDS)
def test_levels_say_what_maps_an_encoder_has(name, dims):
    encoder = tiny_encoder(name, dims)
    slices = slices_for(encoder, None)
    size = (64, 64) if slices is None else (slices, 64, 64)
    with torch.no_grad():
        maps = encoder.eval().features(torch.zeros(1, 1, *size))
    for level in detector_levels(encoder, slices):
        expected = [level.channels, *([level.depth] if level.depth else []), 64 // level.stride, 64 // level.stride]
        assert list(maps[level.place].shape[1:]) == expected
    used = {level.place for level in detector_levels(encoder, slices)}
    unused = [place for place in range(len(maps)) if place not in used]
    assert unused == list(range(len(unused)))  # only finer maps, which the others are made of


def test_an_encoder_without_a_coarse_map_or_with_unequal_strides_is_refused():
    with pytest.raises(ValueError, match="coarsest map has stride 2 in the plane, expected at least 4; take an enc"):
        detector_levels(resnet3d(plane_strides=(2, 1, 1, 1, 1, 1)), 9)


def test_as_many_slices_are_taken_as_the_encoder_can_stride():
    unet = UNetEncoder(UNetEncoder.Config(spatial_dims=3, features=(1, 1, 1, 1, 1, 1)))
    image = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(1, 1, 1, 1, 1, 1)))
    assert [slices_for(encoder, None) for encoder in (unet, resnet3d(), image)] == [16, 9, None]
    assert [slices_for(encoder, 32) for encoder in (unet, resnet3d())] == [32, 32]
    assert slices_for(resnet3d(depth_strides="vanilla"), 7) == 7
    with pytest.raises(
        ValueError, match="slices 9 is not a multiple of the encoder's stride 16 along the depth; use 16"
    ):
        slices_for(unet, 9)
    with pytest.raises(ValueError, match="slices 9: the encoder sees images; take a 3D encoder"):
        slices_for(image, 9)


@pytest.mark.parametrize("groups", [None, 2])
def test_a_pyramid_adds_what_coarser_maps_have_seen_and_one_level_without_weights(groups):
    torch.manual_seed(0)
    pyramid = FeaturePyramid([3, 5, 6], 4, groups)
    maps = [torch.randn(2, channels, size, size) for channels, size in ((3, 8), (5, 4), (6, 2))]
    blocks = [(pyramid.network.inner_blocks[place], pyramid.network.layer_blocks[place]) for place in range(3)]
    above, expected = torch.zeros(2, 4, 1, 1), []
    for (lateral, smooth), one in reversed(list(zip(blocks, maps, strict=True))):
        wide = lateral(one)
        for row in range(wide.shape[2]):
            for column in range(wide.shape[3]):
                wide = wide.index_put(
                    (torch.arange(2)[:, None], torch.arange(4), torch.tensor(row), torch.tensor(column)),
                    above[:, :, row // 2 if above.shape[2] > 1 else 0, column // 2 if above.shape[2] > 1 else 0],
                    accumulate=True,
                )
        above = wide
        expected.insert(0, smooth(wide))
    found = pyramid(maps)
    assert [tuple(one.shape[2:]) for one in found] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    for one, other in zip(found, [*expected, expected[-1][:, :, ::2, ::2]], strict=True):
        torch.testing.assert_close(one, other)
    biases = [name for name, _ in pyramid.named_parameters() if name.endswith("bias")]
    assert len(biases) == 6
    norms = [module for module in pyramid.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == (0 if groups is None else 6)


def answer(anchors: list[list[float]], logits: list[float], deltas: list[list[float]] | None = None) -> LevelAnswer:
    zeros = [[0.0] * 4] * len(anchors)
    return LevelAnswer(torch.tensor(anchors).float(), torch.tensor(logits), torch.tensor(deltas or zeros))


def test_proposals_of_a_hand_made_image():
    fine = answer(
        [[0, 0, 16, 16], [0, 0, 16, 15], [40, 40, 56, 56], [70, 70, 80, 80]],
        [2.0, 3.0, 1.0, 9.0],
        [[0] * 4, [0] * 4, [0.5, 0.25, 0, math.log(2)], [0] * 4],
    )
    coarse = answer([[0, 0, 16, 16], [50, 50, 90, 90]], [2.5, 0.5])
    found = proposals_of([fine, coarse], WINDOW, 10, 10, 0.7)
    # The first box is suppressed by the second of its level, not by the same one of the other level; the one outside
    # the window does not count, and the last one is cut.
    assert found.counts.tolist() == [True, True, True, True, False, False]
    assert found.boxes[:4].tolist() == [[0, 0, 16, 15], [0, 0, 16, 16], [48, 36, 64, 64], [50, 50, 64, 64]]
    few = proposals_of([fine, coarse], WINDOW, 2, 1, 0.7)  # of the first level, the one outside and the second box
    assert (few.boxes.tolist(), few.counts.tolist()) == ([[0, 0, 16, 15]], [True])


def truth(boxes: list[list[float]], classes: list[int]) -> Truth:
    return Truth(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64))


SEED = torch.tensor(5)


def test_anchors_of_a_hand_made_image_are_to_answer_what_lies_there():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [30, 30, 40, 40], [50, 50, 60, 60]])
    own = truth([[0, 0, 10, 10], [0, 0, 0, 0]], [3, -1])
    usable = torch.tensor([True, True, True, True, False])
    found = assign_anchors(anchors, usable, own, SEED, 4)
    by_place = dict(zip(found.index.tolist(), range(4), strict=True))
    # The third is neither near nor far, and the last is not usable: three count.
    assert {place for place, row in by_place.items() if found.weights[row] > 0} == {0, 1, 3}
    assert found.weights[[by_place[place] for place in (0, 1, 3)]].tolist() == pytest.approx([1 / 3] * 3)
    assert [found.positive[by_place[place]].item() for place in (0, 1, 3)] == [True, True, False]
    torch.testing.assert_close(found.deltas[by_place[1]], torch.tensor([0, 0.5 / 9, 0, math.log(10 / 9)]))
    nothing = assign_anchors(anchors, usable, truth([[0, 0, 0, 0]], [-1]), SEED, 4)
    assert (nothing.positive.any().item(), nothing.weights.tolist()) == (False, [0.25] * 4)


def test_regions_of_a_hand_made_image_include_the_true_boxes():
    own = truth([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 0, 0]], [1, 0, -1])
    proposals = Proposals(
        torch.tensor([[0.0, 0, 10, 6], [50, 50, 60, 60], [0, 0, 10, 10]]), torch.tensor([True, True, False])
    )
    found = assign_regions(proposals, own, 4, SEED, 8)
    counted = found.weights > 0
    told = list(zip(found.boxes[counted].tolist(), found.classes[counted].tolist(), strict=True))
    answers = {(0, 0, 10, 6): 1, (0, 0, 10, 10): 1, (20, 20, 40, 40): 0, (50, 50, 60, 60): 4}
    assert all(answers[tuple(box)] == kind for box, kind in told)
    assert ([50, 50, 60, 60], 4) in told
    assert len(told) == 3
    # Of eight samples at most two are positive: which two depends on the seed.
    assert int(found.positive.sum()) == 2
    assert found.weights[counted].tolist() == pytest.approx([1 / int(counted.sum())] * int(counted.sum()))
    for box, deltas, kind in zip(found.boxes, found.deltas, found.classes.tolist(), strict=True):
        if kind < 4:
            sought = own.boxes[[1, 0][kind]][None]
            torch.testing.assert_close(deltas, encode(sought, box[None], (0.1, 0.2))[0])


def test_losses_of_proposals_are_those_computed_one_by_one():
    logits, positive = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([True, False, True])
    deltas, sought = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 0.25, 0.0])
    cross = sum(
        weight * math.log(1 + math.exp(-z if good else z))
        for z, good, weight in zip(logits.tolist(), positive.tolist(), weights.tolist(), strict=True)
    )
    steps = (deltas[0] - sought[0]).abs().tolist()
    for beta in (0.0, 1 / 9, 1.0):
        each = sum(step - beta / 2 if step >= beta else step**2 / (2 * beta) for step in steps)
        found = proposal_losses(logits, deltas, positive, sought, weights, beta)
        assert [value.item() for value in found] == pytest.approx([cross, 0.5 * each], rel=1e-5)


def test_losses_of_regions_look_at_the_deltas_of_the_true_class_alone():
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(3, 3, generator=generator), torch.randn(3, 2, 4, generator=generator)
    deltas.requires_grad_()
    sought, weights = torch.randn(3, 4, generator=generator), torch.tensor([0.5, 0.25, 0.25])
    found = region_losses(logits, deltas, torch.tensor([1, 2, 0]), sought, weights, 0.0)
    cross = sum(
        weight * (math.log(sum(math.exp(z) for z in row)) - row[kind])
        for row, kind, weight in zip(logits.tolist(), (1, 2, 0), weights.tolist(), strict=True)
    )
    boxes = 0.5 * (deltas[0, 1] - sought[0]).abs().sum() + 0.25 * (deltas[2, 0] - sought[2]).abs().sum()
    assert [value.item() for value in found] == pytest.approx([cross, boxes.item()], rel=1e-5)
    found[1].backward()
    assert deltas.grad.abs().sum(2).bool().tolist() == [[False, True], [False, False], [True, False]]


def test_no_number_of_a_background_region_gets_into_the_loss():
    sought = torch.full((1, 4), torch.nan)
    found = proposal_losses(torch.zeros(1), torch.zeros(1, 4), torch.tensor([False]), sought, torch.ones(1), 0.0)
    assert [value.item() for value in found] == pytest.approx([math.log(2), 0.0])


def test_detections_of_hand_made_regions():
    regions = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 18], [40, 40, 80, 80], [90, 90, 99, 99]])
    # Classes a and b and the background, in logits that softmax to tenths.
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.04, 0.9, 0.06], [0.5, 0.4, 0.1]])
    deltas = torch.zeros(4, 2, 4)
    deltas[0, 1] = torch.tensor([0, 0, 0, math.log(0.4) / 0.2])  # b is less wide
    found = detections_of(regions, shares.log(), deltas, WINDOW, 0.05, 0.5, 10)
    assert found.classes.tolist() == [1, 0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.4, 0.3]))
    expected = [[40, 40, 64, 64], [0, 0, 20, 20], [0, 0, 20, 18], [0, 6, 20, 14]]
    torch.testing.assert_close(found.boxes, torch.tensor(expected, dtype=torch.float32))
    assert len(detections_of(regions, shares.log(), deltas, WINDOW, 0.05, 0.5, 2).scores) == 2
    none = detections_of(regions[:0], shares[:0], deltas[:0], WINDOW, 0.05, 0.5, 2)
    assert (none.boxes.shape, none.scores.shape, none.classes.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(("name", "dims"), BUILDS)
def test_the_gradient_reaches_every_weight_of_any_encoder_and_of_the_detector(name, dims):
    encoder = tiny_encoder(name, dims)
    slices = slices_for(encoder, None)
    # At a transformer's stride of 16 the usual anchors are larger than the scene.
    smaller = {"anchor_scale": 2} if name == "vit" else {}
    detector = detector_of(encoder, slices=slices, **smaller).train()
    losses = detector.losses(**scene(2, depth=slices))
    assert list(losses) == ["proposal_class_loss", "proposal_box_loss", "class_loss", "box_loss"]
    torch.stack([*losses.values()]).sum().backward()
    learning = {key: p for key, p in detector.named_parameters() if p.requires_grad}
    assert len(learning) == len([*detector.parameters()]) - len(encoder.unreached())
    assert [key for key, p in learning.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [key for key, p in learning.items() if p.ndim > 1 and p.grad.abs().sum() == 0] == []


def small_unet() -> UNetEncoder:
    torch.manual_seed(1)
    return UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(4, 4, 8, 8, 8, 4), norm="instance"))


def test_images_without_boxes_have_losses_of_background_alone_whose_gradient_reaches_every_weight():
    detector, given = detector_of(small_unet()).train(), scene(2)
    given |= {"boxes": torch.zeros(2, 0, 4), "classes": torch.zeros(2, 0, dtype=torch.int64)}
    losses = detector.losses(**given)
    assert losses["proposal_box_loss"] == losses["box_loss"] == 0
    assert losses["proposal_class_loss"] > 0 < losses["class_loss"]
    torch.stack([*losses.values()]).sum().backward()
    assert [key for key, p in detector.named_parameters() if p.grad is None] == []
    padded = detector.losses(**scene(2) | {"classes": torch.full((2, 2), -1)})
    torch.testing.assert_close(padded, losses)


def test_an_image_of_which_nothing_is_left_has_losses_of_0():
    detector, given = detector_of(small_unet()).train(), scene(2)
    given["classes"][:] = -1
    losses = detector.losses(**given, windows=torch.zeros(2, 4))
    assert [value.item() for value in losses.values()] == [0.0] * 4
    torch.stack([*losses.values()]).sum().backward()
    assert detector.eval().detect(given["images"], torch.zeros(2, 4))[0].boxes.shape == (0, 4)


@pytest.mark.slow
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_images():
    detector, given = detector_of(small_unet()).double(), scene(6)
    given["images"] = given["images"].double()
    whole = detector.losses(**given)
    # Alone, an image has no more padding than it needs; on another rank, boxes of its companions may pad it more.
    single = []
    for place, most in enumerate([2, 1, 0] * 2):
        own = {name: value[place : place + 1] for name, value in given.items()}
        single.append(detector.losses(**own | {name: own[name][:, :most] for name in ("boxes", "classes")}))
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([one[name] for one in single]).mean(), value, rtol=1e-12, atol=1e-14)
    again = detector.losses(**given | {"seeds": given["seeds"] + 1})
    assert all(again[name] != whole[name] for name in ("proposal_class_loss", "class_loss"))


def test_anchors_outside_the_window_are_neither_sampled_nor_proposed():
    given, window = scene(1), torch.tensor([[8.0, 16, 40, 64]])
    (found,) = detector_of(small_unet(), score_threshold=0.0).eval().detect(given["images"], window)
    assert len(found.boxes) > 0
    assert (found.boxes >= torch.tensor([8, 16, 8, 16])).all()
    assert (found.boxes <= torch.tensor([40, 64, 40, 64])).all()
    # What the loss samples is centred inside: the head's answers elsewhere get no gradient.
    told: list[Tensor] = []
    detector = detector_of(small_unet(), sampled_anchors=4000)
    detector.proposal_head.register_forward_hook(lambda head, taken, given: told.append(given[0]))
    losses = detector.losses(**given, windows=window)
    (gradient,) = torch.autograd.grad(losses["proposal_class_loss"], told[:1])
    touched = gradient.reshape(16, 16, 3).abs().sum(2).nonzero() * 4 + 2
    assert touched.amin(0).tolist() == [10, 18]
    assert touched.amax(0).tolist() == [38, 62]


@pytest.mark.slow
def test_losses_without_values_have_shapes_so_that_memory_can_be_measured():
    detector = detector_of(small_unet()).to("meta")
    given = {name: value.to("meta") for name, value in scene(2).items()}
    losses = detector.losses(**given, windows=torch.zeros(2, 4, device="meta"))
    assert {(value.shape, value.is_meta) for value in losses.values()} == {((), True)}


def test_detections_are_ordered_and_do_not_depend_on_the_other_images_of_a_batch():
    detector, given = detector_of(small_unet(), score_threshold=0.0, most_detections=7).eval(), scene(3)
    found = detector.detect(given["images"])
    for place, one in enumerate(found):
        (alone,) = detector.detect(given["images"][place : place + 1])
        torch.testing.assert_close(vars(alone), vars(one), rtol=1e-4, atol=1e-4)
        assert len(one.scores) == 7
        assert (one.scores.diff() <= 0).all()
        assert ((one.classes >= 0) & (one.classes < 2)).all()


def test_heads_and_losses_compute_in_float32_under_autocast_and_the_pyramid_follows_it():
    detector, given = detector_of(small_unet()).train(), scene(2)
    with torch.autocast("cpu", torch.bfloat16):
        maps = detector(given["images"])
        losses = detector.losses(**given)
    assert {one.dtype for one in maps} == {torch.bfloat16}
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_a_norm_that_does_not_divide_the_pyramid_s_channels_is_refused():
    with pytest.raises(ValueError, match="norm_groups 32 does not divide the 8 channels of the pyramid"):
        Detector.Config(pyramid_channels=8, norm="group")
    normed = detector_of(small_unet(), norm="group", norm_groups=4)
    assert normed(scene(1)["images"])[0].shape == (1, 8, 16, 16)
