"""Population-based training: who copies whom, what may change, and the segments in the ledger."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from orchestrator.results.findings import MemberCopy, MemberCourse
from orchestrator.runs.segment import Segment, end_of, hand_over
from orchestrator.sweeps import records, standings
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps.domains import Choice, Integer, Interval, LogUniform, Uniform
from orchestrator.sweeps.population import Draws, heirs, perturbed
from orchestrator.sweeps.settings import Search, SweepConfig
from orchestrator.sweeps.study import Ending, Ledger
from orchestrator.training.checkpoint import OPTIMISER, State, restore, save
from orchestrator.training.resume import STATE, StageCheckpoints, name_of
from orchestrator.training.world import World
from tests.orchestrator.sweeps.test_sweep import tree, write_sweep
from tests.orchestrator.training.test_resume import STREAM, Layer, write
from tests.shardsets import write_slices

LR = {"optimiser.lr": {"log_uniform": [1e-5, 1.0]}}
PBT = {"name": "pbt", "population": 4, "segments": 3, "quantile": 0.25, "resample": 0.0, "seed": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


def population(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate(tree(search=PBT, trials=None, space=LR, start_from_experiment=False, **changes))


def members(*values: float | None) -> list[tuple[dict[str, Any], float | None]]:
    return [({"optimiser.lr": 10.0 ** -(place + 1)}, value) for place, value in enumerate(values)]


def test_the_worst_copies_one_of_the_best_with_a_rate_a_fifth_away_and_the_others_go_on() -> None:
    search, space = Search(**PBT), population().space
    found = heirs(search, space, "min", 1, members(0.4, 0.1, 0.9, 0.3))
    assert [heir.source for heir in found] == [0, 1, 1, 3]
    assert [heir.point["optimiser.lr"] for heir in found] == [
        0.1, 0.01, pytest.approx(0.01 * (0.8 if found[2].point["optimiser.lr"] < 0.01 else 1.2)), 0.0001,
    ]  # fmt: skip
    assert heirs(search, space, "min", 1, members(0.4, 0.1, 0.9, 0.3)) == found
    assert [heir.source for heir in heirs(search, space, "max", 1, members(0.4, 0.1, 0.9, 0.3))] == [0, 2, 2, 3]


def test_a_member_that_failed_copies_another_and_is_copied_by_none() -> None:
    search, space = Search(**{**PBT, "quantile": 0.5}), population().space
    found = heirs(search, space, "min", 2, members(None, None, None, 0.3))
    assert [heir.source for heir in found] == [3, 3, 3, 3]
    with pytest.raises(ValueError, match=r"all 2 members failed in segment 2"):
        heirs(search, space, "min", 2, members(None, None))


def test_fields_are_drawn_anew_as_often_as_resample_says() -> None:
    search, space = Search(**{**PBT, "resample": 1.0}), population().space
    drawn = [
        heirs(search, space, "min", segment, members(0.1, 0.9))[1].point["optimiser.lr"] for segment in range(40)
    ]
    assert min(drawn) < 1e-3 < 1e-1 < max(drawn)
    assert np.median(np.log10(drawn)) == pytest.approx(-2.5, abs=1)


@pytest.mark.parametrize(
    ("knob", "value", "possible"),
    [
        (Choice(choice=(1, 2, 4)), 2, {1, 4}),
        (Choice(choice=((1, 2), (3, 4))), [3, 4], {(1, 2), (3, 4)}),
        (Uniform(uniform=(0, 1)), 0.5, {0.4, 0.6}),
        (Uniform(uniform=(0, 1)), 0.9, {0.72, 1.0}),
        (Uniform(uniform=(0, 1), step=0.25), 0.25, {0.0, 0.5}),
        (LogUniform(log_uniform=(0.1, 1)), 0.11, {0.1, 0.132}),
        (Integer(integer=(1, 9)), 2, {1, 3}),
        (Integer(integer=(1, 10), step=3), 10, {7, 10}),
    ],
)
def test_a_value_moves_one_way_or_the_other_and_stays_in_its_range(knob: Any, value: Any, possible: set[Any]) -> None:
    rng = np.random.default_rng(0)
    found = {tuple(one) if isinstance(one, list) else one for one in (perturbed(knob, value, rng) for _ in range(40))}
    assert {round(one, 6) if isinstance(one, float) else one for one in found} == possible
    assert all(knob.contains(list(one) if isinstance(one, tuple) else one) for one in found)


def test_draws_lie_in_every_kind_of_range() -> None:
    draws = Draws(np.random.default_rng(0))
    knobs = [Choice(choice=("a", "b")), Uniform(uniform=(0, 1), step=0.5), LogUniform(log_uniform=(1e-3, 1)),
             Integer(integer=(1, 7), step=2), Interval(interval=(0, 1), step=0.1, least_width=0.3)]  # fmt: skip
    for knob in knobs:
        drawn = [knob.draw(draws, "field") for _ in range(30)]
        assert all(knob.contains(value) for value in drawn)
        assert len({str(value) for value in drawn}) > 1


def ended(ledger: Ledger, number: int, value: float | None) -> None:
    state = "failed" if value is None else "done"
    ending = Ending(state, value, impossible=value is None, pretrained=f"pretrain-{number}")
    ledger.end(number, ending)


def trained(ledger: Ledger, most: int = 12) -> list[tuple[int, float, int | None]]:
    """Run a population whose value is how far its rate is from 0.01; return numbers, rates and sources."""
    for _ in range(most):
        if (taken := ledger.take()) is None:
            break
        number, point = taken
        ended(ledger, number, None if number == 1 else abs(float(np.log10(point["optimiser.lr"])) + 2))
    return [(one.number, one.point["optimiser.lr"], one.source) for one in ledger.standings()]


@pytest.mark.slow
def test_a_segment_begins_when_all_members_have_ended_the_one_before(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "pbt", population(), {})
    assert ledger.total == 12
    first = [ledger.take() for _ in range(4)]
    assert ledger.take() == "later"
    for number, value in ((3, 0.1), (0, 0.2), (1, 0.3)):
        ended(ledger, number, value)
        assert ledger.take() == "later"
    ended(ledger, 2, 0.4)
    second = [ledger.take() for _ in range(4)]
    assert [number for number, _ in second] == [4, 5, 6, 7]
    assert [ledger.standings()[number].source for number in range(8)] == [None] * 4 + [0, 1, 3, 3]
    assert [point for _, point in second][:2] == [first[0][1], first[1][1]]
    assert ledger.take() == "later"


@pytest.mark.slow
def test_a_population_that_is_killed_after_any_trial_decides_as_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(Ledger(tmp_path / "whole", population(), {}))
    assert len(whole) == 12
    assert any(source is not None and source % 4 != number % 4 for number, _, source in whole)
    for _ in range(12):
        ledger = Ledger(tmp_path / "cut", population(), {})
        taken = ledger.take()  # begun, and killed
        again = Ledger(tmp_path / "cut", population(), {})
        assert again.take() == taken
        number, point = taken
        ended(again, number, None if number == 1 else abs(float(np.log10(point["optimiser.lr"])) + 2))
    assert trained(Ledger(tmp_path / "cut", population(), {})) == whole


@pytest.mark.slow
def test_a_population_whose_members_all_failed_ends(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "pbt", population(), {})
    for _ in range(4):
        ended(ledger, ledger.take()[0], None)
    assert ledger.take() is None


@pytest.mark.slow
def test_standings_show_the_last_segment_and_say_who_copied_whom(tmp_path: Path) -> None:
    config, ledger = population(), Ledger(tmp_path / "pbt", population(), {})
    trained(ledger, most=8)
    found = ledger.standings()
    assert [one.number for one in standings.comparable(config, found)] == [4, 5, 6, 7]
    winner = standings.best(config, found)
    assert winner is not None
    assert winner.value == min(one.value for one in found[4:])
    heading, rows = standings.cells(config, found)
    assert heading == ["row", "state", "steps", "collapse"]
    assert rows[0][0].startswith(f"member {winner.number % 4}, segment 2: lr ")
    copied = standings.copies_told(config, found)
    assert [line.partition(":")[0].partition(" (")[0] for line in copied] == ["after segment 1, member 1"]
    assert "; failed) copied weights and optimiser of member" in copied[0]
    text = standings.experiment_file(config, found[5], {"a": 1}, found)
    assert text.startswith("# Member 1, segment 2 of sweep iou, its best so far: collapse ")
    assert "# This file alone does not give its weights (run pretrain-5), which came by:" in text
    rows = list(csv.DictReader(io.StringIO(standings.comma_separated(config, found))))
    assert rows[5]["begins_with"] == f"pretrain-{found[5].source}"
    assert (rows[0]["begins_with"], rows[5]["pretrained"]) == ("", "pretrain-5")
    told = records.findings(config, found)
    assert told.copies == (MemberCopy(0, 1, found[5].source or 0),)
    assert isinstance(told.members[0], MemberCourse)
    assert told.answer.startswith("Best member ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 3}, r"trials 3: pbt trains population members in segments; leave it out"),
        ({"seeds": [0, 1]}, r"search pbt with seeds: the members themselves are compared"),
        ({"also": [{"cost": "hours"}]}, r"search pbt with also"),
        ({"scheduler": {"name": "asha", "grace": 2}}, r"search pbt with scheduler"),
    ],
)
def test_a_population_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SweepConfig.model_validate({**tree(search=PBT, trials=None, space=LR), **changes})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"optimiser.name": {"choice": ["sgd"]}},
            r"optimiser\.name: it cannot change while a training goes on; exp",
        ),
        ({"budget.batch_size": {"choice": [8, 4]}}, r"budget\.batch_size: it cannot change while a training goes on"),
        ({"seed": {"choice": [0, 1]}}, r"seed: it cannot change while a training goes on"),
        ({"method.projector_dim": {"choice": [8, 16]}}, r"projector_dim: the weights and buffers .* depend on it"),
    ],
)
def test_fields_that_cannot_change_while_a_training_goes_on_are_refused(
    tmp_path: Path, shards: str, space: dict[str, Any], message: str
) -> None:
    path = write_sweep(tmp_path, shards, search=PBT, trials=None, space=space)
    with pytest.raises(ValueError, match=message):
        sweeps.check(sweeps.load(path))


def test_fields_of_losses_and_views_may_change_and_a_dry_run_names_the_segments(tmp_path: Path, shards: str) -> None:
    space = {
        "method.crops.iou": {"interval": [0, 0.9], "step": 0.1, "least_width": 0.2},
        "optimiser.lr": {"choice": [0.05, 0.1]},
    }
    lines = sweeps.describe(sweeps.load(write_sweep(tmp_path, shards, search=PBT, trials=None, space=space)))
    assert "search: population-based training, 4 members in 3 segments" in lines
    assert "segments end after steps 20, 40, 60" in lines
    health = {"objective": {"metric": "health/effective_rank", "of": "pretrain"}}
    path = write_sweep(
        tmp_path, shards, search=PBT, trials=None, space={"optimiser.lr": {"choice": [0.05]}}, **health
    )
    with pytest.raises(ValueError, match=r"health\.times is 1, and each of 3 segments must end.*health\.times=3"):
        sweeps.check(sweeps.load(path))


def test_a_checkpoint_is_handed_over_whole_with_its_optimiser_and_without_its_steps(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a", 4), tmp_path / "b"
    hand_over(str(source), str(target))
    copy = target / name_of(4)
    for name in ("method.safetensors", OPTIMISER):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    found = StageCheckpoints(str(target)).find().newest
    assert found is not None
    assert (found.step, found.history) == (4, [])
    (copy / STATE).unlink()
    (copy / OPTIMISER).write_bytes(b"torn")
    hand_over(str(source), str(target))
    assert (copy / OPTIMISER).read_bytes() == (source / OPTIMISER).read_bytes()


def test_the_end_of_a_run_is_its_last_checkpoint_and_must_be_there(tmp_path: Path) -> None:
    run = tmp_path / "pretrain-1"
    with pytest.raises(ValueError, match=r"pretrain-1 has not ended"):
        end_of(run)
    checkpoint = write(run / "checkpoints" / "pretrain", 4)
    (run / "result.json").write_text(json.dumps({"encoder": "checkpoints/pretrain/step_000000004"}))
    assert end_of(run) == str(checkpoint)
    (checkpoint / STATE).unlink()
    with pytest.raises(ValueError, match=r"state\.json is missing, and a segment goes on from there; put"):
        end_of(run)


def test_a_restored_optimiser_has_the_state_of_the_checkpoint_and_the_settings_of_its_own(tmp_path: Path) -> None:
    layer, folder = Layer(), tmp_path / "step"
    folder.mkdir()
    first = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    layer.encoder(torch.ones(1, 2)).sum().backward()
    first.step()
    save(folder, layer.state_dict(), first, State(step=1), STREAM)
    other = Layer()
    second = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.5, weight_decay=0.2)
    restore(folder, other, second, STREAM, World())
    (group,) = second.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.5, 0.2)
    for old, new in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(second.state[new]["momentum_buffer"], first.state[old]["momentum_buffer"])
    assert load_file(folder / "method.safetensors").keys() == other.state_dict().keys()


def test_a_segment_s_key_tells_whose_end_it_begins_with(tmp_path: Path, shards: str) -> None:
    experiment = sweeps.load(write_sweep(tmp_path, shards)).base
    segments = [None, Segment(10), Segment(20, 10, "a"), Segment(20, 10, "b")]
    keys = [experiment.pretrain_key("d", one.identity if one else None) for one in segments]
    assert len(set(keys)) == 4
    assert keys[0] == experiment.pretrain_key("d")
