"""DINO: loss and gradient equal a slow reference; teacher, centre and temperature move as told, and are restored."""

import math

import pytest
import torch

from methods.base import Facts, Progress, Views
from methods.dino import DINO
from methods.parts.distillation import entropy_of_mean
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.test_contract import batch_of, effective_rank, tiny_method
from tests.references import dino as reference

TINY = {"hidden_dim": 6, "projector_dim": 4, "num_prototypes": 5}


def tiny(facts: Facts = FACTS, channels: int = 3, **fields: object) -> DINO:
    torch.manual_seed(0)
    config = {**TINY, "large_crops": {"size": 4}, "small_crops": {"size": 2, "num": 1}, **fields}
    method = DINO(DINO.Config.model_validate(config), Pixels(2, channels), facts).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    return method


def views_of(count: int = 3, channels: int = 3) -> Views:
    generator = torch.Generator().manual_seed(1)
    sizes = (4, 4, 2)
    crops = [torch.randn(count, channels, s, s, generator=generator, dtype=torch.float64) for s in sizes]
    return Views(tuple(crops))


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}


def test_loss_gradients_and_centre_equal_the_reference():
    method, views = tiny(), views_of()
    with torch.no_grad():
        method.codes.centre.copy_(torch.linspace(-0.3, 0.4, 5))
    before = method.codes.centre.clone()
    student, teacher = weights_of(method.head), weights_of(method.teacher.head)
    expected, told = reference.loss(list(views.images), 2, student, teacher, before, (0.1, 0.04))
    expected.backward()

    losses = method.loss(views)
    losses.total.backward()
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-7)
    for name, parameter in method.head.named_parameters():
        torch.testing.assert_close(parameter.grad, student[name].grad, rtol=0, atol=1e-7)
        assert parameter.grad.abs().max() > 1e-4
    assert all(p.grad is None for p in method.teacher.parameters())
    method.after_step(Progress(1, 10, 0))
    torch.testing.assert_close(method.codes.centre, 0.9 * before + 0.1 * told, rtol=0, atol=1e-7)


def test_the_teacher_keeps_0_996_of_itself_at_first_and_all_of_itself_at_the_end():
    method = tiny()
    before = [p.clone() for p in method.teacher.head.parameters()]
    for share, kept in ((0.0, 0.996), (0.5, 0.998), (1.0, 1.0)):
        method.loss(views_of())
        method.after_step(Progress(round(10 * share), 10, 0))
        after = [*method.teacher.head.parameters()]
        for old, new, student in zip(before, after, method.head.parameters(), strict=True):
            torch.testing.assert_close(new, kept * old + (1 - kept) * student, rtol=0, atol=1e-7)
        before = [p.clone() for p in after]


@pytest.mark.parametrize(
    ("variant", "expected"), [("paper", [0.04, 0.055, 0.07, 0.07]), ("released", [0.04, 0.04, 0.04, 0.04])]
)
def test_the_teacher_s_temperature_rises_over_a_tenth_of_the_budget_in_the_paper(variant, expected):
    method = tiny(variant=variant)
    found = [method.codes.temperature.item()]
    for step in (5, 10, 80):
        method.loss(views_of())
        method.after_step(Progress(step, 100, 0))
        found.append(method.codes.temperature.item())
    assert found == pytest.approx(expected, abs=1e-6)


def test_teacher_centre_and_temperature_are_part_of_the_state():
    method = tiny()
    method.loss(views_of())
    method.after_step(Progress(5, 100, 0))
    restored = tiny(projector_dim=4)
    restored.load_state_dict(method.state_dict())
    found, expected = restored.loss(views_of()), method.loss(views_of())
    assert found.total == expected.total
    assert {"codes.centre", "codes.temperature", "teacher.head.6.weight"} <= set(method.state_dict())


@pytest.mark.parametrize(("epochs", "steps", "starts"), [(1, 100, 0.04), (0, 100, 0.0), (3, 4, 1.0)])
def test_prototypes_learn_after_the_first_epoch(epochs, steps, starts):
    method = tiny(Facts(num_samples=16, steps=steps, batch_size=4), frozen_epochs=epochs)
    (group,) = [g for g in method.param_groups() if any(p is method.head[-1].weight for p in g.params)]
    assert group.starts_at == pytest.approx(starts)
    doubted = "frozen_epochs 3: the prototypes learn after step 12, and the budget has 4 steps; lower"
    assert [doubted in doubt for doubt in method.doubts()] == ([True] if starts == 1 else [])


def test_prototypes_count_as_vectors_of_length_1():
    method, views = tiny(), views_of()
    before = method.loss(views).total
    with torch.no_grad():
        method.head[-1].weight.mul_(torch.linspace(0.5, 3, 5)[:, None])
    torch.testing.assert_close(method.loss(views).total, before)


def test_the_loss_of_a_constant_is_the_entropy_of_the_mean_code():
    codes = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy_of_mean(codes).item() == pytest.approx(expected)


@pytest.mark.slow
def test_features_of_different_phantoms_stay_apart_while_crops_of_one_come_to_agree():
    method, batch = tiny_method("dino paper", 2), batch_of(2, 16)
    optimiser = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=1e-3)
    agreed = []
    for step in range(60):
        losses = method.loss(method.drawn(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(Progress(step + 1, 60, 0))
        agreed.append((losses.total / losses.of_constant).item())
    assert sum(agreed[-10:]) < sum(agreed[:10])
    with torch.no_grad():
        features = method.encoder.features(method.drawn(batch, batch.rng(99)).images[0])[-1].flatten(2).mean(2)
    assert effective_rank(features) > 4
