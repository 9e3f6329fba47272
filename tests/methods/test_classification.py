"""Classification: the samples for training and validation, losses, class weights, and scores from merged evidence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from methods.downstream.base import merge
from methods.downstream.class_losses import balanced_weights, read_grades
from methods.downstream.classification import Classification
from methods.encoders import Encoder, UNetEncoder
from tests.batches import eight_bit_batch, facts_of
from tests.encoders import EACH_BUILD, Pixels
from tests.methods.test_contract import tiny_encoder
from tests.references import class_losses

NAMES = {0: "normal", 2: "mild", 5: "severe"}
NUMBERS = tuple(NAMES)
KINDS = ("single", "ordinal", "multi_label")
TINY_UNET = {"features": (4, 6, 8, 12, 16, 4)}


def task_of(encoder: Encoder | None = None, names: dict[int, str] = NAMES, **fields: Any) -> Classification:
    torch.manual_seed(0)
    config = {"size": 32, "hidden_dims": (), "augment": Augmentation(), **fields}
    return Classification(Classification.Config(**config), encoder or Pixels(2), facts_of(names))


def batch_of(classes: list[tuple[int, ...]], size: tuple[int, ...] = (40, 36), first: int = 0) -> Batch:
    """Noise as bright as the sample's highest class, in samples of two sizes."""
    rng = np.random.default_rng(first)
    sizes = [tuple(s - 4 * (i % 2) for s in size) for i in range(len(classes))]
    voxels = np.zeros((len(classes), 1, *size), np.uint8)
    for image, own, extent in zip(voxels, classes, sizes, strict=True):
        level = 20 + 30 * max(own, default=-1)
        image[(0, *(slice(s) for s in extent))] = rng.integers(level, level + 20, extent)
    ids = tuple(f"s-{first + i}" for i in range(len(classes)))
    width = max(1, *(len(own) for own in classes))
    padded = torch.tensor([[*own, *[-1] * (width - len(own))] for own in classes])
    return replace(eight_bit_batch(torch.from_numpy(voxels), sizes, ids, first), classes=padded)


def part(batch: Batch, index: list[int]) -> Batch:
    """Return some samples of a batch."""
    tensors = ("voxels", "extents", "scale", "offset", "spacing_mm", "numbers", "rows", "epochs", "classes")
    names = {name: tuple(getattr(batch, name)[i] for i in index) for name in ("sample_ids", "volumes")}
    return replace(batch, **names, **{name: getattr(batch, name)[index] for name in tensors})


SINGLE = [(0,), (2,), (5,), (0,), (2,), (0,)]
SEVERAL = [(0, 5), (), (2,), (5,), (0, 2, 5), (0,)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 10), (6, 7, 8)])
def test_loss_and_gradient_equal_a_slow_reference(kind: str, size: tuple[int, ...]) -> None:
    weights = (0.5, 2.0, 3.5)
    classes = SEVERAL if kind == "multi_label" else SINGLE
    batch = batch_of(classes, size)
    task = task_of(Pixels(len(size)), kind=kind, size=4, class_weights=weights).double()
    views = task.views(batch, batch.rng(0))
    images = views.images[0].double()
    losses = task.loss(replace(views, images=(images,)))
    losses.total.backward()
    targets = [{NUMBERS.index(c) for c in own} if kind == "multi_label" else NUMBERS.index(own[0]) for own in classes]
    head = {name: value.detach().numpy() for name, value in task.network.head[0].named_parameters()}
    expected = class_losses.loss(kind, images.numpy(), targets, list(weights), head)
    assert losses.total.item() == pytest.approx(expected, abs=1e-10)
    for name, gradient in class_losses.gradients(kind, images.numpy(), targets, list(weights), head).items():
        found = task.network.head[0].get_parameter(name).grad
        np.testing.assert_allclose(found.numpy(), gradient, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_without_weights_the_loss_is_torch_s_cross_entropy() -> None:
    batch, task = batch_of(SINGLE), task_of()
    views = task.views(batch, batch.rng(0))
    logits = task.network(views.images[0])
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 0]))
    torch.testing.assert_close(task.loss(views).total, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_average_to_the_loss_of_one_even_where_their_classes_differ(kind: str) -> None:
    batch, task = batch_of(SINGLE), task_of(kind=kind, class_weights=(0.5, 2.0, 3.5))
    ranks = [part(batch, [0, 3, 5]), part(batch, [1, 2, 4])]
    each = [task.loss(task.views(own, own.rng(0))).total for own in ranks]
    torch.testing.assert_close(sum(each) / 2, task.loss(task.views(batch, batch.rng(0))).total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "dims"), EACH_BUILD)
def test_one_step_is_finite_with_every_encoder_and_reaches_every_parameter(name: str, dims: int, kind: str) -> None:
    encoder = tiny_encoder(name, dims)
    size = (*[32] * (dims - 1), 2 * encoder.stride)
    feature = "flattened" if kind == "ordinal" else "pooled"
    task = task_of(encoder, kind=kind, size=size, hidden_dims=(6,), feature=feature, dropout=0.0).train()
    batch = batch_of(SINGLE[:3], (20, 36, 40)[-dims:])
    losses = task.loss(task.views(batch, batch.rng(0)))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    grouped = [id(p) for group in task.param_groups() for p in group.params]
    learning = {key: p for key, p in task.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(id(p) for p in learning.values())
    assert len(learning) == len([*task.parameters()]) - len(encoder.unreached())
    assert [key for key, p in learning.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_views_are_the_same_for_any_split_of_the_batch() -> None:
    task = task_of(size=16, resize_to=24, augment=Classification.Config().augment)
    batch = batch_of(SINGLE)
    whole = task.views(batch, batch.rng(7))
    again = task.views(batch, batch.rng(7))
    assert torch.equal(whole.images[0], again.images[0])
    for rows in ([0], [1, 2, 3], [4, 5]):
        own = part(batch, rows)
        views = task.views(own, own.rng(7))
        torch.testing.assert_close(views.images[0], whole.images[0][rows], rtol=0, atol=1e-6)
        assert torch.equal(views.targets["classes"], whole.targets["classes"][rows])
        np.testing.assert_array_equal(views.boxes[0], whole.boxes[0][rows])
    assert not torch.equal(task.views(batch, batch.rng(8)).images[0], whole.images[0])


def test_targets_say_which_classes_each_sample_has_in_order_of_their_numbers() -> None:
    batch = batch_of(SEVERAL)
    found = task_of(kind="multi_label").views(batch, batch.rng(0)).targets["classes"]
    assert found.int().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 0, 0]]


class ByBrightness(nn.Module):
    """Tells the class from the mean intensity of the middle voxels."""

    def forward(self, images: Tensor) -> Tensor:
        level = images[:, 0, 12:20, 12:20].mean((1, 2)) * 255
        return -torch.stack([(level - (30 + 30 * number)).abs() for number in NUMBERS], dim=1)


def test_samples_are_judged_from_their_middle_without_augmentation() -> None:
    task = task_of(resize_to=(None, 40), augment=Classification.Config().augment).eval()
    task.network = ByBrightness()
    batch = batch_of(SINGLE)
    judged = task.judge(batch)
    assert [row[:2].tolist() for row in judged.evidence.values()] == [[0, 0], [1, 1], [2, 2], [0, 0], [1, 1], [0, 0]]
    for row in judged.evidence.values():
        assert row[2:].sum() == pytest.approx(1)
    again = task.judge(batch)
    assert all(np.array_equal(again.evidence[name], row) for name, row in judged.evidence.items())
    for index, has, (told, probabilities) in judged.seen:
        assert has.nonzero().tolist() == told.nonzero().tolist() == [[[0, 1, 2, 0, 1, 0][index]]]
        np.testing.assert_array_equal(probabilities.numpy(), judged.evidence[f"s-{index}"][2:])


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_judge_parts_and_their_evidence_scores_as_one(kind: str) -> None:
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, **TINY_UNET))
    task = task_of(encoder, kind=kind, hidden_dims=(4,)).eval()
    batch = batch_of(SEVERAL if kind == "multi_label" else SINGLE)
    together = task.scores(task.judge(batch).evidence)
    apart = task.scores(merge(task.judge(part(batch, rows)).evidence for rows in ([4, 1], [0], [5, 2, 3])))
    assert apart.metrics == pytest.approx(together.metrics)
    assert apart.remarks == together.remarks


def evidence(rows: list[list[float]]) -> dict[str, np.ndarray]:
    return {f"s-{n}": np.array(row) for n, row in enumerate(rows)}


PERFECT = [[0, 0, 0.8, 0.1, 0.1], [1, 1, 0.2, 0.7, 0.1], [2, 2, 0.1, 0.1, 0.8]]


def test_the_score_is_the_metric_that_is_asked_for() -> None:
    missed = [*PERFECT, [2, 1, 0.1, 0.5, 0.4]]
    for metric in ("accuracy", "auc", "kappa", "f1", "precision", "recall", "specificity"):
        scores = task_of(score=metric).scores(evidence(missed))
        assert scores.metrics["score"] == scores.metrics[metric]
    assert scores.metrics["accuracy"] == 3 / 4
    # Kinds: one error of four; by chance, 16 pairs less the 1 x 1, 1 x 2 and 2 x 1 that agree.
    assert scores.metrics["kappa"] == pytest.approx(1 - (1 / 4) / (11 / 16))
    assert "kappa_quadratic" not in scores.metrics
    # Grades 0, 2 and 5: one of four samples is 3 off; by chance, squared distances of all 16 pairs.
    grades, predicted = np.array([0, 2, 5, 5]), np.array([0, 2, 5, 2])
    by_chance = ((grades[:, None] - predicted) ** 2).mean()
    for graded in (task_of(score="kappa_quadratic", grades=True), task_of(score="kappa_quadratic", kind="ordinal")):
        metrics = graded.scores(evidence(missed)).metrics
        assert metrics["score"] == metrics["kappa_quadratic"] == pytest.approx(1 - (9 / 4) / by_chance)
        assert "kappa" not in metrics


def test_what_is_learnt_as_grades_counts_as_grades() -> None:
    config = Classification.Config
    assert [config(kind=kind).grades for kind in ("single", "ordinal", "multi_label")] == [False, True, False]
    assert [config(variant=variant).grades for variant in ("paper", "released")] == [False, True]
    assert config.model_validate_json(config(kind="ordinal").model_dump_json()) == config(kind="ordinal")


def test_samples_are_counted_by_true_and_predicted_class() -> None:
    assert task_of().confusions(evidence([*PERFECT, [2, 1, 0.1, 0.5, 0.4]])).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 1, 1],
    ]
    assert task_of(kind="multi_label").confusions(evidence([[1, 0, 1, 0.5, 0.5, 0.5]])) is None


def test_names_that_mlflow_refuses_are_changed() -> None:
    scores = task_of(names={0: "no (0)", 2: "1/2", 5: "x"}).scores(evidence(PERFECT))
    assert (scores.metrics["recall/no _0_"], scores.metrics["recall/1_2"]) == (1, 1)


def test_a_score_that_the_samples_do_not_have_is_refused() -> None:
    rows = evidence([[1, 1, 0.1, 0.8, 0.1], [1, 0, 0.5, 0.4, 0.1]])
    with pytest.raises(ValueError, match=r"score auc: it is not defined on these 2 samples .*choose another score"):
        task_of(score="auc").scores(rows)
    assert task_of(score="accuracy").scores(rows).metrics["score"] == 0.5


def test_balanced_weights_make_classes_count_alike() -> None:
    counts = np.array([6, 3, 0, 1])
    weights = balanced_weights(counts, 10, "single")
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 1, 10 / 3])
    assert (weights * counts)[counts > 0].tolist() == pytest.approx([10 / 3] * 3)
    assert balanced_weights(counts, 10, "multi_label").tolist() == pytest.approx([4 / 6, 7 / 3, 1, 9])


def test_balanced_weights_are_set_from_the_training_samples() -> None:
    trained_on, judged_on = np.array([[0]] * 6 + [[5]] * 2), np.array([[0], [2]])
    task = task_of(class_weights="balanced")
    task.see_classes(trained_on, judged_on)
    assert task.weights.tolist() == pytest.approx([8 / 12, 1, 8 / 4])
    assert "weights" not in task.state_dict()
    given = task_of(class_weights=(1.0, 2.0, 3.0))
    given.see_classes(trained_on, judged_on)
    assert given.weights.tolist() == [1, 2, 3]
    several = task_of(class_weights="balanced", kind="multi_label")
    several.see_classes(np.array([[0, 5], [0, -1], [-1, -1], [0, -1]]), judged_on)
    assert several.weights.tolist() == pytest.approx([1 / 3, 1, 3])


def test_samples_whose_classes_do_not_fit_are_refused_before_anything_starts() -> None:
    fitting, several, alike = np.array([[0], [2]]), np.array([[0, 5], [2, -1], [-1, -1]]), np.array([[2], [2]])
    with pytest.raises(
        ValueError, match=r"2 of the 3 samples that are trained on do not have exactly 1 class; set .*kind"
    ):
        task_of().see_classes(several, fitting)
    with pytest.raises(ValueError, match=r"2 of the 3 samples that are judged on do not have exactly 1 class"):
        task_of().see_classes(fitting, several)
    for metric in ("auc", "kappa"):
        with pytest.raises(
            ValueError, match=rf"score {metric}: it is not defined on these 2 samples .*choose another"
        ):
            task_of(score=metric).see_classes(fitting, alike)
    task_of(score="accuracy").see_classes(fitting, alike)
    task_of(kind="multi_label").see_classes(several, several)


def test_grades_are_counted_as_released_and_their_probabilities_are_a_distribution() -> None:
    levels = torch.tensor([[0.9, 0.8, 0.3, 0.1], [0.2, 0.1, 0.1, 0.0], [1.0, 0.4, 0.7, 0.6], [0.9, 0.9, 0.9, 0.6]])
    grades, probabilities = read_grades(levels)
    assert grades.tolist() == [1, 0, 2, 3]
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    torch.testing.assert_close(probabilities[0], torch.tensor([0.2, 0.5, 0.2, 0.1]))
    torch.testing.assert_close(probabilities[2], torch.tensor([0.6, 0.0, 0.0, 0.4]))


def test_variants_say_what_is_learnt_of_a_grade() -> None:
    kinds = {name: Classification.Config(variant=name).kind for name in ("paper", "released")}
    assert kinds == {"paper": "single", "released": "ordinal"}
    assert Classification.Config(variant="released", kind="multi_label").kind == "multi_label"
    config = Classification.Config(variant="released", resize_to=(None, 256), size=(8, 224))
    assert Classification.Config.model_validate_json(config.model_dump_json()) == config


def test_the_head_is_the_released_one_by_default() -> None:
    head = task_of(Pixels(2), hidden_dims=(1024,)).network.head
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    flat = task_of(Pixels(2, channels=2), feature="flattened", size=(8, 6)).network.head
    assert (flat[0].in_features, flat[0].out_features) == (2 * 8 * 6, 3)


def test_the_card_says_what_the_outputs_mean() -> None:
    assert task_of(kind="ordinal").card() == {
        "class_names": ["normal", "mild", "severe"],
        "class_numbers": [0, 2, 5],
        "kind": "ordinal",
    }


class Hinges(Encoder):
    """One map of sixteen bent brightnesses, without a norm that would hide how bright an image is."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.channels, self.stride = 2, 1, (16,), 1
        self.convolution = nn.Conv2d(1, 16, 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        return [self.convolution(x).relu()]

    def levels(self) -> list[nn.Module]:
        return [self.convolution]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_short_training_tells_the_classes_apart(kind: str) -> None:
    torch.manual_seed(0)
    task = task_of(Hinges(), kind=kind, size=8, score="accuracy")
    batch = batch_of(SINGLE * 2)
    before = task.scores(task.judge(batch).evidence).metrics["score"]
    optimiser = torch.optim.Adam(task.parameters(), lr=0.05)
    for step in range(150):
        losses = task.loss(task.views(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert losses.parts["training_accuracy"] == 1
    assert before <= 0.5
    assert task.scores(task.judge(batch).evidence).metrics["score"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": {0: "normal"}}, r"the shards name 1 classes, expected at least 2; ingest with classes"),
        ({"names": {}, "kind": "multi_label"}, r"the shards name 0 classes, expected at least 1; ingest"),
        ({"class_weights": (1.0, 2.0)}, r"class_weights has 2 numbers, the shards name 3 classes \(normal, mild"),
        ({"resize_to": 16}, r"resize_to \(16, 16\): 16 is less than the 32 voxels .*resize to at least 32"),
        ({"size": (32, 32, 32)}, r"size \(32, 32, 32\) has 3 axes, the encoder has 2; give one number"),
        (
            {"score": "kappa", "kind": "multi_label"},
            r"score 'kappa' with kind 'multi_label' .*choose label_accuracy",
        ),
        ({"score": "label_accuracy"}, r"score 'label_accuracy' with kind 'single' .*choose kappa, accuracy"),
        ({"score": "kappa_quadratic"}, r"'kappa_quadratic' with kind 'single' and grades false: .*choose kappa,"),
        ({"score": "kappa", "kind": "ordinal"}, r"'kappa' with kind 'ordinal' .*choose kappa_quadratic, accuracy"),
        (
            {"grades": False, "kind": "ordinal"},
            r"grades false with kind 'ordinal': ordinal classes are grades; leave",
        ),
        ({"grades": True, "kind": "multi_label"}, r"grades true with kind 'multi_label': .* are not in an order"),
    ],
)
def test_a_task_that_cannot_work_is_refused_in_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(**fields)


def test_a_size_that_the_encoder_cannot_take_is_refused() -> None:
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, **TINY_UNET))
    with pytest.raises(ValueError, match=r"task.size \(40, 40\): 40 is not a multiple of .* stride 16; use 32"):
        task_of(encoder, size=40)


def test_samples_with_another_number_of_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples of size \(5, 40, 40\) has 3 axes, the encoder has 2"):
        task_of().check_extent((5, 40, 40))


def test_samples_whose_classes_are_not_one_each_are_refused() -> None:
    batch = batch_of([(0,), (2, 5)])
    with pytest.raises(ValueError, match=r"sample s-1 has 2 classes, expected 1; set downstream.task.kind to multi"):
        task_of().views(batch, batch.rng(0))
    bare = replace(batch, classes=None)
    with pytest.raises(ValueError, match=r"2 samples of a batch have no classes.*ingest with classes"):
        task_of().views(bare, bare.rng(0))
