"""Regions: unions of label values that may overlap, learnt by sigmoids and each scored on its own."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from methods.downstream.metrics import score_regions
from methods.downstream.segmentation import Segmentation
from methods.downstream.targets import Regions, dice_bce_loss
from methods.encoders import UNetEncoder
from tests.batches import eight_bit_batch, facts_of
from tests.references import regions as reference

BRATS = {"whole tumour": (1, 2, 4), "tumour core": (1, 4), "enhancing tumour": (4,)}
NAMES = {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
STORED = 40  # a voxel of label v is stored as v * STORED


def method_of(dims: int = 2, names: dict[int, str] = NAMES, **fields: Any) -> Segmentation:
    torch.manual_seed(0)
    # Batch norm would need more than these few steps for its running statistics.
    widths = (8, 8, 16, 16, 16, 8)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=dims, features=widths, norm="instance"))
    config = {"crop_size": (32,) * dims, "augment": Augmentation(), "regions": BRATS, **fields}
    return Segmentation(Segmentation.Config(**config), encoder, facts_of(names))


def tumours(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Draw boxes inside boxes: oedema, in it a necrotic core, in it what enhances."""
    labels = np.zeros(size, np.uint8)
    low = [int(rng.integers(1, s // 3)) for s in size]
    for value, inset in ((2, 0), (1, 3), (4, 5)):
        labels[tuple(slice(a + inset, a + s // 2 - inset) for a, s in zip(low, size, strict=True))] = value
    return labels


def batch_of(sizes: list[tuple[int, ...]]) -> Batch:
    """Samples whose voxels tell their label."""
    rng = np.random.default_rng(0)
    labels = np.zeros((len(sizes), *np.max(sizes, axis=0)), np.uint8)
    for sample, size in zip(labels, sizes, strict=True):
        sample[tuple(slice(0, s) for s in size)] = tumours(rng, size)
    batch = eight_bit_batch(
        torch.from_numpy(labels * STORED)[:, None], sizes, tuple(f"s-{i}" for i in range(len(sizes)))
    )
    return Batch(**{**vars(batch), "labels": torch.from_numpy(labels)})


class Oracle(nn.Module):
    """Reads the regions off the intensity: whole tumour, tumour core, enhancing tumour."""

    def forward(self, images: Tensor) -> Tensor:
        label = (images[:, 0] * 255 / STORED).round()
        whole, core, enhancing = label > 0, (label == 1) | (label == 4), label == 4
        return torch.stack([whole, core, enhancing], dim=1).float() * 2 - 1


def test_loss_and_gradient_equal_the_slow_reference() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (2, 4, 5), generator=generator)]
    labels[1][labels[1] == 4] = 2  # the second image has nothing that enhances
    target = Regions(BRATS)
    classes = torch.searchsorted(torch.tensor([0, 1, 2, 4]), labels)
    losses = target.loss(logits, classes)
    losses.total.backward()
    wanted = [BRATS[name] for name in target.names[1:]]
    found = [losses.total.item(), losses.parts["dice_loss"].item(), losses.parts["cross_entropy"].item()]
    numbers = logits.detach().numpy(), labels.numpy(), wanted
    expected = [function(*numbers) for function in (reference.loss, reference.dice_loss, reference.cross_entropy)]
    assert found == pytest.approx(expected, abs=1e-10)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), reference.gradient(*numbers), rtol=0, atol=1e-5 * 1e-2)


def test_a_perfect_and_sure_prediction_costs_nothing_and_its_contrary_the_most() -> None:
    truth = torch.tensor([[[[True, False], [False, True]]]])
    sure = torch.where(truth, 100.0, -100.0)
    assert [part.item() for part in dice_bce_loss(sure, truth)] == pytest.approx([0, 0], abs=1e-6)
    dice, cross_entropy = dice_bce_loss(-sure, truth)
    assert (dice.item(), cross_entropy.item()) == pytest.approx((1, 100), abs=1e-5)


def test_a_voxel_is_in_every_region_that_has_its_label_value() -> None:
    target = Regions(BRATS)
    assert target.values == (1, 2, 4)
    regions = target.true(torch.tensor([[0, 1, 2, 3]]))  # classes of the values 0, 1, 2, 4
    assert regions[0].tolist() == [[False, True, True, True], [False, True, False, True], [False, False, False, True]]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_outputs_come_largest_region_first_whatever_order_a_file_gives_them_in(order: tuple[int, ...]) -> None:
    given_regions = {list(BRATS)[i]: BRATS[list(BRATS)[i]] for i in order}
    method = method_of(regions=given_regions)
    assert method.class_names == ("background", "whole tumour", "tumour core", "enhancing tumour")
    assert method.card() == {
        "class_names": ["whole tumour", "tumour core", "enhancing tumour"],
        "regions": {"whole tumour": [1, 2, 4], "tumour core": [1, 4], "enhancing tumour": [4]},
    }
    assert method.network(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_a_picture_shows_the_innermost_region_of_each_voxel() -> None:
    painted = Regions(BRATS).paint(
        torch.tensor([[[False, True, True, True]], [[False, False, True, True]], [[False, False, False, True]]])
    )
    assert painted.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("sizes", [[(50, 40), (36, 70)], [(36, 40, 34)]])
def test_what_is_seen_and_counted_is_right_where_the_network_is(sizes: list[tuple[int, ...]]) -> None:
    method, batch = method_of(len(sizes[0])), batch_of(sizes)
    method.network = Oracle()
    judged = method.judge(batch)
    scores = method.scores(judged.evidence)
    assert {name: scores.metrics[f"dice/{name}"] for name in BRATS} == dict.fromkeys(BRATS, 1.0)
    assert scores.metrics["score"] == scores.metrics["iou_mean"] == 1.0
    assert batch.labels is not None
    for index, true, predicted in judged.seen:
        inside = tuple(slice(0, extent) for extent in batch.extents[index])
        expected = torch.tensor([0, 2, 1, 0, 3])[batch.labels[index][inside].long()]
        assert torch.equal(true.long(), expected)
        assert torch.equal(predicted.long(), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_equal_the_slow_reference_under_both_conventions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, 2, 4])[rng.integers(0, 4, (3, 2, 3, 4))]
    labels[rng.random(labels.shape) < 0.4] = 0
    labels[0][labels[0] == 4] = 0
    predicted = rng.random((3, 3, 2, 3, 4)) < rng.uniform(0, 0.5, (3, 3, 1, 1, 1))
    predicted[0, 2] = rng.random() < 0.5
    target = Regions(BRATS)
    truth = target.true(torch.searchsorted(torch.tensor([0, 1, 2, 4]), torch.from_numpy(labels)))
    counts = np.concatenate([target.count(t, p) for t, p in zip(truth, torch.from_numpy(predicted), strict=True)])
    for convention, nothing in (("volume", None), ("brats", 1.0)):
        scores = target.score(counts, convention)
        expected = reference.mean_scores(labels, predicted, BRATS, nothing)
        assert scores.dice == pytest.approx({name: dice for name, (dice, _) in expected.items()})
        assert scores.iou == pytest.approx({name: iou for name, (_, iou) in expected.items()})
        assert scores.mean_dice == pytest.approx(np.mean([dice for dice, _ in expected.values()]))


def counts_of(*pairs: tuple[int, int, int]) -> np.ndarray:
    """Return (1, regions, 2, 2) counts of 100 voxels from (true, predicted, agreeing) voxels of each region."""
    tables = [[[100 - true - said + both, said - both], [true - both, both]] for true, said, both in pairs]
    return np.array(tables)[None]


def test_hand_counted_voxels_give_the_scores_that_a_person_gets() -> None:
    scores = score_regions(counts_of((20, 30, 15), (10, 10, 10), (8, 2, 0)), ["whole", "core", "enhancing"])
    assert scores.dice == pytest.approx({"whole": 30 / 50, "core": 1.0, "enhancing": 0.0})
    assert scores.iou == pytest.approx({"whole": 15 / 35, "core": 1.0, "enhancing": 0.0})
    assert (scores.mean_dice, scores.remarks) == (pytest.approx(1.6 / 3), ())


def test_a_region_that_is_nowhere_is_said_in_words() -> None:
    counts = np.concatenate([counts_of((20, 20, 10), (0, 0, 0)), counts_of((20, 20, 20), (0, 0, 0))])
    scores = score_regions(counts, ["whole", "enhancing"])
    assert (scores.dice, scores.num_units) == ({"whole": 0.75}, {"whole": 2})
    assert scores.remarks == (
        "label enhancing occurs in none of the 2 volumes: it has no score and is left out of the mean",
    )


def test_in_brats_silence_about_what_is_not_there_scores_one_and_a_false_alarm_zero() -> None:
    counts = np.concatenate([counts_of((0, 0, 0)), counts_of((0, 5, 0)), counts_of((10, 10, 5))])
    assert score_regions(counts, ["enhancing"], "brats").dice == pytest.approx({"enhancing": (1 + 0 + 0.5) / 3})
    assert score_regions(counts, ["enhancing"], "volume").dice == pytest.approx({"enhancing": (0 + 0.5) / 2})
    silent = score_regions(counts[:2], ["enhancing"], "brats")
    assert silent.remarks == (
        "label enhancing occurs in none of the 2 volumes: it scores 1 where it was not predicted either, else 0",
    )


@pytest.mark.slow
def test_a_short_training_finds_regions_that_overlap() -> None:
    method, batch = method_of(crops_per_sample=1, organ_prob=1.0), batch_of([(32, 32)] * 4)
    optimiser = torch.optim.Adam(method.parameters(), lr=2e-2)
    before = method.scores(method.judge(batch).evidence).metrics
    for step in range(30):
        losses = method.loss(method.views(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    after = method.scores(method.judge(batch).evidence).metrics
    assert before["score"] < 0.4
    assert min(after[f"dice/{name}"] for name in BRATS) > 0.8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": (1,)}, r"labels \(1,\) beside regions \['whole tumour'.*give one of the two"),
        ({"regions": {"core": ()}}, r"regions\.core has 0 label values; give one or more, as \[1, 2, 4\]"),
        ({"regions": {}}, r"at least 1 item after validation, not 0"),
        (
            {"regions": {"core/rim": (1,)}},
            r"regions\.core/rim: expected only letters, digits, spaces, - and _.*rename it",
        ),
        ({"convention": "thesis"}, r"convention thesis scores the background.*set convention=volume or"),
        (
            {"regions": {"core": (1, 3)}},
            r"regions\.core: value 3 is not among the shards' labels \[1, 2, 4\]; name some",
        ),
        ({"regions": {"all": (0, 1)}}, r"regions\.all: value 0 is not among the shards' labels \[1, 2, 4\]"),
    ],
)
def test_regions_that_cannot_work_are_refused_in_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_of(**fields)


def test_a_config_with_regions_reads_back_as_itself() -> None:
    config = method_of().config
    assert Segmentation.Config.model_validate_json(config.model_dump_json()) == config
