"""Views: what is drawn is applied, as MONAI and scipy would, whatever the batch split."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Flip, GaussianSmooth, Rotate90, Zoom
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, kstest
from torch.nn.functional import grid_sample
from torch.utils._python_dispatch import TorchDispatchMode

from data.views.augmentation import Augmentation, ViewParams, augment, cut, draw, move, move_labels
from data.views.batch import Batch
from data.views.boxes import boxes_at
from data.views.rng import SampleRng
from data.views.smoothing import smooth
from tests.references.sampling_grid import sampling_grid

# Where a voxel comes from is a float32 coordinate in [-1, 1]: off by about 1e-5 voxels for 96 of them.
RESAMPLING_TOLERANCE = 2e-5
EVERYTHING = Augmentation(
    zoom_prob=0.75,
    flip_axes=("D", "H", "W"),
    flip_prob=0.5,
    rotate_prob=0.5,
    scale_prob=0.75,
    shift_prob=0.75,
    smooth_prob=0.5,
    noise_prob=0.5,
)
SIZES = [(24, 24), (9, 8, 8)]


def streams(count: int, seed: int = 0) -> SampleRng:
    return SampleRng.for_samples(seed, np.zeros(count, np.int64), [str(i) for i in range(count)])


def images_of(size: tuple[int, ...], count: int = 6, channels: int = 2) -> torch.Tensor:
    return torch.rand((count, channels, *size), generator=torch.Generator().manual_seed(0))


def nothing(count: int, dims: int) -> ViewParams:
    drawn = draw(Augmentation(), (8,) * dims, streams(count))
    assert not drawn.flip.any()
    return drawn


@pytest.mark.parametrize("size", SIZES)
def test_nothing_drawn_leaves_images_as_they_are(size):
    images = images_of(size)
    assert torch.equal(augment(images, nothing(6, len(size))), images)


@pytest.mark.parametrize("size", SIZES)
def test_augmenting_leaves_its_input_alone(size):
    images = images_of(size)
    before = images.clone()
    augment(images, draw(EVERYTHING, size, streams(6)))
    assert torch.equal(images, before)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_same_seed_gives_the_same_views_on_any_batch_split(size):
    images, rng = images_of(size, count=8), streams(8)
    whole = augment(images, draw(EVERYTHING, size, rng))
    parts = [np.arange(0, 3), np.arange(3, 4), np.arange(4, 8)]
    split = [augment(images[part], draw(EVERYTHING, size, rng.take(part))) for part in parts]
    torch.testing.assert_close(torch.cat(split), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", ["D", "H", "W"])
def test_flip_equals_monai_and_twice_is_the_identity(axis):
    size = (5, 6, 7)
    images = images_of(size)
    flip = draw(Augmentation(flip_axes=(axis,), flip_prob=1.0), size, streams(6))
    flipped = augment(images, flip)
    expected = torch.stack([Flip("DHW".index(axis))(image) for image in images])
    torch.testing.assert_close(flipped, torch.as_tensor(expected), rtol=0, atol=RESAMPLING_TOLERANCE)
    torch.testing.assert_close(augment(flipped, flip), images, rtol=0, atol=RESAMPLING_TOLERANCE)


@pytest.mark.parametrize("size", [(24, 24), (5, 12, 12)])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_equal_monai_and_four_of_them_are_the_identity(size, turns):
    images = images_of(size)
    drawn = replace(nothing(6, len(size)), quarter_turns=np.full(6, turns))
    plane = (len(size) - 2, len(size) - 1)
    expected = torch.stack([torch.as_tensor(Rotate90(turns, plane)(image)) for image in images])
    torch.testing.assert_close(augment(images, drawn), expected, rtol=0, atol=RESAMPLING_TOLERANCE)
    turned = images
    for _ in range(4):
        turned = augment(turned, drawn)
    torch.testing.assert_close(turned, images, rtol=0, atol=4 * RESAMPLING_TOLERANCE)


def test_rectangular_views_are_only_turned_by_half():
    drawn = draw(Augmentation(rotate_prob=1.0), (16, 32), streams(50))
    assert set(drawn.quarter_turns.tolist()) == {2}
    images = images_of((16, 32), count=50)
    torch.testing.assert_close(augment(images, drawn), images.flip(-1, -2), rtol=0, atol=RESAMPLING_TOLERANCE)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    factor=st.floats(0.8, 1.2),
    size=st.sampled_from([(24, 24), (31, 20), (9, 10, 11)]),
    axis=st.integers(0, 1),
    turns=st.sampled_from([0, 2]),
)
def test_zoom_then_flip_then_turn_equals_monai_in_that_order(factor, size, axis, turns):
    images = images_of(size, count=2, channels=1)
    flip = np.zeros((2, len(size)), bool)
    flip[:, axis] = True
    drawn = replace(nothing(2, len(size)), zoom=np.full(2, factor), flip=flip, quarter_turns=np.full(2, turns))
    mode = "bilinear" if len(size) == 2 else "trilinear"
    zoom = Zoom(factor, mode=mode, padding_mode="constant", keep_size=True)
    turn = Rotate90(turns, (len(size) - 2, len(size) - 1))
    expected = torch.stack([torch.as_tensor(turn(Flip(axis)(zoom(image)))) for image in images])
    torch.testing.assert_close(move(images, drawn), expected, rtol=0, atol=RESAMPLING_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(24, 24), (16, 31), (9, 8, 8)])
def test_voxels_come_from_where_a_grid_that_is_built_voxel_by_voxel_says_bit_for_bit(size, dtype):
    images, drawn = images_of(size, count=40).to(dtype), draw(EVERYTHING, size, streams(40))
    moved = np.flatnonzero((drawn.zoom != 1) | drawn.flip.any(axis=1) | (drawn.quarter_turns != 0))
    assert 30 < len(moved) < 40
    grid = sampling_grid(size, drawn, moved).to(images)
    expected = images.clone()
    expected[moved] = grid_sample(images[moved], grid, padding_mode="zeros", align_corners=False)
    assert torch.equal(move(images, drawn), expected)


class Copies(TorchDispatchMode):
    """Counts the bytes that leave the host. The device is torch's ``meta``, which has shapes and no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "meta":
            self.num_bytes += sum(part.nbytes for part in args if isinstance(part, torch.Tensor) and not part.is_meta)
        return out


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 96), (96, 96, 96)])
def test_only_a_few_numbers_per_sample_are_copied_to_the_device(size):
    images, labels = torch.empty((32, 1, *size), device="meta"), torch.empty((32, *size), device="meta").long()
    quiet = EVERYTHING.model_copy(update={"noise_prob": 0.0})  # whose generators are the device's own
    drawn = draw(quiet, size, streams(32))
    with Copies() as copies:
        assert augment(images, drawn).shape == images.shape
        assert move_labels(labels, drawn).shape == labels.shape
    numbers = copies.num_bytes / 4 / 32
    assert sum(size) < numbers < 5 * sum(size)


def test_labels_move_with_their_image_and_keep_their_values():
    size = (20, 20)
    labels = torch.randint(0, 60_000, (40, *size), generator=torch.Generator().manual_seed(1))
    drawn = draw(EVERYTHING, size, streams(40))
    moved = move_labels(labels, drawn)
    assert moved.dtype == labels.dtype
    assert set(moved.unique().tolist()) <= {0, *labels.unique().tolist()}
    still = np.flatnonzero(drawn.zoom == 1)
    assert len(still) > 3
    same = move(labels[still, None].double(), replace_rows(drawn, still), nearest=True)[:, 0]
    assert torch.equal(same.long(), moved[still])


def replace_rows(drawn: ViewParams, rows: np.ndarray) -> ViewParams:
    return ViewParams(
        drawn.zoom[rows],
        drawn.flip[rows],
        drawn.quarter_turns[rows],
        drawn.scale[rows],
        drawn.shift[rows],
        drawn.smooth_sigma[rows],
        drawn.noise_sigma[rows],
        drawn.noise.take(rows),
    )


def test_labels_that_are_only_flipped_and_turned_move_exactly():
    labels = torch.arange(2 * 16 * 16).view(2, 16, 16)
    flip = np.array([[True, False], [False, False]])
    drawn = replace(nothing(2, 2), flip=flip, quarter_turns=np.array([1, 3]))
    expected = torch.stack([torch.rot90(labels[0].flip(0), 1), torch.rot90(labels[1], 3)])
    assert torch.equal(move_labels(labels, drawn), expected)


def test_scale_multiplies_and_shift_adds_in_that_order():
    images = images_of((8, 8), count=2)
    drawn = replace(nothing(2, 2), scale=np.array([0.1, 0.0]), shift=np.array([0.05, -0.1]))
    expected = torch.stack([images[0] * 1.1 + 0.05, images[1] - 0.1])
    torch.testing.assert_close(augment(images, drawn), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 36), (20, 18, 16)])
def test_smoothing_equals_monai_with_a_sigma_of_its_own_per_sample_and_axis(size):
    images = images_of(size, count=4)
    sigma = np.random.default_rng(0).uniform(0.25, 1.5, (4, len(size)))
    sigma[1] = 0
    smoothed = smooth(images, sigma)
    assert torch.equal(smoothed[1], images[1])
    for i in (0, 2, 3):
        expected = torch.as_tensor(GaussianSmooth(sigma[i].tolist())(images[i]))
        torch.testing.assert_close(smoothed[i], expected, rtol=0, atol=1e-6)


def test_smoothing_is_close_to_scipys_sampled_gaussian():
    images = images_of((40, 40), count=1, channels=1)
    expected = gaussian_filter(images[0, 0].numpy(), (1.5, 1.2), mode="constant", truncate=4)
    assert np.abs(smooth(images, np.array([[1.5, 1.2]]))[0, 0].numpy() - expected).max() < 0.01


def test_noise_has_the_drawn_standard_deviation_and_spares_the_other_samples():
    images = torch.zeros(3, 1, 50, 50)
    drawn = replace(nothing(3, 2), noise_sigma=np.array([0.01, 0.0, 0.5]))
    noisy = augment(images, drawn)
    assert kstest((noisy[0] / 0.01).flatten().numpy(), "norm").pvalue > 1e-3
    assert kstest((noisy[2] / 0.5).flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(noisy[1], images[1])


def test_parameters_are_drawn_as_often_and_as_widely_as_configured():
    count = 4000
    drawn = draw(EVERYTHING.model_copy(update={"noise_sigma": (0.0, 0.01)}), (32, 32), streams(count))
    happened = {
        "zoom": (drawn.zoom != 1, 0.75),
        "flip H": (drawn.flip[:, 0], 0.5),
        "flip W": (drawn.flip[:, 1], 0.5),
        "turn": (drawn.quarter_turns > 0, 0.5),
        "scale": (drawn.scale != 0, 0.75),
        "shift": (drawn.shift != 0, 0.75),
        "smooth": (drawn.smooth_sigma[:, 0] > 0, 0.5),
        "noise": (drawn.noise_sigma > 0, 0.5),
    }
    for name, (mask, prob) in happened.items():
        assert binom.cdf(mask.sum(), count, prob) > 1e-4, name
        assert binom.sf(mask.sum(), count, prob) > 1e-4, name
    assert abs(np.corrcoef(happened["flip H"][0], happened["flip W"][0])[0, 1]) < 4 / np.sqrt(count)
    assert kstest(drawn.zoom[drawn.zoom != 1], "uniform", (0.8, 0.4)).pvalue > 1e-3
    assert kstest(drawn.smooth_sigma[drawn.smooth_sigma > 0], "uniform", (0.25, 1.25)).pvalue > 1e-3
    assert kstest(drawn.noise_sigma[drawn.noise_sigma > 0], "uniform", (0, 0.01)).pvalue > 1e-3
    turns = np.bincount(drawn.quarter_turns, minlength=4)[1:]
    assert turns.min() > 0.28 * turns.sum()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.float16])
def test_cut_takes_each_samples_own_box_to_intensities(dtype):
    stored = torch.arange(2 * 7 * 9).view(2, 1, 7, 9).to(dtype)
    batch = Batch(
        voxels=stored,
        extents=np.array([[7, 9], [7, 9]]),
        scale=torch.tensor([2.0, 0.5]),
        offset=torch.tensor([-1.0, 3.0]),
        spacing_mm=np.ones((2, 2), np.float32),
        sample_ids=("a", "b"),
        volumes=("a", "b"),
        numbers=np.arange(2),
        rows=np.arange(2),
        epochs=np.zeros(2, np.int64),
    )
    crops = cut(batch, boxes_at(np.array([[1, 2], [3, 0]]), (4, 5)))
    assert crops.dtype == torch.float32
    whole = stored.float()
    assert torch.equal(crops[0], whole[0, :, 1:5, 2:7] * 2 - 1)
    assert torch.equal(crops[1], whole[1, :, 3:7, 0:5] * 0.5 + 3)


def test_an_interval_in_the_wrong_order_is_refused():
    with pytest.raises(ValueError, match=r"interval \[1\.2, 0\.8\]: expected low <= high; swap"):
        Augmentation(zoom=(1.2, 0.8))
