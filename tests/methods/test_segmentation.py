"""Segmentation: crops and labels that are trained on, the loss, sliding-window prediction, and counting by volume."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from monai.metrics import compute_average_surface_distance
from safetensors.torch import load, save
from torch import Tensor, nn

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from methods.base import Views
from methods.downstream.base import merge
from methods.downstream.metrics import score
from methods.downstream.segmentation import Segmentation
from methods.downstream.surfaces import surface_distance
from methods.downstream.targets import Regions, dice_ce_loss
from methods.encoders import UNetEncoder
from tests.batches import eight_bit_batch, facts_of

RELEASED = Segmentation.Config(variant="released").augment
NAMES = {0: "air", 3: "liver", 7: "spleen"}
STORED = 40  # a voxel of class k is stored as k * STORED


def method_of(dims: int = 2, names: dict[int, str] = NAMES, **fields: Any) -> Segmentation:
    torch.manual_seed(0)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=dims, features=(8, 8, 16, 16, 16, 8)))
    config = {"crop_size": (32,) * dims, "augment": Augmentation(), **fields}
    return Segmentation(Segmentation.Config(**config), encoder, facts_of(names))


class Oracle(nn.Module):
    """Reads the class off the intensity, which is class * STORED / 255; so prediction is perfect where it is seen."""

    def forward(self, images: Tensor) -> Tensor:
        level = images[:, 0] * 255 / STORED
        return -torch.stack([(level - k).abs() for k in range(3)], dim=1)


def label_map(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Draw a map of stored label values with two organs."""
    values = np.zeros(size, dtype=np.uint8)
    for value in (3, 7):
        low = [int(rng.integers(0, s - s // 3)) for s in size]
        values[tuple(slice(a, a + s // 3) for a, s in zip(low, size, strict=True))] = value
    return values


def batch_of(sizes: list[tuple[int, ...]], volumes: list[str] | None = None, seed: int = 0) -> Batch:
    """Samples whose voxels tell their class; padded with 0 to the largest."""
    rng = np.random.default_rng(seed)
    padded = tuple(np.max(sizes, axis=0))
    labels = np.zeros((len(sizes), *padded), dtype=np.uint8)
    for sample, size in zip(labels, sizes, strict=True):
        sample[tuple(slice(0, s) for s in size)] = label_map(rng, size)
    classes = np.searchsorted([0, 3, 7], labels)
    ids = tuple(f"s-{i}" for i in range(len(sizes)))
    voxels = torch.from_numpy((classes * STORED).astype(np.uint8))[:, None]
    batch = eight_bit_batch(voxels, sizes, ids)
    return replace(batch, volumes=tuple(volumes) if volumes else ids, labels=torch.from_numpy(labels))


def part(batch: Batch, index: list[int]) -> Batch:
    """Return some samples of a batch."""
    return Batch(
        voxels=batch.voxels[index],
        extents=batch.extents[index],
        scale=batch.scale[index],
        offset=batch.offset[index],
        spacing_mm=batch.spacing_mm[index],
        sample_ids=tuple(batch.sample_ids[i] for i in index),
        volumes=tuple(batch.volumes[i] for i in index),
        numbers=batch.numbers[index],
        rows=batch.rows[index],
        epochs=batch.epochs[index],
        labels=None if batch.labels is None else batch.labels[index],
    )


@pytest.mark.parametrize("size", [(50, 40), (20, 45), (36, 40, 34)])
def test_crops_show_the_voxels_whose_classes_they_are_trained_on(size: tuple[int, ...]) -> None:
    method, batch = method_of(len(size)), batch_of([size, size], seed=4)
    views = method.views(batch, batch.rng(1))
    assert views.targets["classes"].shape == (2, 2, *method.config.crop_size)
    for image, classes in zip(views.images, views.targets["classes"], strict=True):
        torch.testing.assert_close(image[:, 0], classes.float() * STORED / 255)
    assert {int(k) for k in views.targets["classes"].unique()} == {0, 1, 2}


def test_boxes_say_where_the_crops_were_cut() -> None:
    method, batch = method_of(), batch_of([(50, 40), (60, 64)])
    views = method.views(batch, batch.rng(1))
    for image, boxes in zip(views.images, views.boxes, strict=True):
        for index, ((top, left), (bottom, right)) in enumerate(boxes.tolist()):
            torch.testing.assert_close(image[index], batch.voxels[index, :, top:bottom, left:right] / 255)


def test_views_do_not_depend_on_how_samples_are_batched() -> None:
    method, batch = method_of(augment=RELEASED), batch_of([(50, 40), (60, 64), (33, 70), (20, 90)])
    whole = method.views(batch, batch.rng(5))
    for index in range(4):
        alone = method.views(part(batch, [index]), batch.rng(5).take(np.array([index])))
        for one, all_ in zip(alone.images, whole.images, strict=True):
            torch.testing.assert_close(one[0], all_[index], rtol=0, atol=0)
        torch.testing.assert_close(alone.targets["classes"][:, 0], whole.targets["classes"][:, index])


def test_augmented_labels_move_with_their_image() -> None:
    method = method_of(augment=RELEASED, organ_prob=1.0)
    still = method_of(organ_prob=1.0)
    batch = batch_of([(50, 40)] * 64)
    views, unmoved = method.views(batch, batch.rng(2)), still.views(batch, batch.rng(2))
    moved = 0
    for image, classes, before in zip(
        views.images, views.targets["classes"], unmoved.targets["classes"], strict=True
    ):
        for k in range(64):
            level = image[k, 0] * 255 / STORED
            # Scale and shift change intensities by a tenth of the range at most, smoothing by more near borders.
            means = [float(level[classes[k] == c].mean()) for c in range(3) if (classes[k] == c).any()]
            assert means == sorted(means)
            moved += not torch.equal(classes[k], before[k])
    # One of two flips (p .25 each) or a quarter-turn (p .25) happens with p = 1 - .75**3 = .58.
    assert moved / 128 == pytest.approx(0.58, abs=0.15)


def test_variants_say_which_axes_are_flipped_and_how_noise_is_drawn() -> None:
    paper, released = (Segmentation.Config(variant=name).augment for name in ("paper", "released"))
    assert (paper.flip_axes, paper.noise_sigma) == (("H",), (0.01, 0.01))
    assert (released.flip_axes, released.noise_sigma) == (("D", "H", "W"), (0.0, 0.01))
    mixed = Segmentation.Config(variant="released", augment={"flip_axes": ["H"]}).augment
    assert (mixed.flip_axes, mixed.noise_sigma, mixed.rotate_prob) == (("H",), (0.0, 0.01), 0.25)
    assert Segmentation.Config().augment == paper


def test_a_resolved_config_reads_back_as_itself() -> None:
    config = Segmentation.Config(variant="released", augment={"flip_prob": 0.1})
    assert Segmentation.Config.model_validate_json(config.model_dump_json()) == config


def test_labels_that_are_not_asked_for_count_as_background() -> None:
    method = method_of(labels=(7,))
    assert method.class_names == ("background", "spleen")
    batch = batch_of([(40, 40)])
    _, classes = method._decode(batch)
    torch.testing.assert_close(classes == 1, batch.labels == 7)


def test_loss_is_monai_s_dice_ce_loss() -> None:
    method, batch = method_of(), batch_of([(50, 40), (60, 64)])
    views = method.views(batch, batch.rng(0))
    losses = method.loss(views)
    logits = method.network(torch.cat(views.images))
    expected = DiceCELoss(to_onehot_y=True, softmax=True)(logits, views.targets["classes"].flatten(0, 1).unsqueeze(1))
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(losses.total.detach(), losses.parts["dice_loss"] + losses.parts["cross_entropy"])


def test_weights_multiply_the_terms_of_the_loss_but_not_what_is_logged() -> None:
    batch = batch_of([(50, 40), (60, 64)])
    plain, weighted = method_of(), method_of(dice_weight=0.5, cross_entropy_weight=3)
    views = plain.views(batch, batch.rng(0))
    before, after = plain.loss(views), weighted.loss(views)
    assert before.parts == after.parts
    dice, cross_entropy = before.parts["dice_loss"], before.parts["cross_entropy"]
    torch.testing.assert_close(after.total.detach(), 0.5 * dice + 3 * cross_entropy)
    regions = method_of(dice_weight=0, cross_entropy_weight=2, regions={"both": (3, 7)}).loss(views)
    torch.testing.assert_close(regions.total.detach(), 2 * regions.parts["cross_entropy"])
    with pytest.raises(ValueError, match=r"dice_weight and cross_entropy_weight are both 0: nothing is learnt"):
        method_of(dice_weight=0, cross_entropy_weight=0)


def test_windows_overlap_by_a_share_of_their_own_along_each_axis() -> None:
    class Counter(nn.Module):
        num_windows = 0

        def forward(self, images: Tensor) -> Tensor:
            self.num_windows += len(images)
            return images.repeat(1, 3, 1, 1)

    for overlap, expected in ((0, 2 * 2), (0.5, 3 * 3), ((0, 0.5), 2 * 3), ((0.75, 0), 5 * 2)):
        method = method_of(window_overlap=overlap)
        method.network = counter = Counter()
        method.predict(torch.zeros(1, 1, 64, 64))
        assert counter.num_windows == expected, overlap
    with pytest.raises(ValueError, match=r"window_overlap \(0.5, 0.5, 0.5\) has 3 axes, the encoder has 2"):
        method_of(window_overlap=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"less than 1"):
        method_of(window_overlap=(0.5, 1.0))


@pytest.mark.parametrize("dims", [2, 3])
def test_of_each_predicted_label_the_largest_connected_part_is_scored(dims: int) -> None:
    size = (40,) * dims
    true = np.zeros(size, np.uint8)
    true[(slice(2, 12),) * dims] = 3
    true[(slice(20, 30),) * dims] = 7
    batch = batch_of([size])
    batch = replace(batch, labels=torch.from_numpy(true)[None])
    shown = np.searchsorted([0, 3, 7], true)
    shown[(slice(12, 14),) * dims] = 1  # touches the organ at a corner
    shown[(slice(34, 38),) * dims] = 1  # lies apart
    shown[(slice(16, 17),) * dims] = 2
    batch = replace(batch, voxels=torch.from_numpy((shown * STORED).astype(np.uint8))[None, None])
    kept = shown.copy()
    kept[(slice(34, 38),) * dims] = 0
    kept[(slice(16, 17),) * dims] = 0
    for largest, expected in ((False, shown), (True, kept)):
        method = method_of(dims, crop_size=(32,) * dims, largest_component=largest)
        method.network = Oracle()
        ((_, _, predicted),) = method.judge(batch).seen
        np.testing.assert_array_equal(predicted.numpy(), expected)


def test_regions_keep_their_largest_parts_each_on_its_own() -> None:
    target = Regions({"whole": (3, 7), "core": (7,)})
    regions = torch.zeros(2, 12, 12, dtype=torch.bool)
    regions[0, 1:8, 1:8] = regions[1, 2:4, 2:4] = regions[1, 6:7, 6:7] = regions[0, 10, 10] = True
    kept = target.keep_largest(regions)
    assert [int(region.sum()) for region in kept] == [49, 4]
    assert bool(kept[1, 3, 3])
    assert not target.keep_largest(torch.zeros(2, 4, 4, dtype=torch.bool)).any()


def test_a_largest_part_is_refused_where_samples_are_slices_of_volumes_that_are_scored() -> None:
    with pytest.raises(ValueError, match=r"largest_component: the samples are slices, .*set largest_component=false"):
        method_of(largest_component=True).check_volumes(sliced=True)
    method_of(largest_component=True).check_volumes(sliced=False)
    method_of(largest_component=False).check_volumes(sliced=True)
    method_of(largest_component=True, convention="thesis").check_volumes(sliced=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_surface_distances_are_monai_s_in_millimetres_and_missing_where_a_mask_is_empty(dims: int) -> None:
    rng, spacing = np.random.default_rng(dims), np.array([3.0, 0.5, 2.0])[-dims:].astype(np.float32)
    for _ in range(5):
        low = rng.integers(0, 6, (2, dims))
        masks = np.zeros((2, *(16,) * dims), bool)
        for mask, corner in zip(masks, low, strict=True):
            mask[tuple(slice(a, a + int(rng.integers(3, 10))) for a in corner)] = True
        one_hot = [torch.from_numpy(np.stack([~mask, mask]))[None] for mask in masks]
        expected = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing.tolist())
        assert surface_distance(*masks, spacing) == pytest.approx(expected.item(), rel=1e-6)
        assert surface_distance(masks[0], masks[0], spacing) == 0
        assert np.isnan(surface_distance(masks[0], np.zeros_like(masks[0]), spacing))


def test_cases_of_whole_samples_have_surface_distances_and_volumes_of_slices_have_none() -> None:
    batch = replace(batch_of([(40, 40), (44, 40)]), spacing_mm=np.array([[2, 1], [1, 1]], np.float32))
    assert batch.labels is not None
    moved = batch.labels.clone()
    moved[0, 1:] = batch.labels[0, :-1]  # the truth is one row, 2 mm, lower than what the voxels show
    batch = replace(batch, labels=moved)
    found = {}
    for distances in (False, True):
        method = method_of(surface_distance=distances)
        method.network = Oracle()
        found[distances] = method.scores(merge([count(method, part(batch, [0])), count(method, part(batch, [1]))]))
    assert found[True].metrics == found[False].metrics
    assert found[True].remarks == found[False].remarks
    assert "surface_distance_mm" not in found[False].cases
    cases = found[True].cases
    assert (cases["case"], cases["label"]) == (["s-0", "s-0", "s-1", "s-1"], ["liver", "spleen"] * 2)
    assert cases["surface_distance_mm"][2:].tolist() == [0, 0]
    unmoved = batch_of([(40, 40), (44, 40)]).labels
    assert unmoved is not None
    truth, shown = (np.searchsorted([0, 3, 7], labels[0, :40, :40]) == 1 for labels in (moved, unmoved))
    expected = surface_distance(truth, shown, np.array([2, 1], np.float32))
    assert 0 < expected < 2
    assert cases["surface_distance_mm"][0] == expected
    sliced = method.scores(count(method, replace(batch, volumes=("v", "v")))).cases
    assert np.isnan(sliced["surface_distance_mm"]).all()
    planes = method_of(surface_distance=True, convention="thesis")
    planes.network = Oracle()
    by_slice = planes.scores(count(planes, batch)).cases["surface_distance_mm"].reshape(2, 3)
    assert np.isnan(by_slice[:, 0]).all(), "the background has no surface distance"
    np.testing.assert_array_equal(by_slice[:, 1:].flatten(), cases["surface_distance_mm"])


def test_dice_loss_equals_a_slow_reference_with_and_without_background() -> None:
    torch.manual_seed(2)
    logits, classes = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randint(0, 3, (2, 5, 4))
    probability = logits.softmax(1).numpy()
    for background in (True, False):
        per_class = []
        for image in range(2):
            for k in range(0 if background else 1, 3):
                truth = (classes[image] == k).numpy().astype(float)
                common = (probability[image, k] * truth).sum()
                per_class.append(1 - (2 * common + 1e-5) / (probability[image, k].sum() + truth.sum() + 1e-5))
        dice, cross_entropy = dice_ce_loss(logits, classes, background)
        assert dice.item() == pytest.approx(np.mean(per_class), abs=1e-12)
        picked = np.take_along_axis(probability, classes.numpy()[:, None], axis=1)
        assert cross_entropy.item() == pytest.approx(-np.log(picked).mean(), abs=1e-12)


def test_gradients_reach_every_parameter() -> None:
    method, batch = method_of(), batch_of([(50, 40), (60, 64)])
    method.loss(method.views(batch, batch.rng(0))).total.backward()
    # A bias before instance normalisation has no effect: its gradient is there, and is zero up to rounding.
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_sliding_window_prediction_equals_the_network_everywhere_even_on_small_images(blend: str) -> None:
    method = method_of(window_blend=blend, window_batch=3)
    method.network = Oracle()
    batch = batch_of([(70, 90), (20, 33), (70, 90), (32, 32)])
    seen = 0
    for index, true, predicted in method.judge(batch).seen:
        assert tuple(predicted.shape) == tuple(batch.extents[index])
        torch.testing.assert_close(predicted, true.long())
        seen += 1
    assert seen == 4


def test_slices_are_reassembled_to_volumes_across_batches() -> None:
    volumes = ["v-1", "v-2", "v-1", "v-2", "v-1"]
    batch = batch_of([(40, 40), (36, 50), (40, 40), (36, 50), (40, 40)], volumes)
    method = method_of().eval()
    together = count(method, batch)
    apart = merge([count(method, part(batch, [3, 0])), count(method, part(batch, [1, 2, 4]))])
    assert list(together) == list(apart) == ["v-1", "v-2"]
    for volume, voxels in (("v-1", 3 * 1600), ("v-2", 2 * 1800)):
        np.testing.assert_array_equal(together[volume], apart[volume])
        assert together[volume].sum() == voxels


def count(method: Segmentation, batch: Batch) -> dict[str, np.ndarray]:
    return method.judge(batch).evidence


def test_a_volume_counts_the_same_as_its_slices_and_a_perfect_prediction_scores_one() -> None:
    volume = batch_of([(6, 40, 44)], seed=3)
    slices = Batch(
        voxels=volume.voxels[0].movedim(0, 1),
        extents=np.tile([40, 44], (6, 1)),
        scale=volume.scale.expand(6),
        offset=volume.offset.expand(6),
        spacing_mm=np.ones((6, 2), dtype=np.float32),
        sample_ids=tuple(f"s-{i}" for i in range(6)),
        volumes=("s-0",) * 6,
        numbers=np.arange(6),
        rows=np.arange(6),
        epochs=np.zeros(6, dtype=np.int64),
        labels=volume.labels[0],
    )
    in_3d, in_2d = method_of(3, crop_size=(32, 32, 32)), method_of(2)
    in_3d.network, in_2d.network = Oracle(), Oracle()
    as_volume, as_slices = count(in_3d, volume), count(in_2d, slices)
    np.testing.assert_array_equal(as_volume["s-0"], as_slices["s-0"])
    scores = score(np.stack(list(as_volume.values())), in_3d.class_names)
    assert scores.dice == {"liver": 1.0, "spleen": 1.0}


def test_under_the_thesis_convention_slices_are_the_units() -> None:
    batch = batch_of([(40, 40), (40, 40)], ["v-1", "v-1"])
    assert list(count(method_of(convention="thesis"), batch)) == ["s-0", "s-1"]
    volume = batch_of([(5, 40, 40)])
    planes = count(method_of(3, convention="thesis"), volume)
    assert list(planes) == [f"s-0/{d:05d}" for d in range(5)]
    assert {int(counts.sum()) for counts in planes.values()} == {1600}


@pytest.mark.parametrize("given", ["spleen", 7])
def test_under_single_class_the_score_is_the_iou_of_the_label_that_its_name_or_value_names(given: str | int) -> None:
    method, batch = method_of(convention="single_class", scored_class=given), batch_of([(40, 40), (40, 40)])
    counts = {sample: np.array([[1500, 0, 0], [0, 50, 0], [20, 0, 30]]) for sample in batch.sample_ids}
    counts["s-1"] = np.array([[1550, 0, 0], [10, 40, 0], [0, 0, 0]])  # without a spleen
    metrics = method.scores(counts).metrics
    assert metrics["score"] == metrics["iou_mean"] == metrics["iou/spleen"] == pytest.approx(30 / 50)
    assert metrics["dice_mean"] == pytest.approx(60 / 80)
    assert metrics["iou/liver"] == pytest.approx((1 + 40 / 50) / 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scored_class": "splen"},
            r"scored_class: 'splen' .*learnt \(did you mean spleen\?\); expected one of \['liver'",
        ),
        (
            {"scored_class": 5},
            r"scored_class: 5 is not among .*expected one of \['liver', 'spleen'\] or values \[3, 7\]",
        ),
        ({"scored_class": "spleen", "labels": (3,)}, r"scored_class: 'spleen' is not among .*one of \['liver'\] or"),
        (
            {"scored_class": 2, "regions": {"all": (3, 7)}},
            r"scored_class: 2 is not among .*expected one of \['all'\]$",
        ),
        ({}, r"scored_class: missing beside convention single_class; name the one label"),
        (
            {"convention": "volume", "scored_class": 3},
            r"scored_class 3 beside convention volume, which .*leave scored",
        ),
    ],
    ids=["misspelt", "unknown value", "not learnt", "region", "none", "other convention"],
)
def test_a_class_that_cannot_be_scored_alone_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_of(**{"convention": "single_class", **fields})


def test_a_region_can_be_scored_alone() -> None:
    method = method_of(convention="single_class", scored_class="all", regions={"all": (3, 7), "spleen": (7,)})
    counts = {"v": np.array([[[80, 5], [5, 10]], [[90, 0], [5, 5]]])}
    assert method.scores(counts).metrics["score"] == pytest.approx(10 / 20)


def test_weights_survive_safetensors_and_the_encoder_is_stored_once() -> None:
    method = method_of()
    state = method.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    restored = method_of()
    for parameter in restored.parameters():
        nn.init.zeros_(parameter)
    restored.load_state_dict(load(save(dict(state))))
    for name, value in restored.encoder.state_dict().items():
        torch.testing.assert_close(value, method.encoder.state_dict()[name], rtol=0, atol=0)


@pytest.mark.slow
def test_a_short_training_finds_the_organs() -> None:
    method, batch = method_of(), batch_of([(40, 40)] * 4)
    before = mean_dice(method, batch)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for step in range(20):
        losses = method.loss(method.views(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert before < 0.2
    assert mean_dice(method, batch) > 0.9


def mean_dice(method: Segmentation, batch: Batch) -> float:
    return score(np.stack(list(count(method, batch).values())), method.class_names).mean_dice


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": (32, 40)}, r"crop_size \(32, 40\): 40 is not a multiple of .* stride 16; use 32"),
        ({"crop_size": (16, 16)}, r"crop_size \(16, 16\): .* single voxel.* make one of the sizes 32"),
        ({"crop_size": (32,)}, r"crop_size \(32,\) has 1 axes, the encoder has 2; give one number"),
        ({"labels": (3, 5)}, r"labels: value 5 is not among the shards' labels \[3, 7\]; name some of them"),
        ({"names": {0: "air"}}, r"0 labels to learn, expected at least one; ingest scans together with label maps"),
    ],
)
def test_a_task_that_cannot_work_is_refused_in_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_of(**fields)


def test_samples_with_another_number_of_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has 2 axes, samples of size \(5, 40, 40\) have 3; give one number"):
        method_of().check_extent((5, 40, 40))


def test_a_batch_without_labels_is_refused() -> None:
    batch = batch_of([(40, 40)])
    bare = Batch(**{**vars(batch), "labels": None})
    with pytest.raises(ValueError, match=r"1 samples of a batch have no labels.*ingest with labels"):
        method_of().views(bare, bare.rng(0))


def test_views_hold_one_image_and_one_box_per_crop() -> None:
    batch = batch_of([(50, 40)])
    views = method_of(crops_per_sample=3).views(batch, batch.rng(0))
    assert isinstance(views, Views)
    assert (len(views.images), len(views.boxes)) == (3, 3)
    assert len({box.tobytes() for box in views.boxes}) == 3
