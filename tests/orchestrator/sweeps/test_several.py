"""Several seeds per point, several objectives, pruning by another metric, and what that saved."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.results.findings import TrialValues
from orchestrator.runs.work import TrainingWork
from orchestrator.sweeps import records, standings
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps.savings import saved_words, savings
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.standings import Standing
from orchestrator.sweeps.study import Ending, Ledger, pruner
from tests.experiments import UNET
from tests.orchestrator.sweeps.test_sweep import LOSS, tree, write_sweep
from tests.shardsets import write_slices

DICE = {"metric": "dice_mean"}
BY_RANK = {"name": "asha", "grace": 2, "reduction_factor": 2, "metric": "health/effective_rank"}
LR = {"optimiser.lr": {"choice": [0.05, 0.1, 0.2, 0.4]}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


def config(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate(tree(**{"objective": DICE, "space": LR, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {**BY_RANK, "name": "none"}}, r"scheduler metric health/effective_rank without a scheduler"),
        ({"scheduler": {**BY_RANK, "metric": "lr"}}, r"metric lr: higher or lower may be better; give mode"),
        ({"scheduler": BY_RANK, "objective": LOSS}, r"health/effective_rank beside an objective of the pretraining"),
        (
            {"scheduler": BY_RANK, "space": {"downstream.optimiser.lr": {"choice": [0.1, 1]}}},
            r"a space over the fine-tuning alone: all pretrainings would be the same",
        ),
        (
            {"scheduler": BY_RANK, "space": {"method.name": {"choice": ["simsiam", "voco"]}}},
            r"scheduler metric health/effective_rank of the pretraining, and a space over method\.name",
        ),
        ({"seeds": [0, 0]}, r"seeds \[0, 0\] repeat a seed"),
        (
            {"seeds": [0, 1], "space": {"seed": {"choice": [2]}}},
            r"seed: every point is trained with each",
        ),
        ({"also": [DICE]}, r"objective and also name dice_mean, dice_mean; give each metric once"),
        (
            {"also": [{"cost": "hours"}], "scheduler": {"name": "asha", "grace": 2}},
            r"scheduler asha with 2 objectives \(dice_mean, hours\): a trial that falls behind in one may lead",
        ),
        (
            {"also": [{"cost": "hours"}], "search": {"name": "cmaes"}},
            r"search cmaes with 2 objectives.*give nsga2",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_the_scheduler_s_metric_must_be_measured_before_the_pretraining_ends(tmp_path: Path, shards: str) -> None:
    path = write_sweep(tmp_path, shards, objective=DICE, scheduler=BY_RANK)
    with pytest.raises(ValueError, match=r"health\.times is 1, so that it is not measured before the end; set"):
        sweeps.check(sweeps.load(path))
    late = write_sweep(tmp_path, shards, UNET, objective=DICE, scheduler={**BY_RANK, "grace": 60})
    lines = sweeps.describe(sweeps.load(late, ["health.times=6"]))
    assert "ended early: asha, from step 60 on, by max health/effective_rank of the pretraining" in lines
    assert "none will end early: scheduler.grace 60 is not below the 60 steps; lower it" in lines


@pytest.mark.slow
def test_trials_are_ended_by_the_scheduler_s_metric_in_its_own_direction(tmp_path: Path) -> None:
    told = config(scheduler={**BY_RANK, "metric": "health/collapse"}, search={"name": "random"})
    assert told.scheduler.mode == "min"
    ledger = Ledger(tmp_path / "sweep", told, {"optimiser": {"lr": 0.05}}, pruner(told.scheduler, 8))
    ends: list[int | None] = []
    for collapse in (0.5, 0.9, 0.1):
        number, _ = ledger.take() or (-1, {})
        end = next((step for step in range(1, 9) if ledger.falls_behind(number, step, collapse)), None)
        ends.append(end)
        ledger.end(number, Ending("pruned") if end else Ending("done", 0.7))
    assert ends == [None, 2, None], "lower collapse is better, higher dice"
    first, second, _ = ledger.standings()
    assert (first.state, first.value, first.judged, first.steps) == ("done", 0.7, 0.5, 8)
    assert (second.state, second.value, second.judged, second.steps) == ("pruned", None, 0.9, 2)
    assert standings.sentence(told, second).endswith("pruned after step 2, health/collapse 0.9000")
    heading, rows = standings.cells(told, ledger.standings())
    assert (heading[3:], rows[0][3:], rows[2][3:]) == (
        ["dice_mean", "health/collapse"], ["0.7000 best", "0.5000"], ["-", "0.9000"],
    )  # fmt: skip


def test_what_was_saved_is_counted_in_steps_and_hours_of_the_trainings_themselves() -> None:
    whole = (TrainingWork("pretrain", 100, 100, 3600.0), TrainingWork("finetune", 10, 10, 720.0))
    early = (TrainingWork("pretrain", 25, 100, 1800.0, workers=2), TrainingWork("finetune", 0, 10, 0.0))
    found = savings([(False, whole), (True, early)])
    assert found is not None
    assert (found.ended, found.left_out) == ("1 pretraining", "1 fine-tuning")
    assert (found.steps, found.planned) == (85, 220)
    # 75 steps at 1/25 h with two workers; 10 fine-tuning steps at 1/50 h, as the other trial took them.
    assert found.hours == pytest.approx(3.0 + 0.2)
    assert found.planned_hours == pytest.approx(1.2 + 1.0 + 3.2)
    assert saved_words(found, "asha by health/effective_rank") == (
        "asha by health/effective_rank ended 1 pretraining early and left out 1 fine-tuning: 85 of 220 planned steps "
        "(39%) were not trained, about 3.2 h of 5.4 h"
    )
    assert savings([(False, whole)]) is None
    assert savings([(True, whole)]) is None, "it was done before it could be ended"
    unknown = savings([(True, early)])
    assert unknown is not None
    assert unknown.hours is None


@pytest.mark.slow
def test_a_point_is_trained_with_each_seed_and_its_value_is_their_mean(tmp_path: Path, shards: str) -> None:
    sweep = sweeps.load(write_sweep(tmp_path, shards, objective=DICE, seeds=[3, 5], space=LR))
    trial = sweep.trial(0, {"optimiser.lr": 0.1})
    assert [(one.seed, one.downstream.seed, one.optimiser.lr) for one in trial.experiments] == [
        (3, 3, 0.1),
        (5, 5, 0.1),
    ]
    ledger = Ledger(sweep.folder, sweep.config, {"optimiser": {"lr": 0.05}})
    ledger.take()
    ledger.end(0, Ending("done", 0.5, repeats=(0.4, 0.6)))
    (found,) = ledger.standings()
    assert (found.value, found.repeats, found.shown) == (0.5, (0.4, 0.6), "0.5000 ± 0.1414")
    assert standings.sentence(sweep.config, found) == "trial 0: lr 0.05: dice_mean 0.5000 ± 0.1414"
    (row,) = csv.DictReader(io.StringIO(standings.comma_separated(sweep.config, [found])))
    assert (row["dice_mean of seed 3"], row["dice_mean of seed 5"]) == ("0.4", "0.6")
    assert records.findings(sweep.config, [found]).shown == {"trial 0: lr 0.05": "0.5000 ± 0.1414"}
    assert "mean and deviation over seeds 3, 5" in standings.notes(sweep.config, [found])[0]


def test_seeds_and_further_objectives_rename_a_sweep_and_their_absence_does_not(tmp_path: Path, shards: str) -> None:
    names = {
        sweeps.load(write_sweep(tmp_path, shards, **changes)).folder.name
        for changes in ({}, {"seeds": [0, 1]}, {"also": [{"metric": "loss", "of": "pretrain"}], "space": LR})
    }
    assert len(names) == 3
    dumped = config().model_dump(mode="json")
    assert {"seeds", "also"} < {*dumped}
    assert "metric" in dumped["scheduler"]
    key = config().key({"name": "a"}, ["d"])
    assert key == "2236f02c", "as it was before there were such fields"


def both(number: int, dice: float, hours: float) -> Standing:
    return Standing(number, {"optimiser.lr": 0.1 * (number + 1)}, "done", dice, 60, others=(hours,))


def test_the_front_holds_the_trials_that_no_other_beats_in_everything() -> None:
    told = config(also=[{"cost": "hours"}], search={"name": "nsga2"})
    found = [both(0, 0.5, 1.0), both(1, 0.7, 2.0), both(2, 0.6, 3.0), both(3, 0.5, 2.0), both(4, 0.7, 2.0)]
    failed = Standing(5, {"optimiser.lr": 0.6}, "failed", reason="diverged")
    assert [one.number for one in standings.front(told, [*found, failed])] == [1, 4, 0]
    heading, rows = standings.cells(told, [*found, failed])
    assert heading == ["row", "state", "steps", "dice_mean", "hours"]
    assert [row[3:] for row in rows][:3] == [["0.7000 front", "2.0000"]] * 2 + [["0.5000 front", "1.0000"]]
    assert rows[-1][3:] == ["-", "-"]
    said = standings.answer(told, [*found, failed])
    assert said.startswith("on the Pareto front of dice_mean and hours are 3 of 5 trials: trial 1: lr 0.2: ")
    told_to_report = records.findings(told, found)
    assert told_to_report.trials[0] == TrialValues("trial 0: lr 0.1", (0.5, 1.0), True)
    assert [one.leads for one in told_to_report.trials] == [True, True, False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsga2", "tpe", "gp"])
def test_several_objectives_are_searched_alike_by_one_process_and_by_many(tmp_path: Path, name: str) -> None:
    told = config(
        also=[{"cost": "hours"}], search={"name": name, "population": 4, "startup": 4}, trials=8,
        space={"optimiser.lr": {"uniform": [0, 1]}, "optimiser.weight_decay": {"uniform": [0, 1]}},
        start_from_experiment=False,
    )  # fmt: skip
    for folder in ("one", "many"):
        ledger = Ledger(tmp_path / folder, told, {})
        for _ in range(8):
            number, point = ledger.take() or (-1, {})
            if folder == "many":
                ledger = Ledger(tmp_path / folder, told, {})
                assert ledger.take() == (number, point)
            lr, decay = point["optimiser.lr"], point["optimiser.weight_decay"]
            ledger.end(number, Ending("done", 1 - (lr - 0.8) ** 2, others=((lr - 0.2) ** 2 + decay,)))
    one, many = (Ledger(tmp_path / folder, told, {}).standings() for folder in ("one", "many"))
    assert one == many
    lowest = min(standing.others[0] for standing in one)
    assert any(standing.others[0] == lowest for standing in standings.front(told, one))


def test_files_of_the_front_are_experiments_and_those_that_left_it_are_removed(tmp_path: Path, shards: str) -> None:
    sweep = sweeps.load(
        write_sweep(tmp_path, shards, objective=DICE, also=[{"cost": "hours"}], search={"name": "nsga2"}, space=LR)
    )
    sweep.folder.mkdir(parents=True)
    sweep.record([both(0, 0.5, 1.0)])
    assert [path.name for path in sorted(sweep.folder.glob("front/*"))] == ["trial_0.yaml"]
    sweep.record([both(0, 0.5, 1.0), both(1, 0.6, 0.5)])
    (left,) = sweep.folder.glob("front/*")
    assert left.read_text().startswith(
        "# Trial 1 of sweep iou, one of its Pareto front: dice_mean 0.6, hours 0.5\n#   optimiser.lr: 0.2\n"
    )
    assert (sweep.folder / "best.yaml").read_text() == left.read_text()
