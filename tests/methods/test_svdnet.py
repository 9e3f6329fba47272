"""SVDNet: colours become slices, views and loss equal slow references, and it learns the shapes of photographs."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.phantoms.photographs import OBJECTS, make_photograph
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import ResNet3DEncoder, UNetEncoder
from methods.parts.variable_dimension import draw_order, slices_of_colours
from methods.svdnet import SVDNet
from tests.batches import eight_bit_batch, facts_of

CLASSES = {3: "cat", 5: "dog", 9: "horse"}


def tiny(classes: dict[int, str] = CLASSES, encoder: dict[str, Any] | None = None, **fields: Any) -> SVDNet:
    torch.manual_seed(0)
    network = ResNet3DEncoder(ResNet3DEncoder.Config.model_validate({"init_features": 2, **(encoder or {})}))
    given = {"size": 32, "resize_to": 40} | fields
    return SVDNet(SVDNet.Config.model_validate(given), network, facts_of(classes))


def photographs(count: int, size: int = 48) -> Batch:
    """Return noise in colour, with classes 3, 5, 9, 3 ..."""
    voxels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)).byte()
    batch = eight_bit_batch(voxels, [(size, size)] * count, tuple(str(number) for number in range(count)))
    return replace(batch, classes=torch.tensor([[(3, 5, 9)[number % 3]] for number in range(count)]))


def streams(count: int, seed: int = 0) -> SampleRng:
    return photographs(count).rng(seed)


def test_the_colours_of_each_photograph_become_slices_in_their_order_or_in_the_one_that_is_drawn():
    images = torch.arange(2 * 3 * 2 * 5).view(2, 3, 2, 5).float()
    order = np.array([[2, 0, 1], [0, 1, 2]])
    printed, drawn = slices_of_colours(images), slices_of_colours(images, order)
    assert printed.shape == drawn.shape == (2, 1, 3, 2, 5)
    for sample, plane in itertools.product(range(2), range(3)):
        assert torch.equal(printed[sample, 0, plane], images[sample, plane])
        assert torch.equal(drawn[sample, 0, plane], images[sample, order[sample, plane]])


@pytest.mark.slow
def test_all_six_orders_are_drawn_equally_often():
    orders, counts = np.unique(draw_order(streams(3000)), axis=0, return_counts=True)
    assert orders.tolist() == [list(order) for order in itertools.permutations(range(3))]
    assert abs(counts - 500).max() < 4 * (500 * 5 / 6) ** 0.5


def test_the_paper_keeps_the_order_of_colours_and_the_released_code_draws_it_for_each_view():
    grey_steps = torch.tensor([0, 100, 200], dtype=torch.uint8)[None, :, None, None].expand(24, 3, 48, 48)
    batch = replace(photographs(24), voxels=grey_steps)
    for variant, num_orders in (("paper", 1), ("released", 6)):
        (views,) = tiny(variant=variant).views(batch, batch.rng(0)).images
        planes = (views.mean((1, 3, 4)) * 255).round()
        assert views.shape == (24, 1, 3, 32, 32)
        assert len(planes.unique(dim=0)) == num_orders
        assert {tuple(sorted(row)) for row in planes.tolist()} == {(0, 100, 200)}


def test_the_paper_sees_almost_all_of_a_photograph_and_the_released_code_8_to_100_percent():
    batch, shares = photographs(200), {}
    for variant in ("paper", "released"):
        (boxes,) = tiny(variant=variant).views(batch, batch.rng(0)).boxes
        shares[variant] = (boxes[:, 1] - boxes[:, 0]).prod(axis=1) / 48**2
    assert shares["paper"].min() > (32 / 40) ** 2 - 0.03
    assert np.ptp(shares["paper"]) < 0.15
    assert shares["released"].min() < 0.12
    assert shares["released"].max() > 0.95
    assert abs(shares["released"].mean() - 0.54) < 0.06


def test_views_are_mirrored_half_the_time():
    ramp = torch.arange(40, dtype=torch.uint8).expand(100, 3, 40, 40)
    batch = eight_bit_batch(ramp, [(40, 40)] * 100, tuple(str(number) for number in range(100)))
    (views,) = tiny().views(replace(batch, classes=torch.full((100, 1), 3)), batch.rng(0)).images
    rising = views[:, 0, 0, 0, -1] > views[:, 0, 0, 0, 0]
    assert 35 < int(rising.sum()) < 65


def test_the_loss_is_the_cross_entropy_with_labels_that_are_smoothed_over_all_classes():
    method = tiny(label_smoothing=0.2).double()
    batch = photographs(6)
    views = method.views(batch, batch.rng(0))
    assert views.targets["classes"].tolist() == [0, 1, 2, 0, 1, 2]
    images = views.images[0].double()
    losses = method.loss(Views((images,), targets=views.targets))
    features = method.encoder.features(images)[-1].mean((2, 3, 4)).detach().numpy()
    logits = features @ method.head.weight.detach().numpy().T + method.head.bias.detach().numpy()
    expected = 0.0
    for row, true in zip(logits, [0, 1, 2, 0, 1, 2], strict=True):
        log_shares = row - np.log(np.exp(row).sum())
        expected -= sum((0.8 * (number == true) + 0.2 / 3) * log_shares[number] for number in range(3)) / 6
    assert abs(losses.total.item() - expected) < 1e-12


@pytest.mark.parametrize("network", ["resnet3d_18", "resnet3d_v1c_18"])
def test_the_depth_of_three_slices_is_kept_through_all_stages_and_lost_without_the_modification(network):
    batch = photographs(2)
    for depths, strides in (([3, 3, 3, 3, 3], "kept"), ([2, 1, 1, 1, 1], "vanilla")):
        method = tiny(encoder={"network": network, "depth_strides": strides})
        maps = method.encoder.features(method.views(batch, batch.rng(0)).images[0])
        assert [level.shape[2] for level in maps] == depths


def test_without_the_modification_kernels_of_the_later_stages_learn_only_their_middle_slice():
    """Section IV-E 3: once the depth is 1, the outer slices of a kernel see nothing but zeros."""
    batch = photographs(4)
    for strides, learn in (("kept", True), ("vanilla", False)):
        method = tiny(encoder={"depth_strides": strides})
        method.loss(method.views(batch, batch.rng(0))).total.backward()
        gradient = method.encoder.get_parameter("layer4.1.conv1.weight").grad
        assert gradient is not None
        assert bool(gradient[:, :, 1].abs().sum() > 0)
        assert bool(gradient[:, :, [0, 2]].abs().sum() > 0) == learn


def test_photographs_with_no_class_or_with_two_are_refused():
    method, batch = tiny(), photographs(3)
    with pytest.raises(ValueError, match="svdnet: 2 of the 3 samples do not have exactly 1 class"):
        method.see_classes(np.array([[3, -1], [-1, -1], [3, 5]]), np.array([[3]]))
    with pytest.raises(ValueError, match="svdnet: sample 1 has 0 classes, expected 1"):
        method.views(replace(batch, classes=torch.tensor([[3], [-1], [9]])), batch.rng(0))
    with pytest.raises(ValueError, match="3 samples of a batch have no classes"):
        method.views(replace(batch, classes=None), batch.rng(0))


@pytest.mark.parametrize(
    ("fields", "encoder", "message"),
    [
        ({}, {"in_channels": 3}, "encoder.in_channels 3: the colours of a photograph are the slices of a volume"),
        ({"size": 64}, {}, r"method.resize_to \(40, 40\): 40 is less than the 64 voxels of size"),
        ({"area": [0, 1]}, {}, "expected shares of the sample, 0 < low <= high <= 1"),
        ({"label_smoothing": 1.0}, {}, "less than 1"),
    ],
)
def test_what_does_not_fit_is_refused(fields, encoder, message):
    with pytest.raises(ValueError, match=message):
        tiny(encoder=encoder, **fields)


def test_a_single_class_is_refused():
    with pytest.raises(
        ValueError, match="svdnet: the shards name 1 classes, expected at least 2; ingest with classes"
    ):
        tiny({3: "cat"})


def test_it_is_fed_colour_photographs_whatever_encoder_it_trains():
    assert SVDNet.takes(tiny().encoder) == (2, 3)
    assert SVDNet.takes(UNetEncoder(UNetEncoder.Config(spatial_dims=3, features=(1, 1, 1, 1, 1, 1)))) == (2, 3)


@pytest.mark.slow
def test_it_learns_the_classes_of_photographs_that_it_has_not_seen():
    """Five classes: chance is right for one in five."""
    steps, learnt, unseen = 120, 400, 128
    pictures = [make_photograph(0, number, 64) for number in range(learnt + unseen)]
    voxels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).movedim(3, 1).contiguous()
    labels = torch.tensor([[picture.label] for picture in pictures])

    def batch_of(rows: np.ndarray) -> Batch:
        batch = eight_bit_batch(voxels[rows], [(64, 64)] * len(rows), tuple(map(str, rows.tolist())))
        return replace(batch, classes=labels[rows])

    fields = {"variant": "released", "size": 64, "area": (0.5, 1.0)}
    method = tiny(dict(enumerate(OBJECTS)), {"init_features": 8}, **fields).train()
    optimiser = torch.optim.AdamW(method.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    generator = np.random.default_rng(0)
    for step in range(steps):
        batch = batch_of(generator.choice(learnt, 32, replace=False))
        optimiser.zero_grad()
        method.loss(method.views(batch, batch.rng(step))).total.backward()
        optimiser.step()
        schedule.step()
    others = batch_of(np.arange(learnt, learnt + unseen))
    with torch.no_grad():
        assert method.eval().loss(method.views(others, others.rng(0))).parts["accuracy"] > 0.35
