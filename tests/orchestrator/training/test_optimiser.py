"""Optimisers: LARS, LARC and AMSGrad equal slow references; what norms and biases do; states survive a restart."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.base import FrozenConfig, Losses, Method, ParamGroup, Views, split_decay
from orchestrator.config.files import load
from orchestrator.config.optimiser import Optimiser
from orchestrator.training.optimiser import Schedule, build, set_rates
from tests.clusters import ROOT
from tests.references import optimisers as reference

STEPS = 5
SHAPES = {"matrix": (3, 4), "bias": (4,)}
# A schedule that changes the rate at every step: momentum of LARS and of LARC differs only then.
FALLING: dict[str, Any] = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.05, "trust_coefficient": 0.02}


class Weights(Method):
    """Nothing but weights, whose gradients a test sets."""

    Config = FrozenConfig

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        self.encoder = nn.ParameterDict({name: torch.from_numpy(start(name)) for name in SHAPES})
        self.apart = apart

    def param_groups(self) -> list[ParamGroup]:
        if not self.apart:
            return split_decay(self.parameters())
        return [ParamGroup([p], decay=p.ndim > 1) for p in reversed(list(self.parameters()))]

    def views(self, batch: Any, rng: Any) -> Views:
        raise NotImplementedError

    def loss(self, views: Views) -> Losses:
        raise NotImplementedError


def start(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).normal(size=SHAPES[name])


def gradients(name: str) -> list[np.ndarray]:
    """Return gradients whose sizes differ widely, so that a clipped rate is clipped in some steps only."""
    rng = np.random.default_rng(100 + len(name))
    return [rng.normal(size=SHAPES[name]) * size for size in (1.0, 0.01, 1.0, 0.01, 3.0)]


def schedule(**fields: Any) -> Schedule:
    return Schedule(Optimiser.model_validate({**FALLING, **fields}), total_steps=STEPS, warmup_steps=0)


def trained(
    plan: Schedule, method: Weights, first: int = 0, last: int = STEPS, state: dict[str, Any] | None = None
) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
    """Return a method's weights after each of some steps, and the optimiser's state after the last."""
    optimiser = build(method, plan.config)
    if state is not None:
        optimiser.load_state_dict(state)
    after: dict[str, list[np.ndarray]] = {name: [] for name in SHAPES}
    for step in range(first, last):
        set_rates(optimiser, plan, step)
        for name in SHAPES:
            parameter(method, name).grad = torch.from_numpy(gradients(name)[step])
        optimiser.step()
        for name in SHAPES:
            after[name].append(parameter(method, name).detach().numpy().copy())
    return after, optimiser.state_dict()


def parameter(method: Weights, name: str) -> Tensor:
    return dict(method.named_parameters())[f"encoder.{name}"]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=1e-9, atol=1e-12)


def test_lars_equals_algorithm_1_of_its_paper() -> None:
    plan = schedule(name="lars", trust_undecayed=True, trust_eps=0)
    after, _ = trained(plan, Weights())
    rates = [plan.rate(step) for step in range(STEPS)]
    for name, decay in (("matrix", 0.05), ("bias", 0.0)):
        assert_close(after[name], reference.lars(start(name), gradients(name), rates, 0.8, decay, 0.02))


@pytest.mark.parametrize("clip", [True, False])
def test_larc_equals_apex_with_and_without_clipping(clip: bool) -> None:
    plan = schedule(name="larc", trust_undecayed=True, trust_clip=clip, trust_eps=1e-3)
    after, _ = trained(plan, Weights())
    rates = [plan.rate(step) for step in range(STEPS)]
    for name, decay in (("matrix", 0.05), ("bias", 0.0)):
        expected = reference.larc(start(name), gradients(name), rates, 0.8, decay, 0.02, 1e-3, clip)
        assert_close(after[name], expected)


def test_clipped_larc_is_plain_sgd_where_the_ratio_exceeds_the_rate() -> None:
    config = {"trust_coefficient": 1e6, "trust_undecayed": True}
    larc, _ = trained(schedule(name="larc", **config), Weights())
    plain = Schedule(Optimiser(name="sgd", lr=0.3, momentum=0.8, weight_decay=0.05), STEPS, warmup_steps=0)
    sgd, _ = trained(plain, Weights())
    for name in SHAPES:
        assert_close(larc[name], sgd[name])
    loose, _ = trained(schedule(name="larc", trust_clip=False, **config), Weights())
    first = [reference.moves(start("matrix"), found["matrix"])[0] for found in (loose, sgd)]
    assert first[0] > 1000 * first[1]


@pytest.mark.parametrize("kind", ["lars", "larc"])
def test_norms_and_biases_move_as_under_sgd_unless_the_config_lets_them_adapt(kind: str) -> None:
    def after(**fields: Any) -> dict[str, list[np.ndarray]]:
        return trained(schedule(name=kind, schedule="constant", **fields), Weights())[0]

    plain = Optimiser(name="sgd", lr=0.3, momentum=0.8, weight_decay=0.05, schedule="constant")
    sgd, _ = trained(Schedule(plain, STEPS, warmup_steps=0), Weights())
    assert_close(after()["bias"], sgd["bias"])
    assert not np.allclose(after(trust_undecayed=True)["bias"][0], sgd["bias"][0], rtol=0, atol=1e-3)
    assert not np.allclose(after()["matrix"][0], sgd["matrix"][0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["lars", "larc"])
def test_weights_of_zeros_move_at_the_rate_and_a_gradient_of_zeros_neither_adapts_nor_decays(kind: str) -> None:
    plan = schedule(name=kind, trust_clip=kind == "lars", trust_eps=0)
    method = Weights()
    matrix = parameter(method, "matrix")
    optimiser = build(method, plan.config)
    set_rates(optimiser, plan, 0)
    before = matrix.detach().clone()
    matrix.grad = torch.zeros_like(matrix)
    optimiser.step()
    assert torch.equal(matrix, before)
    matrix.data.zero_()
    matrix.grad = torch.full_like(matrix, 2.0)
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full_like(matrix, -0.3 * 2.0))


@pytest.mark.parametrize("clip", [True, False])
def test_larc_keeps_the_gradients_of_a_step_at_a_rate_of_zero_as_apex_does(clip: bool) -> None:
    plan = schedule(name="larc", warmup="from_zero", trust_undecayed=True, trust_clip=clip)
    plan = Schedule(plan.config, STEPS, warmup_steps=2)
    rates = [plan.rate(step) for step in range(STEPS)]
    assert rates[0] == 0
    after, _ = trained(plan, Weights())
    for name, decay in (("matrix", 0.05), ("bias", 0.0)):
        expected = reference.larc(start(name), gradients(name), rates, 0.8, decay, 0.02, 1e-8, clip)
        assert_close(after[name], expected)


def test_the_experiments_of_jssl_set_larc_as_the_authors_code_does() -> None:
    for file in ("swav", "deepcluster_v2"):
        for stage in load(ROOT / "experiments" / "jssl" / f"{file}.yaml").pretraining:
            larc = stage.optimiser
            assert (larc.name, larc.trust_clip, larc.trust_undecayed) == ("larc", False, True)
            plan = Schedule(larc.model_copy(update={"schedule": "constant"}), STEPS, warmup_steps=2)
            rates = [plan.rate(step) for step in range(STEPS)]
            after, _ = trained(plan, Weights())
            for name, decay in (("matrix", larc.weight_decay), ("bias", 0.0)):
                assert_close(
                    after[name], reference.larc(start(name), gradients(name), rates, 0.9, decay, 0.001, 1e-8, False)
                )


def test_amsgrad_equals_the_reference_and_differs_from_adam() -> None:
    config = {"lr": 0.1, "betas": (0.9, 0.5), "schedule": "constant"}
    plan = Schedule(Optimiser.model_validate({"name": "adam", "amsgrad": True, **config}), STEPS, warmup_steps=0)
    after, _ = trained(plan, Weights())
    adam, _ = trained(Schedule(Optimiser.model_validate({"name": "adam", **config}), STEPS, 0), Weights())
    for name in SHAPES:
        assert_close(after[name], reference.amsgrad(start(name), gradients(name), [0.1] * STEPS, (0.9, 0.5)))
        assert not np.allclose(after[name][1], adam[name][1], rtol=0, atol=1e-3)


def test_adamw_takes_amsgrad_too() -> None:
    for amsgrad in (True, False):
        optimiser = build(Weights(), Optimiser(lr=0.1, amsgrad=amsgrad))
        assert [group["amsgrad"] for group in optimiser.param_groups] == [amsgrad] * 2


KINDS = [
    {"name": "lars"},
    {"name": "larc"},
    {"name": "larc", "trust_clip": False, "trust_undecayed": True},
    {"name": "adamw", "amsgrad": True, "momentum": 0.9, "trust_coefficient": 0.001},
    {"name": "lars", "final_weight_decay": 0.4},
]


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_how_parameters_are_grouped_changes_no_bit(fields: dict[str, Any]) -> None:
    plan = schedule(**fields)
    together, _ = trained(plan, Weights())
    apart, _ = trained(plan, Weights(apart=True))
    for name in SHAPES:
        assert np.array_equal(np.stack(together[name]), np.stack(apart[name]))


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_an_optimiser_that_was_saved_goes_on_as_if_it_had_not_been(fields: dict[str, Any]) -> None:
    plan = schedule(**fields)
    whole, _ = trained(plan, Weights())
    method, file = Weights(), io.BytesIO()
    _, state = trained(plan, method, last=2)
    torch.save(state, file)
    file.seek(0)
    rest, _ = trained(plan, method, first=2, state=torch.load(file, weights_only=True))
    for name in SHAPES:
        assert np.array_equal(np.stack(rest[name]), np.stack(whole[name][2:]))


def test_scheduled_weight_decay_reaches_only_groups_that_decay() -> None:
    plan = schedule(name="sgd", trust_coefficient=0.001, weight_decay=0.04, final_weight_decay=0.4)
    optimiser = build(Weights(), plan.config)
    found = []
    for step in range(STEPS):
        set_rates(optimiser, plan, step)
        found.append([group["weight_decay"] for group in optimiser.param_groups])
    assert found == [[plan.decay(step), 0.0] for step in range(STEPS)]
    assert found[0] == [pytest.approx(0.04), 0.0]
    assert found[-1][0] > 0.3


def test_an_older_checkpoint_s_groups_go_on_with_a_constant_weight_decay() -> None:
    plan = schedule(name="sgd", trust_coefficient=0.001)
    whole, _ = trained(plan, Weights())
    method = Weights()
    _, state = trained(plan, method, last=2)
    for group in state["param_groups"]:
        del group["decays"]
    rest, _ = trained(plan, method, first=2, state=state)
    assert_close(rest["matrix"], whole["matrix"][2:])
