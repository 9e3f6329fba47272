"""Transforms: each equals a slow reference, in value and gradient, and torchio; each sample draws its own."""

from collections import Counter

import jsonschema
import numpy as np
import pytest
import SimpleITK
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, kstest

from data.boxes import Boxes
from data.views.augmentation import Augmentation, augment, choose_one_of, draw, move_boxes, move_labels
from data.views.rng import SampleRng
from data.views.transforms import (
    BYOL_FIRST,
    BYOL_SECOND,
    JSSL,
    SWAV,
    Affine,
    Anisotropy,
    BiasField,
    Blur,
    ColourJitter,
    Flip,
    Gamma,
    Grey,
    Noise,
    Solarise,
)
from data.views.transforms.base import Transform
from data.views.transforms.series import draw_each, transform
from tests.data.views.test_views import Copies
from tests.references import transforms as reference

SIZES = [(5, 6), (3, 4, 5)]
ALL = (*JSSL, *SWAV[:2], Solarise())


def streams(count: int, seed: int = 0) -> SampleRng:
    return SampleRng.for_samples(seed, np.zeros(count, np.int64), [str(i) for i in range(count)])


def images_of(size: tuple[int, ...], count: int = 3, channels: int = 1, low: float = 0.05) -> torch.Tensor:
    unit = torch.rand((count, channels, *size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return low + (1 - low) * unit


def by_reference(each: Transform, images: torch.Tensor, numbers: np.ndarray) -> np.ndarray:
    one = getattr(reference, each.name)
    return np.stack([one(image, own) for image, own in zip(images.detach().numpy(), numbers, strict=True)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("each", [part for part in ALL if part.name != "noise"], ids=lambda part: part.name)
def test_a_transform_equals_the_reference_in_value_and_gradient(each, size, channels):
    each = each.model_copy(update={"axes": ("D", "H", "W")} if each.name == "flip" else {"prob": 1.0})
    images, rng = images_of(size, channels=channels).requires_grad_(), streams(3, seed=4)
    if each.name == "gamma":
        images = (images.detach() * torch.randn_like(images).sign()).requires_grad_()
    numbers = each.draw(size, rng)
    out = each.apply(images, numbers, rng)
    np.testing.assert_allclose(out.detach().numpy(), by_reference(each, images, numbers), rtol=0, atol=1e-9)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (out * weights).sum().backward()
    assert images.grad is not None
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # The derivative along a direction, of each sample on its own.
    step = 1e-6 * direction
    after, before = (by_reference(each, images.detach() + sign * step, numbers) for sign in (1, -1))
    expected = ((after - before) / 2e-6 * weights.numpy()).reshape(3, -1).sum(1)
    ours = (images.grad * direction).flatten(1).sum(1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 1e-3, "a zero gradient would prove nothing"


# Sums over a volume of 6 x 7 x 5 voxels sin(i + 2 j + 3 k), weighted by the cosine of each voxel's number, and plain:
# printed by torchio 0.18.92 for its transforms with the same numbers.
PRINTED = {
    "flip": (Flip(), [1, 0, 0], 0.3606, 0.20204),
    "affine": (Affine(), [1.1, 0.9, 0.95, 8, -5, 3, 0.5, -1, 0.25], -4.19988, -45.45195),
    "anisotropy": (Anisotropy(), [1, 2.75], 0.47724, -0.7986),
    "blur": (Blur(), [1.5, 0.5, 2], 0.00648, 0.20204),
    "bias_field": (BiasField(), [(7 * k % 20 - 10) / 20 for k in range(20)], -0.64357, 1.68667),
    "gamma": (Gamma(), [1.3], 0.30597, 0.22841),
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_transform_equals_what_torchio_printed(name):
    each, numbers, weighted, plain = PRINTED[name]
    i, j, k = np.indices((6, 7, 5))
    wave = torch.from_numpy(np.sin(i + 2 * j + 3 * k))[None, None]
    out = each.apply(wave, np.array([numbers], dtype=float), streams(1))[0, 0].numpy()
    assert (out.ravel() * np.cos(np.arange(210))).sum() == pytest.approx(weighted, abs=2e-5)
    assert out.sum() == pytest.approx(plain, abs=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_an_affine_equals_itk_resampling_as_torchio_calls_it(seed):
    size = (9, 12, 10)
    image = images_of(size, count=1)
    numbers = Affine(translation=(-2, 2)).draw(size, streams(1, seed))
    scales, degrees, shift = np.split(numbers[0], 3)
    # ITK's axes are in the opposite order of an array's; torchio hands it transposed arrays, axis by axis.
    floating = SimpleITK.GetImageFromArray(image[0, 0].numpy().transpose(2, 1, 0))
    centre = (np.array(size) - 1) / 2
    scaling, turning = SimpleITK.ScaleTransform(3), SimpleITK.Euler3DTransform()
    scaling.SetScale(scales)
    turning.SetRotation(*np.radians(degrees))
    turning.SetTranslation(shift)
    for part in (scaling, turning):
        part.SetCenter(centre)
    moving = SimpleITK.CompositeTransform([scaling, turning]).GetInverse()
    lowest = float(image.min())
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(floating, floating, moving, SimpleITK.sitkLinear, lowest)
    )
    out = Affine().apply(image, numbers, streams(1))[0, 0].numpy()
    np.testing.assert_allclose(out, expected.transpose(2, 1, 0), rtol=0, atol=1e-9)
    assert (out == lowest).sum() > 10


@pytest.mark.parametrize("size", [(7, 1), (20, 3), (5, 1, 17)])
def test_blur_equals_scipy_also_where_the_image_is_mirrored_more_than_once(size):
    images, sigma = images_of(size), np.array([[0.0, 2.0, 1.0], [2.0, 0.1, 0.4], [1.3, 1.9, 2.0]])[:, : len(size)]
    out = Blur().apply(images, sigma, streams(3))
    for image, own, blurred in zip(images[:, 0].numpy(), sigma, out[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(blurred, gaussian_filter(image, own), rtol=0, atol=1e-12)


def test_an_anisotropic_view_may_repeat_its_last_voxel_instead_of_fading_to_0():
    line = torch.linspace(1, 2, 9, dtype=torch.float64).view(1, 1, 9, 1)
    numbers = np.array([[0, 2.1]])  # the fifth thinned voxel would lie at 8.95
    faded, repeated = (Anisotropy(beyond=how).apply(line, numbers, streams(1)) for how in ("zero", "edge"))
    assert torch.equal(faded[..., :6, :], repeated[..., :6, :])
    assert faded[0, 0, -1].item() == pytest.approx(1.875 * (4 - 7.45 / 2.1), abs=1e-9)
    assert repeated[0, 0, -1].item() == pytest.approx(2 - 0.125 * (4 - 7.45 / 2.1), abs=1e-9)
    for how, out in (("zero", faded), ("edge", repeated)):
        expected = reference.anisotropy(line[0].numpy(), numbers[0], how)
        np.testing.assert_allclose(out[0].numpy(), expected, rtol=0, atol=1e-12)


def test_noise_has_the_drawn_mean_and_deviation_in_every_channel():
    numbers = np.array([[0.0, 0.25], [3.0, 0.01]])
    images = images_of((40, 40), count=2, channels=2).requires_grad_()
    noisy = Noise().apply(images, numbers, streams(2))
    for (mean, sigma), noise in zip(numbers, (noisy - images).detach(), strict=True):
        for channel in noise:
            assert kstest(((channel - mean) / sigma).flatten().numpy(), "norm").pvalue > 1e-3
    noisy.sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))


# What torchio's constructors hold at their defaults.
DRAWN = {
    "flip": [(0, 0.5)],
    "affine": [(0.9, 1.1)] * 3 + [(-10, 10)] * 3,
    "anisotropy": [None, (1.5, 5)],
    "noise": [None, (0, 0.25)],
    "blur": [(0, 2)] * 3,
    "bias_field": [(-0.5, 0.5)] * 20,
    "gamma": [(np.exp(-0.3), np.exp(0.3))],
}


@pytest.mark.parametrize("each", JSSL, ids=lambda part: part.name)
def test_numbers_are_drawn_from_torchios_ranges(each):
    numbers = each.draw((8, 9, 10), streams(3000))
    for column, interval in zip(numbers.T, DRAWN[each.name], strict=False):
        if interval is not None and each.name != "flip":
            low, high = np.log(interval) if each.name == "gamma" else interval
            column = np.log(column) if each.name == "gamma" else column
            assert kstest(column, "uniform", (low, high - low)).pvalue > 1e-3
    if each.name not in ("flip", "anisotropy", "noise", "gamma"):
        varied = numbers[:, : len(DRAWN[each.name])]
        assert np.abs(np.corrcoef(varied.T) - np.eye(varied.shape[1])).max() < 5 / np.sqrt(3000)
    assert numbers.shape[1] == {"flip": 3, "affine": 9, "bias_field": 20}.get(each.name, len(DRAWN[each.name]))


def test_flips_axes_and_shifts_are_drawn_as_torchio_draws_them():
    flips = Flip().draw((8, 9, 10), streams(3000))
    assert flips[:, 1:].sum() == 0
    assert 1e-4 < binom.cdf(flips[:, 0].sum(), 3000, 0.5) < 1 - 1e-4
    assert Flip().draw((9, 10), streams(100))[:, 0].sum() == 0 < Flip().draw((9, 10), streams(100))[:, 1].sum()
    axes = Counter(Anisotropy().draw((8, 9, 10), streams(3000))[:, 0].tolist())
    assert set(axes) == {0, 1, 2}
    assert min(axes.values()) > 900
    assert set(Anisotropy().draw((9, 10), streams(100))[:, 0]) == {0, 1}
    assert (Affine().draw((8, 9, 10), streams(9))[:, 6:] == 0).all()
    assert Affine().draw((9, 10), streams(9)).shape == (9, 5)
    assert BiasField().draw((9, 10), streams(9)).shape == (9, 10)
    assert (Noise().draw((9, 10), streams(9))[:, 0] == 0).all()


def test_colour_jitter_draws_simclrs_ranges_and_every_order_equally_often():
    numbers = ColourJitter().draw((8, 8), streams(6000))
    for column in range(3):
        assert kstest(numbers[:, column], "uniform", (0.2, 1.6)).pvalue > 1e-3
    assert kstest(numbers[:, 3], "uniform", (-0.2, 0.4)).pvalue > 1e-3
    orders = Counter(map(tuple, numbers[:, 4:].argsort(axis=1).tolist()))
    assert len(orders) == 24
    assert min(orders.values()) > 180
    assert ColourJitter(brightness=1.5).draw((8, 8), streams(100))[:, 0].min() >= 0


def test_colour_jitter_of_a_grey_image_is_that_of_its_three_equal_channels():
    single = images_of((6, 7), count=8)
    numbers, rng = ColourJitter().draw((6, 7), streams(8)), streams(8)
    out = ColourJitter().apply(single, numbers, rng)
    copied = ColourJitter().apply(single.repeat(1, 3, 1, 1), numbers, rng)
    torch.testing.assert_close(copied, out.repeat(1, 3, 1, 1), rtol=0, atol=1e-12)
    assert out.min() == 0 or out.max() == 1
    free = ColourJitter(clip=None).apply(single, np.array([[1.8, 1, 1, 0, 0, 1, 2, 3]] * 8), rng)
    torch.testing.assert_close(free, single * 1.8)


@pytest.mark.parametrize("size", SIZES)
def test_one_of_seven_gives_the_views_of_a_sample_two_different_transforms(size):
    config, rng, count = Augmentation(one_of=JSSL), streams(2100), 2100
    chosen = choose_one_of(config, 2, rng)
    views = [draw(config, size, rng.fold(view), chosen[view]) for view in range(2)]
    happens = np.array([[each.happens for each in view.series] for view in views])
    assert (happens.sum(axis=1) == 1).all()
    assert not (happens[0] & happens[1]).any()
    pairs = Counter(zip(*happens.argmax(axis=1).tolist(), strict=True))
    assert len(pairs) == 42
    expected = count / 42
    assert all(abs(found - expected) < 5 * np.sqrt(expected) for found in pairs.values())
    assert set(Counter(draw(config, size, rng).series[0].happens.tolist())) == {True, False}


def test_more_views_than_transforms_go_through_them_in_turn():
    chosen = choose_one_of(Augmentation(one_of=JSSL[:3]), 7, streams(50))
    assert (np.sort(chosen[:3], axis=0) == np.arange(3)[:, None]).all()
    assert np.array_equal(chosen[3:6], chosen[:3])
    assert np.array_equal(chosen[6], chosen[0])


def test_each_transform_happens_with_its_own_probability_in_the_order_of_the_config():
    parts = (Noise(mean=(1, 1), sigma=(0, 0), prob=0.3), Gamma(log_gamma=(np.log(2), np.log(2)), prob=0.8))
    config = Augmentation(transforms=parts)
    drawn = draw(config, (2, 2), streams(2000))
    first, second = (each.happens for each in drawn.series)
    for happens, prob in ((first, 0.3), (second, 0.8)):
        assert 1e-4 < binom.cdf(happens.sum(), 2000, prob) < 1 - 1e-4
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(2000)
    out = augment(torch.full((2000, 1, 2, 2), 2.0), drawn)[:, 0, 0, 0].numpy()
    np.testing.assert_allclose(out, (2.0 + first) ** (1 + second), rtol=1e-6)


EVERYTHING = Augmentation(
    zoom_prob=0.5, transforms=tuple(p.model_copy(update={"prob": 0.7}) for p in ALL), one_of=JSSL
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 20), (9, 8, 10)])
def test_same_seed_gives_the_same_views_on_any_batch_split(size, channels):
    images, rng = images_of(size, count=8, channels=channels).float(), streams(8)
    before, chosen = images.clone(), choose_one_of(EVERYTHING, 2, rng)
    whole = augment(images, draw(EVERYTHING, size, rng.fold(1), chosen[1]))
    assert torch.equal(images, before)
    assert not torch.isclose(whole, images).flatten(1).all(1).any()
    for parts in ([[0, 1, 2], [3], [4, 5, 6, 7]], [[7, 2], [0, 5, 1], [3, 4, 6]]):
        for part in map(np.array, parts):
            own = rng.take(part)
            alone = augment(images[part], draw(EVERYTHING, size, own.fold(1), choose_one_of(EVERYTHING, 2, own)[1]))
            torch.testing.assert_close(alone, whole[part], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("each", ALL, ids=lambda part: part.name)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (1, 1, 1), (1, 9, 5), (7, 1, 3)])
def test_constant_images_negative_values_and_axes_of_one_voxel_stay_finite(each, size):
    each = each.model_copy(update={"prob": 1.0})
    images = torch.stack([torch.full((3, *size), value) for value in (-1000.0, 0.0, 0.3, 3000.0)])
    images = torch.cat([images, images_of(size, channels=3).float() * 4000 - 1000]).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        out = transform(images.to(dtype), draw_each((each,), size, streams(7)))
        assert out.dtype == dtype
        assert out.shape == images.shape
        assert out.isfinite().all()
        (grad,) = torch.autograd.grad(out.float().sum(), images)
        assert grad.isfinite().all()
    if isinstance(each, Flip | Affine | Blur):
        constant = transform(images[:4], draw_each((each,), size, streams(4)))
        torch.testing.assert_close(constant, images[:4], rtol=1e-5, atol=0)


@pytest.mark.parametrize("each", ALL, ids=lambda part: part.name)
def test_bfloat16_images_are_transformed_in_float32_and_rounded_once(each):
    images = images_of((6, 7, 5), channels=3).bfloat16()
    series = draw_each((each.model_copy(update={"prob": 1.0}),), (6, 7, 5), streams(3))
    assert torch.equal(transform(images, series), transform(images.float(), series).bfloat16())


def test_an_axis_of_one_voxel_is_not_thinned():
    images = images_of((1, 6, 6))
    assert torch.equal(Anisotropy().apply(images, np.array([[0, 4.0]] * 3), streams(3)), images)


def test_what_does_not_happen_leaves_images_as_they_are():
    images = images_of((6, 6))
    quiet = Augmentation(transforms=[part.model_copy(update={"prob": 0.0}) for part in ALL])
    assert torch.equal(augment(images, draw(quiet, (6, 6), streams(3))), images)
    drawn = draw(Augmentation(transforms=(Noise(prob=0.5),)), (6, 6), streams(20))
    noisy = augment(images_of((6, 6), count=20), drawn)
    unchanged = (noisy == images_of((6, 6), count=20)).flatten(1).all(1).numpy()
    assert np.array_equal(unchanged, ~drawn.series[0].happens)
    assert 0 < unchanged.sum() < 20


MOVING = Augmentation(flip_prob=0.5, transforms=("flip", "affine", "gamma", "bias_field"))


@pytest.mark.parametrize("size", [(20, 24), (12, 14, 16)])
def test_labels_follow_flips_and_affines_and_keep_their_values(size):
    count, n = 12, len(size)
    labels = torch.zeros((count, *size), dtype=torch.int64)
    labels[(slice(None), *[slice(4, 9)] * n)] = 7
    labels[(slice(None), *[slice(2, 5)] * n)] = 60_000
    drawn = draw(MOVING, size, streams(count))
    moved = move_labels(labels, drawn)
    assert moved.dtype == labels.dtype
    assert set(moved.unique().tolist()) == {0, 7, 60_000}
    spatial = MOVING.model_copy(update={"transforms": (Flip(), Affine())})
    for value in (7, 60_000):
        share = augment((labels == value)[:, None].double(), draw(spatial, size, streams(count)))[:, 0]
        # The nearest of the 2**n voxels around a point has at least its share of the linear weights.
        least = 0.5**n - 1e-6
        assert ((share > 1 - least) <= (moved == value)).all()
        assert ((share < least) <= (moved != value)).all()
        assert 0 < (share < least).sum() < share.numel()


@pytest.mark.parametrize("size", [(20, 24), (12, 14, 16)])
def test_boxes_follow_flips_and_affines(size):
    n, count = len(size), 12
    corners = np.array([[[4] * n, [9] * n], [[1] * n, [3] * n]])
    findings = [Boxes(corners, np.array([1, 2]))] * count
    spatial = Augmentation(flip_prob=0.5, transforms=(Flip(axes=("H", "W")), Affine(translation=(-2, 2))))
    drawn = draw(spatial, size, streams(count))
    boxes = move_boxes(findings, drawn, size)
    for value, (low, high) in zip((1, 2), corners, strict=True):
        mask = torch.zeros((count, 1, *size))
        mask[(..., *(slice(a, b) for a, b in zip(low, high, strict=True)))] = 1
        for image, own in zip(augment(mask, drawn)[:, 0], boxes, strict=True):
            seen = np.argwhere((image > 0.5).numpy())
            if len(seen):
                (box,) = own.corners[own.classes == value]
                assert (box[0] <= seen.min(axis=0)).all()
                assert (seen.max(axis=0) < box[1]).all()
                assert (box[1] - box[0] <= 1.6 * (high - low) + 3).all()


def test_a_name_stands_for_a_transform_at_its_defaults():
    names = [each.name for each in JSSL]
    config = Augmentation.model_validate({"one_of": names, "transforms": [{"name": "blur", "sigma": [0.1, 2]}]})
    assert config.one_of == JSSL
    assert config.transforms == (Blur(sigma=(0.1, 2)),)
    assert Augmentation.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"one_of": [{"name": "gamma", "prob": 0.5}]}, r"prob 0\.5 of gamma in one_of: exactly one.*remove prob"),
        ({"transforms": ["swirl"]}, "swirl"),
        ({"transforms": [{"name": "blur", "sigma": [2, 1]}]}, r"interval \[2\.0, 1\.0\]: expected low <= high; swap"),
        ({"transforms": [{"name": "anisotropy", "downsampling": [0.5, 2]}]}, r"downsampling \[0\.5, 2\.0\].*least 1"),
        ({"transforms": [{"name": "affine", "scales": [0, 1]}]}, "greater than 0"),
        ({"transforms": [{"name": "noise", "sd": 1}]}, "Extra inputs"),
    ],
)
def test_a_config_that_means_nothing_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        Augmentation.model_validate(fields)


def test_the_schema_that_editors_read_takes_names_and_whole_transforms_and_no_others():
    schema = jsonschema.Draft202012Validator(Augmentation.model_json_schema())
    names = [each.name for each in ALL]
    assert schema.is_valid({"one_of": names, "transforms": [each.model_dump(mode="json") for each in ALL]})
    assert all(Augmentation.model_validate({"one_of": [name]}) for name in names)
    assert not schema.is_valid({"one_of": ["swirl"]})
    assert not schema.is_valid({"one_of": [{"name": "blur", "sigma": "wide"}]})


QUIET = tuple(part for part in (*JSSL, *SWAV) if part.name != "noise")  # whose generators are the device's own


@pytest.mark.parametrize("size", [(96, 96), (64, 96, 96)])
def test_only_a_few_numbers_per_sample_are_copied_to_the_device(size):
    images = torch.empty((8, 3, *size), device="meta")
    series = draw_each([part.model_copy(update={"prob": 1.0}) for part in QUIET], size, streams(8))
    with Copies() as copies:
        assert transform(images, series).shape == images.shape
    assert 0 < copies.num_bytes / 8 < 100 * sum(size)


def test_byols_two_colour_distortions_differ_in_blur_and_solarising():
    names = ["colour_jitter", "grey", "blur"]
    assert [(each.name, each.prob) for each in BYOL_FIRST] == list(zip(names, (0.8, 0.2, 1.0), strict=True))
    second = [*zip(names, (0.8, 0.2, 0.1), strict=True), ("solarise", 0.2)]
    assert [(each.name, each.prob) for each in BYOL_SECOND] == second
    assert BYOL_FIRST[:2] == BYOL_SECOND[:2]


def test_swavs_colour_distortion_is_vissls():
    assert [(each.name, each.prob) for each in SWAV] == [("colour_jitter", 0.8), ("grey", 0.2), ("blur", 0.5)]
    sigma = SWAV[2].draw((8, 8), streams(2000))
    assert (sigma[:, 0] == sigma[:, 1]).all()
    assert kstest(sigma[:, 0], "uniform", (0.1, 1.9)).pvalue > 1e-3
    single = images_of((4, 4))
    assert torch.equal(Grey().apply(single, np.empty((3, 0)), streams(3)), single)
