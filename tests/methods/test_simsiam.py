"""SimSiam: loss, gradient, collapse coefficient and schedule equal a slow reference; views keep to their interval."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.views.boxes import box_iou
from methods.base import Views
from methods.encoders import SwinEncoder
from methods.parts.collapse import collapse_coefficient
from methods.simsiam import SimSiam, negative_cosine
from methods.two_views import embed
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.two_views import noise_views, shake
from tests.references import simsiam as reference


def tiny(spatial_dims: int = 2, channels: int = 5, **fields: object) -> SimSiam:
    torch.manual_seed(0)
    config = SimSiam.Config.model_validate({"projector_dim": 6, "predictor_dim": 4, "crops": {"size": 4}} | fields)
    return SimSiam(config, Pixels(spatial_dims, channels), FACTS)


@pytest.mark.parametrize("size", [(3, 2), (2, 2, 2)])
def test_loss_and_gradients_equal_the_reference(size):
    method = tiny(len(size)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    first, second = (torch.randn(7, 5, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    first.requires_grad_()
    second.requires_grad_()
    weights = {name: parameter.detach().numpy() for name, parameter in method.named_parameters()}

    losses = method.loss(Views((first, second)))
    losses.total.backward()

    arrays = first.detach().numpy(), second.detach().numpy()
    assert abs(losses.total.item() - reference.loss(*arrays, weights)) < 1e-10
    expected = reference.gradients(*arrays, weights)
    ours = {name: parameter.grad for name, parameter in method.named_parameters()}
    ours |= {"first": first.grad, "second": second.grad}
    assert set(ours) == set(expected)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient.numpy(), expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-4, f"{name}: a zero gradient would prove nothing"


def test_identical_outputs_give_minus_one_and_orthogonal_ones_zero():
    z = torch.eye(4)
    assert negative_cosine(z, z).item() == -1
    assert negative_cosine(z, z.roll(1, 0)).item() == 0


def test_embeddings_behind_the_stop_gradient_get_none():
    p, z = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    negative_cosine(p, z).backward()
    assert z.grad is None
    assert p.grad.abs().sum() > 0


def test_small_crops_predict_both_views_as_often_as_the_views_each_other():
    method, views = shake(tiny(small_crops={"num": 2})), noise_views(4, channels=5)
    with torch.no_grad():
        z = embed(method.encoder, method.projector, views.images)
        p = [method.predictor(one) for one in z]
        pairs = [(1, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]
        expected = torch.stack([negative_cosine(p[view], z[target]) for view, target in pairs]).mean()
        torch.testing.assert_close(method.loss(views).total, expected)


def test_collapse_coefficient_equals_the_reference():
    p = np.random.default_rng(0).normal(size=(16, 10)) + 0.7
    assert abs(collapse_coefficient(torch.from_numpy(p)).item() - reference.collapse(p)) < 1e-12
    assert 0.2 < reference.collapse(p) < 0.8


def test_collapse_coefficient_is_one_for_equal_outputs_and_zero_for_spread_ones():
    assert collapse_coefficient(torch.ones(8, 2048)).item() == 1
    spread = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert collapse_coefficient(spread).item() < 0.01


def test_heads_of_the_thesis_have_the_known_number_of_parameters():
    method = SimSiam(SimSiam.Config(), SwinEncoder(SwinEncoder.Config(spatial_dims=2)), FACTS)
    assert sum(p.numel() for p in method.projector.parameters()) == 9_969_664
    assert sum(p.numel() for p in method.predictor.parameters()) == 2_100_224


def test_variants_differ_in_the_three_contradictions_and_in_nothing_else():
    paper, released = (SimSiam.Config(variant=variant).model_dump()["augment"] for variant in ("paper", "released"))
    different = {name: (paper[name], released[name]) for name in paper if paper[name] != released[name]}
    assert different == {
        "flip_axes": (("H",), ("H", "W")),
        "shift_prob": (0.0, 0.75),
        "noise_sigma": ((0.01, 0.01), (0.0, 0.01)),
    }


def test_a_flag_set_on_its_own_keeps_the_others_of_its_variant():
    config = SimSiam.Config.model_validate({"variant": "released", "augment": {"shift_prob": 0.5}})
    assert config.augment.shift_prob == 0.5
    assert config.augment.flip_axes == ("H", "W")
    assert config.augment.zoom_prob == 0.75


def test_resolved_config_reads_back_as_itself():
    config = SimSiam.Config.model_validate({"variant": "released", "crops": {"size": [32, 64], "iou": [0, 0.3]}})
    assert SimSiam.Config.model_validate_json(config.model_dump_json()) == config


def test_misspelt_field_is_named():
    with pytest.raises(ValidationError, match=r"augment\.zoom_probability\s+Extra inputs are not permitted"):
        SimSiam.Config.model_validate({"augment": {"zoom_probability": 0.1}})


def test_views_show_what_their_boxes_hold_where_nothing_is_augmented():
    off = {name: 0.0 for name in SimSiam.Config().augment.model_dump() if name.endswith("_prob")}
    method = tiny(channels=1, crops={"size": [8, 12], "iou": [0.3, 0.6]}, augment=off)
    batch = random_batch([(30, 40), (20, 24), (33, 19)])
    views = method.views(batch, batch.rng(0))
    for image, boxes in zip(views.images, views.boxes, strict=True):
        for i, ((h0, w0), (h1, w1)) in enumerate(boxes):
            expected = batch.voxels[i, :, h0:h1, w0:w1].float() / 255
            torch.testing.assert_close(image[i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "extent"), [((8, 8), (30, 25)), ((8, 6, 10), (14, 15, 20))])
def test_boxes_of_a_pair_keep_to_the_interval_in_2d_and_3d(size, extent):
    method = tiny(len(size), channels=1, crops={"size": size, "iou": [0.3, 0.6]})
    batch = random_batch([extent] * 40)
    views = method.views(batch, batch.rng(3))
    iou = box_iou(*views.boxes)
    assert iou.min() >= 0.3
    assert iou.max() <= 0.6
    assert [tuple(image.shape) for image in views.images] == [(40, 1, *size)] * 2


def test_the_two_views_of_a_sample_are_augmented_independently():
    method = tiny(channels=1, crops={"size": 16, "iou": [1, 1]})
    batch = random_batch([(16, 16)] * 8)
    first, second = method.views(batch, batch.rng(0)).images
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_predictor_keeps_a_constant_rate_and_only_matrices_decay():
    method = tiny()
    groups = method.param_groups()
    constant = {id(p) for group in groups if group.schedule == "constant" for p in group.params}
    assert constant == {id(p) for p in method.predictor.parameters()}
    assert all((p.ndim > 1) == group.decay for group in groups for p in group.params)


def test_impossible_interval_is_refused_before_training():
    method = tiny(crops={"size": 96, "iou": [0, 0]})
    with pytest.raises(
        ValueError, match=r"\[0, 0\]: no two crops of size \(96, 96\) inside samples of size \(150, 180\)"
    ):
        method.check_extent((150, 180))
    method.check_extent((150, 192))


def test_crop_larger_than_the_samples_is_refused_before_training():
    with pytest.raises(
        ValueError, match=r"crop size \(96, 96\) exceeds samples of size \(90, 400\); lower method\.crops"
    ):
        tiny(crops={"size": 96}).check_extent((90, 400))


def test_crop_that_the_encoder_cannot_take_is_refused():
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=2, feature_size=12, num_heads=(1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"crops\.size \(96, 100\): 100 is not a multiple of .* stride 32; use 96"):
        SimSiam(SimSiam.Config.model_validate({"crops": {"size": [96, 100]}}), encoder, FACTS)
    with pytest.raises(ValueError, match=r"crops\.size \(96, 96, 96\) has 3 axes, the encoder has 2"):
        SimSiam(SimSiam.Config.model_validate({"crops": {"size": [96, 96, 96]}}), encoder, FACTS)


def test_interval_out_of_range_is_refused_by_the_config():
    with pytest.raises(ValidationError, match=r"expected 0 <= low <= high <= 1; correct method\.crops\.iou"):
        SimSiam.Config.model_validate({"crops": {"iou": [0.6, 0.3]}})
