"""VoCo: every version's loss and gradient equal a slow reference; the oracles hold; misfits are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Progress, Views
from methods.encoders import Encoder, SwinEncoder, UNetEncoder
from methods.parts.grid import overlap_shares, tiles, uniform_tiles
from methods.parts.teacher import follow, frozen_copy, redraw
from methods.voco import VARIANTS, VoCo, prediction_loss, regularisation_loss, similarities
from orchestrator.config.optimiser import Optimiser
from orchestrator.training.checkpoint import Stream
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.optimiser import Schedule
from orchestrator.training.world import World
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.references import voco as reference

STILL = dict.fromkeys(("flip_prob", "rotate_prob", "shift_prob"), 0.0)


class Planes(Encoder):
    """A small encoder with weights, for tests that train."""

    def __init__(self, spatial_dims: int = 2, width: int = 6) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.channels, self.stride = spatial_dims, 1, (width,), 1
        self.layer = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](1, width, 3, padding=1)

    def maps(self, x: Tensor) -> list[Tensor]:
        return [self.layer(x).relu()]

    def levels(self) -> list[nn.Module]:
        return [self.layer]


def tiny(variant: str, encoder: Encoder, **fields: Any) -> VoCo:
    torch.manual_seed(0)
    given = {"variant": variant, "grid": (1, 2, 2), "crop_size": 4, "projector_dim": 6} | fields
    return VoCo(VoCo.Config.model_validate(given), encoder, FACTS)


def drawn_shares(num_samples: int, num_crops: int, grid: tuple[int, ...]) -> np.ndarray:
    """Draw overlaps of crops of 4 voxels per axis; the first crop of the first sample is the first base."""
    extents = np.full((num_samples, len(grid)), 4) * grid
    crops = uniform_tiles(extents, grid, num_crops, SampleRng(np.arange(num_samples)))
    crops[0, 0] -= crops[0, 0, :1]
    return overlap_shares(crops, tiles(extents, grid))


@pytest.mark.parametrize("grid", [(2, 2), (1, 2, 2)])
@pytest.mark.parametrize("variant", ["cvpr", "paper", pytest.param("released", marks=pytest.mark.slow)])
def test_loss_and_gradients_equal_the_reference(variant, grid):
    # Differences along every weight and voxel are slow where there are convolutions: so few channels in 3D.
    channels, size = ({2: 2, 3: 1}[len(grid)], (3,) * len(grid)) if variant == "released" else (4, (2,) * len(grid))
    method = tiny(variant, Pixels(len(grid), channels), grid=grid, crop_size=size, projector_dim=5).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    shares = drawn_shares(2, 2, grid)
    images = torch.randn(6, 2, channels, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = {name: p.detach().numpy() for name, p in method.named_parameters() if p.requires_grad}
    teacher = {name.removeprefix("teacher."): p.numpy() for name, p in method.named_parameters() if "teacher" in name}

    losses = method.loss(Views(tuple(images), targets={"shares": torch.from_numpy(shares)}))
    losses.total.backward()

    case = reference.Case(variant, images.detach().numpy(), shares, teacher)
    stopped = reference.embed(case.images, weights, variant)
    assert abs(losses.total.item() - reference.loss(case, weights, case.images, stopped)) < 1e-9
    assert images.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    expected = reference.gradients(case, weights)
    assert set(ours) == set(weights)
    for name, gradient in {**ours, "images": images.grad.numpy()}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("dims", "extents"), [(2, [(8, 16), (16, 8)]), (3, [(4, 8, 8), (6, 12, 8)])])
def test_views_are_crops_then_bases_and_show_what_their_boxes_hold(dims, extents):
    method = tiny("cvpr", Pixels(dims, 1), augment=STILL, num_crops=3)
    batch = random_batch(extents)
    views = method.views(batch, batch.rng(0))
    assert [tuple(image.shape) for image in views.images] == [(2, 1, *[4] * dims)] * 7
    np.testing.assert_array_equal(np.stack(views.boxes[3:], axis=1), tiles(batch.extents, (1, 2, 2)[-dims:]))
    crops = np.stack(views.boxes[:3], axis=1)
    expected = overlap_shares(crops, np.stack(views.boxes[3:], axis=1))
    torch.testing.assert_close(views.targets["shares"], torch.from_numpy(expected).float())
    for image, boxes in zip(views.images, views.boxes, strict=True):
        for i, (low, high) in enumerate(boxes):
            crop = (
                batch.voxels[(i, slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))].float() / 255
            )
            resized = resize_by_loops(crop[0].double().numpy(), (4,) * dims)
            np.testing.assert_allclose(image[i, 0], resized, rtol=0, atol=1e-6)


def resize_by_loops(crop: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Interpolate linearly, axis after axis, with corner voxels onto corner voxels."""
    for axis, length in enumerate(size):
        position = np.linspace(0, crop.shape[axis] - 1, length)
        crop = np.apply_along_axis(lambda line, at=position: np.interp(at, np.arange(len(line)), line), axis, crop)
    return crop


def test_bases_that_have_the_networks_size_are_slices_of_what_is_stored():
    method = tiny("cvpr", Pixels(3, 1), augment=STILL)
    batch = random_batch([(4, 8, 8)])
    last = method.views(batch, batch.rng(0)).images[-1][0]
    assert torch.equal(last, batch.voxels[0, :, :, 4:, 4:].float() * batch.scale[0])


def test_every_view_is_augmented_independently():
    method = tiny(
        "released", Pixels(2, 1), grid=(1, 2), augment={"shift_prob": 1.0, "flip_prob": 0, "rotate_prob": 0}
    )
    batch = Batch(**{**vars(random_batch([(4, 8)] * 3)), "voxels": torch.zeros(3, 1, 4, 8)})
    shifts = torch.stack(method.views(batch, batch.rng(0)).images)[:, :, 0, 0, 0]
    assert shifts.unique().numel() == 12
    assert shifts.abs().max() <= 0.1


def test_orthogonal_bases_cost_nothing():
    q = 3 * torch.eye(5, dtype=torch.float64)[None]
    assert regularisation_loss(q, "squared", one_sided=False) == 0
    assert regularisation_loss(q, "absolute", one_sided=False) == 0


def test_opposed_bases_cost_nothing_in_the_code_and_something_in_equation_5():
    q = torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])
    assert regularisation_loss(q, "squared", one_sided=False) == 0
    assert regularisation_loss(q, "absolute", one_sided=False) == 1


def test_one_sided_pairs_leave_the_last_base_without_gradient():
    q = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)).abs().requires_grad_()
    regularisation_loss(q, "squared", one_sided=True).backward()
    assert q.grad is not None
    assert (q.grad[0].abs().sum(dim=1) > 0).tolist() == [True, True, False]


@pytest.mark.parametrize(("rectify", "moves"), [(True, False), (False, True)])
def test_an_overlap_that_points_away_gets_no_gradient_where_similarities_are_rectified(rectify, moves):
    crop = torch.tensor([[[1.0, 0.5]]], requires_grad=True)
    cosine = similarities(crop, torch.tensor([[[-0.6, 1.0]]]))
    assert -0.1 < cosine.item() < 0
    prediction_loss(cosine.relu() if rectify else cosine, torch.tensor([[[0.75]]]), "split").backward()
    assert crop.grad is not None
    assert bool(crop.grad.abs().sum() > 0) == moves


@pytest.mark.parametrize("kind", ["split", "weighted", "entropy"])
def test_a_perfect_prediction_costs_nothing_and_a_missed_base_13_8_however_far_it_points_away(kind):
    shares = torch.tensor([[[1.0]]], dtype=torch.float64)
    assert prediction_loss(shares, shares, kind).item() == pytest.approx(0, abs=2e-6)
    for cosine in (0.0, -0.5):
        missed = prediction_loss(torch.full_like(shares, cosine), shares, kind).item()
        assert missed == pytest.approx(-np.log(1e-6), rel=2e-6)


def test_positives_and_negatives_count_apart_and_overlaps_weigh_them_where_asked():
    logits, shares = torch.tensor([[[0.5, 0.25, 0.5, 0.0]]]), torch.tensor([[[0.75, 0.25, 0.0, 0.0]]])
    missed, negatives = -np.log(0.75), 0.25 / 2
    found = {kind: prediction_loss(logits, shares, kind).item() for kind in ("split", "weighted", "entropy")}
    assert found["split"] == pytest.approx(missed / 2 + negatives, abs=1e-5)
    assert found["weighted"] == pytest.approx(0.75 * missed + negatives, abs=1e-5)
    assert found["entropy"] == pytest.approx((missed - np.log(0.5)) / 4, abs=1e-5)


def test_a_zero_teacher_is_a_tenth_of_the_student_after_one_step():
    method = tiny("released", Planes())
    assert method.teacher is not None
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.zero_()
    method.after_step(Progress(1, 2, 0))
    student = {name: p for name, p in method.named_parameters() if not name.startswith("teacher.")}
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter, 0.1 * student[name])


def test_a_random_teacher_starts_from_other_weights_of_the_same_distribution():
    torch.manual_seed(0)
    student = nn.Linear(300, 200)
    teacher = frozen_copy(student)
    redraw(teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher.weight.flatten().sort()[0], student.weight.flatten().sort()[0])
    assert abs(torch.corrcoef(torch.stack([teacher.weight.flatten(), student.weight.flatten()]))[0, 1]) < 0.02
    follow(teacher, student, 0.9)
    assert torch.corrcoef(torch.stack([teacher.weight.flatten(), student.weight.flatten()]))[0, 1] > 0.05


def test_a_copied_teacher_predicts_as_the_student_does():
    encoder = Planes()
    copied = tiny("released", encoder, teacher_start="copy", rectify=False)
    alone = tiny("released", encoder, teacher_decay=None, rectify=False)
    batch = random_batch([(8, 8)] * 3)
    views = copied.views(batch, batch.rng(0))
    torch.testing.assert_close(copied.loss(views).total, alone.loss(views).total)


def test_lambda_weighs_the_regularisation():
    batch = random_batch([(8, 8)] * 3)
    found = {}
    for weight in (0.0, 0.5, 1.0):
        method = tiny("cvpr", Planes(), lambda_reg=weight)
        losses = method.loss(method.views(batch, batch.rng(0)))
        found[weight] = losses.total.item()
        assert losses.total.item() == pytest.approx(
            losses.parts["prediction"].item() + weight * losses.parts["regularisation"].item(), rel=1e-6
        )
    assert found[0.0] < found[0.5] < found[1.0]


def test_health_tells_found_positions_and_silent_overlaps():
    method = tiny("cvpr", Pixels(2, 2), projector_dim=2)
    method.head.projector = nn.Sequential(nn.Identity())
    bases = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    crops = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    shares = torch.tensor([[[0.5, 0.25, 0.25, 0.0], [0.25, 0.0, 0.75, 0.0]]])
    images = torch.cat([crops, bases])[:, None, :, None, None].expand(6, 1, 2, 4, 4)
    parts = method.loss(Views(tuple(images), targets={"shares": shares})).parts
    assert parts["position_accuracy"].item() == 0.5
    assert parts["dead_positives"].item() == pytest.approx(2 / 5)


class Recorder:
    """Keeps the losses that are reported, and the checkpoint of one step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.losses = folder, []

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        self.losses += [entry["loss"] for entry in metrics["history"]]
        if checkpoint is not None and len(self.losses) == 3:
            checkpoint.rename(self.folder)
            checkpoint.mkdir()


@pytest.mark.parametrize("variant", ["cvpr", "released"])
def test_a_resumed_run_equals_an_undisturbed_one_with_student_teacher_and_optimiser(variant, tmp_path):
    def feed(first_step: int) -> Iterator[Batch]:
        return (random_batch([(8, 8), (12, 8), (8, 8)], epoch=step) for step in range(first_step, 6))

    plan = Plan(
        Schedule(Optimiser(name="adamw", lr=0.01), total_steps=6, warmup_steps=1),
        Stream(digest="d", seed=5, batch_size=3),
        num_samples=3,
        checkpoint_every_steps=3,
    )
    whole, undisturbed = Recorder(tmp_path / "third"), tiny(variant, Planes())
    train(Trainee(undisturbed), plan, feed, World(), whole)
    rest, resumed = Recorder(tmp_path / "none"), tiny(variant, Planes())
    train(Trainee(resumed), plan, feed, World(), rest, tmp_path / "third")
    assert rest.losses == whole.losses[3:]
    teacher = [name for name in undisturbed.state_dict() if name.startswith("teacher.")]
    assert len(teacher) == (0 if variant == "cvpr" else 13)
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("variant", "different"),
    [
        ("paper", {"prediction", "rectify", "regularisation", "pool"}),
        ("released", {"prediction", "one_sided", "features", "teacher_decay", "num_crops", "augment"}),
    ],
)
def test_variants_differ_from_the_default_in_the_contradictions_and_in_nothing_else(variant, different):
    default, other = VoCo.Config().model_dump(), VoCo.Config.model_validate({"variant": variant}).model_dump()
    assert {name for name in default if default[name] != other[name]} == {"variant", *different}
    assert {name for name, value in VARIANTS["cvpr"].items() if name != "augment" and default[name] != value} == set()


def test_a_flag_set_on_its_own_keeps_the_others_of_its_variant():
    given = {"variant": "released", "teacher_decay": None, "augment": {"flip_prob": 0.5}}
    config = VoCo.Config.model_validate(given)
    assert (config.teacher_decay, config.prediction, config.num_crops) == (None, "weighted", 2)
    assert (config.augment.flip_prob, config.augment.shift_prob) == (0.5, 0.1)
    assert VoCo.Config.model_validate_json(config.model_dump_json()) == config


def test_the_networks_of_the_paper_have_the_known_widths():
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=3, depths=(1, 1, 1, 1)))
    with torch.device("meta"):
        cvpr = VoCo(VoCo.Config(), encoder, FACTS)
        released = VoCo(VoCo.Config.model_validate({"variant": "released", "teacher_decay": None}), encoder, FACTS)
    assert sum(p.numel() for p in cvpr.head.projector.parameters()) == 768 * 2048 + 2 * 2048**2 + 3 * 2048
    assert released.head.skips is not None
    assert released.head.skips.out_channels == 48 + 48 + 96 + 192 + 768


def test_a_grid_for_volumes_serves_images_without_its_depth():
    assert tiny("cvpr", Pixels(2, 1), grid=(1, 3, 4)).grid == (3, 4)
    with pytest.raises(
        ValueError, match=r"grid \(2, 3, 4\) has 3 axes, the encoder has 2.*for images D can only be 1"
    ):
        tiny("cvpr", Pixels(2, 1), grid=(2, 3, 4))
    with pytest.raises(ValueError, match=r"grid \(4, 4\) has 2 axes, the encoder has 3; give one number per"):
        tiny("cvpr", Pixels(3, 1), grid=(4, 4))


def test_a_grid_that_does_not_tile_the_samples_is_refused_with_sizes_that_it_does_tile():
    method = tiny("cvpr", Pixels(3, 1), grid=(1, 4, 5))
    method.check_extent((64, 256, 320))
    with pytest.raises(
        ValueError, match=r"\(64, 256, 256\) cannot be cut into 5 .* along W \(256 voxels\).*such as \[64, 256, 255\]"
    ):
        method.check_extent((64, 256, 256))


def test_sizes_that_the_encoder_cannot_take_are_refused():
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"crop_size \(60, 60\): 60 is not a multiple of .* stride 16; use 64"):
        tiny("cvpr", encoder, crop_size=60)
    with pytest.raises(ValueError, match=r"crop_size \(64, 64, 64\) has 3 axes, the encoder has 2"):
        tiny("cvpr", encoder, crop_size=(64, 64, 64))
    with pytest.raises(ValueError, match=r"crop_size \(16, 16\): the coarsest map would be a single voxel.*sizes 32"):
        tiny("released", encoder, crop_size=16)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"grid": (1, 1, 1)}, "a single base leaves nothing to predict; give two or more"),
        ({"grid": (1, 0, 4)}, "greater than 0"),
        ({"variant": "released", "pool": "after"}, "features levels with pool after.*set pool=before"),
        ({"lambda_reg": -1}, "greater than or equal to 0"),
        ({"variant": "printed"}, "'cvpr', 'paper' or 'released'"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(fields, text):
    with pytest.raises(ValidationError, match=text):
        VoCo.Config.model_validate(fields)
