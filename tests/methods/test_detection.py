"""Detection: boxes move with views, units are judged where they lie in the stored samples, and errors say why."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data.boxes import Boxes
from data.views.batch import Batch
from methods.base import Views
from methods.detection.canvas import Placement
from methods.detection.detections import Detections
from methods.detection.key_slices import KeySlices
from methods.detection.mean_box import MeanBox
from methods.downstream.base import merge
from methods.downstream.detection import Detection
from methods.encoders import Encoder, ResNet3DEncoder, UNetEncoder
from tests.batches import eight_bit_batch, facts_of
from tests.cuboids import bounds, cuboids
from tests.methods.test_contract import sgd, take_steps

NAMES = {10: "first", 11: "second", 12: "third"}
SMALL = {"pyramid_channels": 8, "head_dims": (16,), "sampled_anchors": 32, "sampled_regions": 24, "size": 64}
NO_BOXES = Boxes(np.zeros((0, 2, 2), np.int64), np.zeros(0, np.int64))


def unet(dims: int = 2) -> Encoder:
    torch.manual_seed(0)
    return UNetEncoder(UNetEncoder.Config(spatial_dims=dims, in_channels=3, features=(4, 4, 8, 8, 8, 4)))


def resnet3d(**fields: object) -> Encoder:
    torch.manual_seed(0)
    config = {"in_channels": 3, "init_features": 2, "depth_strides": "vanilla", **fields}
    return ResNet3DEncoder(ResNet3DEncoder.Config.model_validate(config))


def task_of(encoder: Encoder, **fields: object) -> Detection:
    torch.manual_seed(0)
    return Detection(Detection.Config.model_validate({**SMALL, **fields}), encoder, facts_of(NAMES)).eval()


def batch_of(sizes: list[tuple[int, ...]], seed: int = 0) -> Batch:
    """Samples with a bright cuboid in each of three channels, and their boxes, whose class is the channel."""
    rng = np.random.default_rng(seed)
    phantoms = [cuboids(rng, size, 3, least=max(2, min(size) // 3)) for size in sizes]
    voxels = np.zeros((len(sizes), 3, *np.max(sizes, axis=0)), np.uint8)
    for own, (image, _) in zip(voxels, phantoms, strict=True):
        own[(slice(None), *(slice(length) for length in image.shape[1:]))] = image * 255
    batch = eight_bit_batch(torch.from_numpy(voxels), sizes, tuple(f"s-{place}" for place in range(len(sizes))))
    return replace(batch, boxes=tuple(boxes for _, boxes in phantoms))


def true_boxes(views: Views, place: int) -> dict[int, list[float]]:
    """Return the boxes of an image by their classes."""
    boxes, classes = views.targets["boxes"][place].tolist(), views.targets["classes"][place].tolist()
    return {kind: box for kind, box in zip(classes, boxes, strict=True) if kind >= 0}


def faces(mask: np.ndarray) -> np.ndarray | None:
    """Return the box of a soft mask, whose faces lie where it crosses a half between the centres of two pixels."""
    found = []
    for axis in (0, 1):
        most = mask.max(axis=1 - axis)
        seen = np.flatnonzero(most >= 0.5)
        if not len(seen):
            return None
        found.append((_crossing(most, seen[0]), len(most) - _crossing(most[::-1], len(most) - 1 - seen[-1])))
    return np.array(found).T.reshape(-1)


def _crossing(values: np.ndarray, first: int) -> float:
    """Return where values first reach a half, before the centre of the pixel that does."""
    if first == 0:
        return 0.0
    return first + 0.5 - (values[first] - 0.5) / (values[first] - values[first - 1])


def check_views(images: Tensor, views: Views, within: float) -> int:
    """Assert that each box is that of its channel's bright pixels; return how many were compared."""
    compared = 0
    for place, image in enumerate(images.numpy()):
        found = true_boxes(views, place)
        for channel, plane in enumerate(image):
            seen = bounds(plane >= 0.5)
            if seen is None or channel not in found:
                assert seen is None or (seen[1] - seen[0]).min() <= within
                assert channel not in found or np.subtract(found[channel][2:], found[channel][:2]).min() <= within + 1
                continue
            assert np.abs(np.array(found[channel]) - seen.reshape(-1)).max() <= within
            compared += 1
    return compared


@pytest.mark.parametrize("augment", [{}, {"flip_prob": 0.5, "rotate_prob": 0.5, "zoom_prob": 0.5}])
def test_boxes_of_pictures_lie_around_what_they_were_drawn_around_at_every_scale(augment):
    task = task_of(unet(), scales=(32, 48, 64), augment=augment)
    batch = batch_of([(50, 70), (64, 64), (90, 30), (33, 200)] * 3)
    views = task.views(batch, batch.rng(0))
    assert views.images[0].shape == (12, 3, 64, 64)
    assert check_views(views.images[0], views, within=2 if augment else 1) > 20
    windows = views.targets["windows"]
    longest = (windows[:, 2:] - windows[:, :2]).amax(1)
    assert set(longest.tolist()) >= ({32.0, 48.0, 64.0} if not augment else set())
    outside = torch.ones(12, 64, 64, dtype=torch.bool)
    for place, (top, left, bottom, right) in enumerate(windows.int().tolist()):
        # Zooming spreads the border over a pixel.
        outside[place, max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
    assert views.images[0].amax(1)[outside].max() == 0


def ramps_of(batch: Batch) -> Batch:
    """The samples of a batch, of which each pixel says its row, its column, and by 255 that it is one."""
    voxels = torch.zeros_like(batch.voxels)
    for own, extent in zip(voxels, batch.extents.tolist(), strict=True):
        own[(slice(None), *(slice(length) for length in extent))] = torch.stack(
            [*torch.meshgrid(*map(torch.arange, extent), indexing="ij"), torch.full(extent, 255)]
        ).to(voxels.dtype)
    return replace(batch, voxels=voxels)


def moved_faces(ramps: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return where, between pixels, the faces of a stored box lie on a view of ``ramps_of``, cut at its border.

    Linear resampling keeps ramps, so that pixels say where they came from; those near a border are not asked.
    """
    found = np.zeros((2, 2))
    inside = ramps[2] > 1 - 1e-5
    for ramp, low, high in zip(ramps[:2], *box, strict=True):
        ramp = ramp * 255
        first, last = np.quantile(ramp[inside], (0.25, 0.75))
        middle = inside & (ramp >= first) & (ramp <= last)
        places, sources = np.argwhere(middle), ramp[middle]
        axis = int(np.abs(np.corrcoef(sources, places.T)[0, 1:]).argmax())
        slope, start = np.polyfit(sources, places[:, axis] + 0.5, 1)
        assert np.abs(slope * sources + start - places[:, axis] - 0.5).max() < 0.1
        found[:, axis] = np.sort(slope * (np.array([low, high]) - 0.5) + start).clip(0, ramp.shape[axis])
    return found.reshape(-1)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [{}, {"flip_prob": 0.5, "rotate_prob": 0.5, "zoom_prob": 0.5}])
def test_faces_are_within_half_a_pixel_of_where_the_voxels_went(augment):
    """Resized, padded, turned, mirrored, zoomed and cut; a mask that was resampled twice is blurred beyond that."""
    task = task_of(unet(), scales=(32, 48, 64), augment=augment)
    rounded, blurred = [], []
    for seed in range(4):
        batch = batch_of([(50, 70), (64, 64), (90, 30), (33, 200)] * 3, seed)
        views = task.views(batch, batch.rng(seed))
        ramps = task.views(ramps_of(batch), batch.rng(seed)).images[0].numpy()
        for place, image in enumerate(views.images[0].numpy()):
            for kind, box in true_boxes(views, place).items():
                exact = moved_faces(ramps[place], batch.boxes[place].corners[kind])
                rounded.append(np.abs(np.subtract(box, exact)).max())
                seen = faces(image[kind])
                if seen is not None:
                    blurred.append(np.abs(seen - exact).max())
    assert len(blurred) > 100
    assert max(rounded) <= 0.52  # half a pixel, and the slope's error where shrinking smooths the ramps
    assert max(blurred) <= 0.35


def test_a_volume_is_seen_in_slices_around_a_plane_that_its_boxes_cut():
    task = task_of(resnet3d(), slices=5, augment={"flip_prob": 0.5, "flip_axes": ("D", "H", "W")})
    batch = batch_of([(12, 40, 50), (9, 64, 30), (3, 30, 30)] * 4)
    views = task.views(batch, batch.rng(1))
    assert views.images[0].shape == (12, 3, 5, 64, 64)
    assert check_views(views.images[0][:, :, 2], views, within=1) >= 12
    for place, own in enumerate(batch.boxes):
        low, high = views.boxes[0][place]
        assert low[1:].tolist() == [0, 0]
        assert high[1:].tolist() == batch.extents[place, 1:].tolist()
        assert 0 <= low[0] < high[0] <= batch.extents[place, 0]
        assert len(own.of_plane(int(low[0] + high[0]) // 2)) > 0 or high[0] - low[0] < 5
    assert all(len(true_boxes(views, place)) > 0 for place in range(12))


def test_slices_beyond_a_volume_s_end_repeat_its_last_one():
    batch = batch_of([(4, 6, 7)])
    planes = batch.sample(0)
    seen = KeySlices(5).image(batch, 0, 1)
    torch.testing.assert_close(seen, planes[:, [0, 0, 1, 2, 3]])
    torch.testing.assert_close(KeySlices(4).image(batch, 0, 3), planes[:, [1, 2, 3, 3]])
    assert KeySlices(5).region(np.array([4, 6, 7]), 3).tolist() == [[1, 0, 0], [4, 6, 7]]
    assert KeySlices(None).region(np.array([6, 7]), 0).tolist() == [[0, 0], [6, 7]]


@pytest.mark.slow
def test_key_slices_are_the_planes_that_boxes_cut_and_each_is_drawn_equally_often():
    own = Boxes(np.array([[[2, 0, 0], [4, 3, 3]], [[7, 1, 1], [8, 2, 2]]]), np.array([10, 11]))
    none = Boxes(np.zeros((0, 2, 3), np.int64), np.zeros(0, np.int64))
    extent, slices = np.array([9, 5, 5]), KeySlices(3)
    assert slices.judged(own, extent) == [2, 3, 7]
    assert slices.judged(none, extent) == [4]
    assert slices.unit("v-1", 7) == "v-1/00007"
    batch = batch_of([(9, 5, 5)] * 2)
    drawn = [slices.drawn([own, none], batch.extents, batch.rng(seed)) for seed in range(900)]
    first, second = (np.bincount(planes, minlength=9) for planes in np.array(drawn).T)
    assert np.flatnonzero(first).tolist() == [2, 3, 7]
    assert np.abs(first[[2, 3, 7]] - 300).max() < 60
    assert np.abs(second - 100).max() < 40


def test_views_of_a_sample_do_not_depend_on_the_rest_of_the_batch_and_change_with_the_seed():
    task, batch = task_of(unet(), scales=(32, 64), augment={"flip_prob": 0.5}), batch_of([(50, 70), (64, 64)])
    whole = task.views(batch, batch.rng(0))
    one = batch_of([(50, 70), (64, 64)])
    alone = replace(one, **{name: getattr(one, name)[:1] for name in vars(one) if getattr(one, name) is not None})
    single = task.views(alone, alone.rng(0))
    torch.testing.assert_close(single.images[0], whole.images[0][:1])
    for name, target in single.targets.items():
        torch.testing.assert_close(target, whole.targets[name][:1])
    other = task.views(batch, batch.rng(1))
    assert not torch.equal(other.images[0], whole.images[0])
    assert (other.targets["seeds"] != whole.targets["seeds"]).all()


@pytest.mark.parametrize("extent", [(50, 70), (64, 64), (7, 200), (300, 11), (32, 32)])
@pytest.mark.parametrize("canvas", [(64, 64), (64, 96)])
def test_boxes_return_from_the_canvas_to_where_they_were(extent, canvas):
    place = Placement.of(extent, max(canvas), canvas)
    assert max(place.size[0] - canvas[0], place.size[1] - canvas[1]) == 0
    _, boxes = cuboids(np.random.default_rng(0), extent, 5, least=5)
    onto = torch.from_numpy(boxes.moved(place.to_canvas, place.canvas).corners.reshape(-1, 4)).double()
    factor = min(size / length for size, length in zip(place.size, extent, strict=True))
    found = place.back(onto)
    assert np.abs(found.numpy() - boxes.corners.reshape(-1, 4)).max() <= max(0.5, 1.01 / factor)
    whole = torch.from_numpy(place.window.corners.reshape(1, 4)).double()
    assert place.back(whole).tolist() == [[0, 0, *extent]]
    assert place.back(whole + torch.tensor([-9.0, -9, 9, 9])).tolist() == [[0, 0, *extent]]


class Oracle(torch.nn.Module):
    """Finds, with falling scores, the box around the bright pixels of each channel."""

    def detect(self, images: Tensor, windows: Tensor) -> list[Detections]:
        planes = images if images.ndim == 4 else images[:, :, images.shape[2] // 2]
        found = []
        for image in planes.numpy():
            seen = [
                (channel, box) for channel, plane in enumerate(image) if (box := bounds(plane >= 0.5)) is not None
            ]
            boxes = torch.tensor(np.array([box.reshape(-1) for _, box in seen]).reshape(-1, 4)).float()
            kinds = torch.tensor([channel for channel, _ in seen], dtype=torch.int64)
            found.append(Detections(boxes, 0.9 - kinds.float() / 10, kinds))
        return found


@pytest.mark.parametrize("dims", [2, 3])
def test_a_detector_that_sees_everything_scores_1_where_the_boxes_lie_in_the_stored_samples(dims):
    task = task_of(unet() if dims == 2 else resnet3d(), **({} if dims == 2 else {"slices": 5}))
    task.network = Oracle()
    sizes = [(50, 70), (64, 64), (90, 40)] if dims == 2 else [(12, 40, 50), (9, 64, 60), (3, 30, 30)]
    batch = batch_of(sizes)
    judgement = task.judge(batch)
    scores = task.scores(judgement.evidence)
    assert scores.metrics["ap50"] == scores.metrics["mfroc"] == scores.metrics["score"] == 1.0
    assert scores.metrics["ap75"] > 0.9
    assert set(scores.metrics) >= {"ap", "ap50/first", "sensitivity_at_0.5", "sensitivity_at_4"}
    units = list(judgement.evidence)
    assert scores.cases["case"] == units
    if dims == 2:
        assert units == ["s-0", "s-1", "s-2"]
    else:
        cut = {plane for box in batch.boxes[0].corners for plane in range(box[0, 0], box[1, 0])}
        assert [unit for unit in units if unit.startswith("s-0")] == [f"s-0/{plane:05d}" for plane in sorted(cut)]
    for (place, true, told), own in zip(judgement.seen, batch.boxes, strict=True):
        assert true.shape[1] == told.shape[1] == 8
        if dims == 2:
            assert true[:, 4:].tolist() == own.corners.reshape(-1, 4).tolist()
            assert (true[:, 0] == 0).all()
        assert place in range(3)
        assert len(told) == len(true)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_evidence_does_not_depend_on_how_samples_are_batched(dims):
    fields = {"score_threshold": 0.0, "most_detections": 5}
    task = task_of(unet() if dims == 2 else resnet3d(), **fields, **({} if dims == 2 else {"slices": 5}))
    size = (40, 50) if dims == 2 else (8, 40, 50)
    batch = batch_of([size] * 3)
    whole = task.judge(batch).evidence
    apart = merge(
        [
            task.judge(replace(batch, **{n: v[k : k + 1] for n, v in vars(batch).items() if v is not None})).evidence
            for k in range(3)
        ],
        task.joined,
    )
    assert list(apart) == sorted(whole)
    for unit, rows in whole.items():
        assert (rows[:, 0] == 0).sum() == 5
        np.testing.assert_allclose(apart[unit], rows, rtol=1e-3, atol=1e-3)


def test_the_mean_box_is_that_of_the_training_images_in_shares_of_their_sizes():
    first = Boxes(np.array([[[0, 10], [10, 30]], [[10, 20], [20, 40]], [[0, 0], [20, 40]]]), np.array([0, 0, 2]))
    second = Boxes(np.array([[[0, 0], [50, 50]]]), np.array([0]))
    mean = MeanBox([first, second, NO_BOXES], [(20, 40), (100, 50), (7, 7)])
    assert mean.classes.tolist() == [0, 2]
    torch.testing.assert_close(mean.boxes, torch.tensor([[0.5 / 3, 0.25, 2 / 3, 2.75 / 3], [0, 0, 1, 1]]))
    torch.testing.assert_close(mean.shares, torch.tensor([2 / 3, 1 / 3]))
    one, other = mean.detect(torch.zeros(2, 1, 80, 80), torch.tensor([[0.0, 0, 60, 40], [10, 20, 70, 60]]))
    torch.testing.assert_close(one.boxes, torch.tensor([[10, 10, 40, 110 / 3], [0, 0, 60, 40]]))
    torch.testing.assert_close(other.boxes, one.boxes + torch.tensor([10.0, 20, 10, 20]))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_mean_box_is_judged_in_place_of_the_network(dims):
    task = task_of(unet() if dims == 2 else resnet3d(), **({} if dims == 2 else {"slices": 5}))
    batch = batch_of([(50, 70)] if dims == 2 else [(2, 50, 70)])
    task.network = task.mean_box([batch])
    # Of a single image, or of planes with the same boxes, the mean is right.
    assert task.scores(task.judge(batch).evidence).metrics["ap50"] == pytest.approx(1.0)
    others = task.scores(task.judge(batch_of([(50, 70)] if dims == 2 else [(2, 50, 70)], seed=5)).evidence)
    assert others.metrics["ap50"] < 1


@pytest.mark.parametrize("dims", [2, 3])
def test_the_mean_box_scores_without_voxels_what_it_scores_in_place_of_the_network(dims):
    sizes = [(50, 70), (64, 64), (30, 90)] if dims == 2 else [(4, 50, 70), (3, 64, 64)]
    task = task_of(unet() if dims == 2 else resnet3d(), **({} if dims == 2 else {"slices": 5}))
    trained, others = batch_of(sizes), batch_of(sizes, seed=5)
    located = [[*zip(batch.boxes, batch.extents, strict=True)] for batch in (trained, others)]
    apart = task.mean_box_scores(located[0], dict(zip(others.sample_ids, located[1], strict=True)))
    task.network = task.mean_box([trained])
    expected = task.scores(task.judge(others).evidence)
    assert (0 < expected.metrics["mfroc"] < 1) == (dims == 2)
    assert (apart.cases["detections"] > 0).all()
    assert apart.metrics == pytest.approx(expected.metrics)
    assert sorted(apart.cases["case"]) == sorted(expected.cases["case"])


def test_a_mean_of_no_boxes_is_refused():
    with pytest.raises(ValueError, match="mean box: 0 boxes in 2 training images, expected at least 1; `raydiology"):
        MeanBox([NO_BOXES] * 2, [(20, 40), (7, 7)])


@pytest.mark.slow
def test_training_goes_on_bit_for_bit_after_a_checkpoint_round_trip():
    batch, saved = batch_of([(50, 70), (64, 64)]), io.BytesIO()
    task = task_of(unet()).train()
    take_steps(task, sgd(task, lr=0.01), batch, range(2))
    torch.save(task.state_dict(), saved)
    undisturbed = take_steps(task, sgd(task, lr=0.01), batch, range(2, 5))
    resumed = task_of(unet()).train()
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    assert take_steps(resumed, sgd(resumed, lr=0.01), batch, range(2, 5)) == undisturbed
    for key, value in task.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_the_loss_is_the_sum_of_its_parts():
    task, batch = task_of(unet()).train(), batch_of([(50, 70), (64, 64)])
    losses = task.loss(task.views(batch, batch.rng(0)))
    assert losses.total.item() == pytest.approx(sum(part.item() for part in losses.parts.values()), rel=1e-6)
    assert set(losses.parts) == {"proposal_class_loss", "proposal_box_loss", "class_loss", "box_loss"}


def test_a_batch_without_any_box_is_trained_on_and_judged():
    task, batch = task_of(unet()), batch_of([(50, 70), (64, 64)])
    batch = replace(batch, boxes=(NO_BOXES, NO_BOXES))
    views = task.views(batch, batch.rng(0))
    assert views.targets["boxes"].shape == (2, 0, 4)
    assert torch.isfinite(task.train().loss(views).total)
    assert set(task.eval().judge(batch).evidence) == {"s-0", "s-1"}


def test_unknown_boxes_and_classes_without_a_name_are_refused():
    task, batch = task_of(unet()), batch_of([(50, 70), (64, 64)])
    unknown = replace(batch, boxes=(batch.boxes[0], None))
    with pytest.raises(ValueError, match="1 of the 2 samples of a batch have unknown boxes; expected boxes for each"):
        task.views(unknown, batch.rng(0))
    with pytest.raises(ValueError, match="2 of the 2 samples of a batch have unknown boxes"):
        task.judge(replace(batch, boxes=None))
    odd = Boxes(batch.boxes[0].corners, batch.boxes[0].classes + 30)
    with pytest.raises(
        ValueError, match="sample s-0 has a box of class 40, the shards name 10, 11, 12; ingest again"
    ):
        task.judge(replace(batch, boxes=(odd, batch.boxes[1])))
    with pytest.raises(ValueError, match="the shards name 0 classes of boxes, expected at least 1"):
        Detection(Detection.Config(**SMALL), unet(), facts_of({}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 60}, r"size \(60, 60\): 60 is not a multiple of the encoder's stride 16; use 64"),
        ({"size": 64, "scales": (32, 65)}, "scales 65 exceeds the longer side of downstream.task.size, 64; lower it"),
        ({"size": (64, 96), "scale": 97}, "scale 97 exceeds the longer side of downstream.task.size, 96; lower it"),
        ({"size": (64, 64, 64)}, r"size \(64, 64, 64\) has 3 axes, the encoder has 2"),
        ({"slices": 9}, "slices 9: the encoder sees images"),
    ],
)
def test_sizes_that_the_network_cannot_see_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        task_of(unet(), **fields)


def test_samples_with_another_number_of_axes_are_refused_and_a_card_tells_the_outputs():
    task = task_of(resnet3d())
    task.check_extent((9, 512, 512))
    with pytest.raises(ValueError, match=r"samples of size \(512, 512\) has 2 axes, the encoder has 3"):
        task.check_extent((512, 512))
    assert task.card() == {
        "class_names": ["first", "second", "third"],
        "class_numbers": [10, 11, 12],
        "size": [9, 64, 64],
    }
