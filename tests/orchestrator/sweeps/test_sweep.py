"""Sweeps: what is refused before anything runs, what is remembered, how trials stand, and two sweeps on real Ray."""

import csv
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from mlflow import MlflowClient
from pydantic import ValidationError
from ray._private import state

from data.views.batch import Batch
from orchestrator import cli
from orchestrator.config.files import load as load_experiment
from orchestrator.feed import stream
from orchestrator.history import HISTORY
from orchestrator.history import steps as history_steps
from orchestrator.report.content import report_of
from orchestrator.results.compare import Request, compare
from orchestrator.results.curve import Curve, end, every
from orchestrator.results.selection import in_folders
from orchestrator.runs.course import Course
from orchestrator.sweeps import standings
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.standings import Standing
from orchestrator.sweeps.study import Ending, Ledger
from orchestrator.training.checkpoint import METHOD, OPTIMISER
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.world import World
from tests.experiments import POOLED_UNET, UNET, tiny_experiment, tiny_segmentation
from tests.orchestrator.training.test_loop import Recorder
from tests.shardsets import write_slices
from tests.waiting import kill_tree, wait_for

STEPS = 60
LOSS = {"metric": "loss", "mode": "min", "of": "pretrain"}
IOU = {"interval": [0, 0.9], "step": 0.1, "least_width": 0.2}
# Ray Data starts one of each for as long as the cluster lives.
SERVICES = {
    "ActorLocationTracker",
    "_AutoscalingCoordinatorActor",
    "_StatsActor",
    "_StatsSummaryActor",
    "_UsageCollectionActor",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


def write_sweep(folder: Path, shards: str, encoder: dict[str, Any] = POOLED_UNET, **changes: Any) -> Path:
    """Write a tiny experiment and a sweep over its IoU interval, judged by its own collapse coefficient."""
    training = {"report_every_steps": 2, "checkpoint_every_steps": 10}
    experiment = tiny_experiment(
        "tiny", shards, folder / "runs", STEPS, encoder, training=training, downstream=tiny_segmentation(shards)
    )
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**tree(), **changes}, sort_keys=False))
    return path


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "name": "iou",
        "title": "Which interval?",
        "experiment": "experiment.yaml",
        "objective": {"metric": "collapse", "mode": "min", "of": "pretrain"},
        "search": {"name": "random", "seed": 1},
        "trials": 4,
        "space": {"method.crops.iou": IOU},
        **changes,
    }


def sweep_config(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate(tree(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, r"space\n.*at least 1 item"),
        ({"rows": []}, r"rows\n.*not permitted"),
        ({"trials": None}, r"trials None: random needs a number of trials; give it"),
        ({"search": {"name": "grid"}}, r"trials 4: grid tries every point; leave it out"),
        ({"space": {"resources.workers": {"choice": [1, 2]}}}, r"resources\.workers: it changes no result"),
        (
            {"space": {"downstream.seed": {"choice": [1]}}},
            r"downstream\.seed: it changes no pretraining",
        ),
        (
            {"space": {"method.name": {"choice": ["simsiam", "voco"]}}},
            r"collapse of the pretraining, and a space over method\.name.*judge by a downstream score",
        ),
        (
            {"objective": LOSS},
            r"objective loss of the pretraining, and a space over method\.crops\.iou.*the easiest task would win",
        ),
        (
            {"space": {"stages.intra.method.name": {"choice": ["swav", "deepcluster_v2"]}}},
            r"collapse of the pretraining, and a space over stages\.intra\.method\.name: losses and health of differ",
        ),
        (
            {"space": {"stages.2.method": {"choice": [{"name": "swav"}, {"name": "voco"}]}}},
            r"collapse of the pretraining, and a space over stages\.2\.method: losses and health of differ",
        ),
        (
            {"objective": LOSS, "space": {"stages.mask.method.mask_ratio": {"uniform": [0.1, 0.5]}}},
            r"objective loss of the pretraining, and a space over stages\.mask\.method\.mask_ratio: it changes what",
        ),
        (
            {"space": {"seed": {"choice": [0], "when": {"optimiser.lr": 1}}, "optimiser.lr": {"choice": [1]}}},
            r"seed: when names optimiser\.lr, which comes later; move that up",
        ),
        (
            {"space": {"method.crops.iou": IOU, "method.crops": {"choice": [{}]}}},
            r"method\.crops\.iou: method\.crops comes later and would replace it",
        ),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sweep_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": LOSS, "space": {"stages.mask.optimiser.lr": {"uniform": [0.1, 1]}}},
        {"objective": LOSS, "space": {"stages.method.optimiser.lr": {"uniform": [0.1, 1]}}},
        {"space": {"stages.mask.method.mask_ratio": {"uniform": [0.1, 0.5]}}},
        {
            "objective": {"metric": "dice", "mode": "max", "of": "finetune"},
            "space": {"stages.intra.method.name": {"choice": ["swav", "deepcluster_v2"]}},
        },
    ],
    ids=str,
)
def test_a_space_over_stages_may_hold_what_leaves_the_objective_one_number(changes: dict[str, Any]) -> None:
    assert list(sweep_config(**changes).space) == list(changes["space"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"method.crop.iou": IOU}}, r"sweep\.yaml, .*iou 0-0\.9:\n  method\.crop: no such field"),
        ({"space": {"optimiser.lr": {"uniform": [-1, 1]}}}, r"optimiser\.lr: .*greater than 0, found -1"),
        (
            {"space": {"optimiser.lr": {"uniform": [0.1, 1]}}},
            r"optimiser\.lr: the experiment's own value 0\.05 is not among the values.*start_from_experiment: false",
        ),
        (
            {"space": {"seed": {"choice": [0], "when": {"method.nam": "x"}}}},
            r"seed: when names method\.nam, .* has \(did you mean method\.name\?\)",
        ),
        (
            {"search": {"name": "grid"}, "trials": None, "space": {"seed": {"uniform": [0, 1]}}},
            r"seed: uniform \[0, 1\]: a grid needs a finite number of values; give step",
        ),
    ],
)
def test_a_space_that_does_not_fit_the_experiment_is_refused_before_anything_runs(
    tmp_path: Path, shards: str, changes: dict[str, Any], message: str
) -> None:
    sweep = sweeps.load(write_sweep(tmp_path, shards, **changes))
    with pytest.raises(ValueError, match=message):
        sweeps.run(sweep, lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_an_experiment_that_does_not_fit_its_shards_is_refused_before_anything_runs(
    tmp_path: Path, shards: str
) -> None:
    sweep = sweeps.load(write_sweep(tmp_path, shards), ["encoder.in_channels=3"])
    with pytest.raises(ValueError, match=r"in_channels is 3, the shards hold 1 channels; set encoder.in_channels=1"):
        sweeps.run(sweep, lambda text: None)


def test_a_trial_is_the_experiment_with_its_point_and_the_command_line_s_changes(tmp_path: Path, shards: str) -> None:
    sweep = sweeps.load(write_sweep(tmp_path, shards), ["budget.steps=7"])
    trial = sweep.trial(3, {"method.crops.iou": [0.1, 0.5]})
    assert (trial.experiment.method.crops.iou, trial.experiment.budget.steps) == ((0.1, 0.5), 7)
    assert (trial.label, trial.params) == (
        "trial 3: iou 0.1-0.5",
        {"method.crops.iou.low": 0.1, "method.crops.iou.high": 0.5},
    )
    assert trial.folder == sweep.folder / "trials" / "003"


def test_more_trials_are_the_same_sweep_and_another_space_or_experiment_is_not(tmp_path: Path, shards: str) -> None:
    def folder(*overrides: str, **changes: Any) -> Path:
        return sweeps.load(write_sweep(tmp_path, shards, **changes), overrides).folder

    assert folder().name.startswith("sweep-iou-")
    assert folder(trials=9, concurrent=2, title="Another") == folder()
    others = [folder("budget.steps=7"), folder(space={"seed": {"choice": [0, 1]}}), folder(search={"seed": 2})]
    assert len({folder(), *others}) == 4


def test_a_dry_run_says_what_would_be_searched(tmp_path: Path, shards: str) -> None:
    lines = sweeps.describe(sweeps.load(write_sweep(tmp_path, shards)))
    assert lines[:3] == [
        'method.crops.iou: {"interval": [0.0, 0.9], "step": 0.1, "least_width": 0.2}',
        "search: random points, 4 trials",
        "objective: min collapse of the pretraining",
    ]
    assert lines[-1] == "given: iou 0.3-0.6"


@pytest.mark.slow
def test_a_ledger_that_is_opened_again_hands_out_what_did_not_end_and_then_what_it_would_have(tmp_path: Path) -> None:
    base = {"method": {"crops": {"iou": [0.3, 0.6]}}}
    whole = Ledger(tmp_path / "whole", sweep_config(trials=6), base)
    points = [whole.take() for _ in range(6)]
    assert points[0] == (0, {"method.crops.iou": [0.3, 0.6]})
    assert whole.take() is None

    for_three = Ledger(tmp_path / "cut", sweep_config(trials=6), base)
    assert [for_three.take() for _ in range(4)] == points[:4]
    for_three.falls_behind(0, 5, 0.5)
    for_three.end(0, Ending("done", 0.75))
    for_three.end(1, Ending("failed", reason="worker died"))
    for_three.end(2, Ending("failed", reason="no such pair", impossible=True))
    again = Ledger(tmp_path / "cut", sweep_config(trials=6), base)
    assert [again.take() for _ in range(4)] == [points[1], points[3], points[4], points[5]]
    assert again.take() is None
    assert again.standings()[0] == Standing(0, points[0][1], "done", 0.75, 5)
    assert [standing.state for standing in again.standings()] == [
        "done", "running", "failed", "running", "running", "running",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_grid_is_handed_out_in_order_and_ends(tmp_path: Path) -> None:
    config = sweep_config(search={"name": "grid"}, trials=None, space={"seed": {"choice": [3, 1, 2]}})
    ledger = Ledger(tmp_path / "grid", config, {})
    assert [ledger.take() for _ in range(4)] == [(0, {"seed": 3}), (1, {"seed": 1}), (2, {"seed": 2}), None]


TWO_FIELDS = {"optimiser.lr": {"uniform": [0, 1]}, "method.temperature": {"uniform": [0, 1]}}


def searched(folder: Path, name: str, trials: int, reopened: bool = False) -> list[tuple[float, ...]]:
    """Run a search for the point (0.8, 0.3) and return its points; each trial may have a process of its own."""
    config = sweep_config(
        search={"name": name, "startup": 4}, trials=trials, space=TWO_FIELDS, start_from_experiment=False
    )
    ledger, drawn = Ledger(folder, config, {}), []
    for _ in range(trials):
        number, point = ledger.take()
        drawn.append(tuple(point.values()))
        if reopened:
            ledger = Ledger(folder, config, {})
            assert ledger.take() == (number, point), "a trial that was begun is handed out again"
        ledger.end(number, Ending("done", abs(drawn[-1][0] - 0.8) + abs(drawn[-1][1] - 0.3)))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trials"), [("tpe", 24), ("gp", 12), ("cmaes", 32)])
def test_a_search_learns_from_what_ended(tmp_path: Path, name: str, trials: int) -> None:
    far = [abs(lr - 0.8) + abs(temperature - 0.3) for lr, temperature in searched(tmp_path / name, name, trials)]
    assert np.median(far[-trials // 3 :]) < 0.6 * np.median(far[:4])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_a_search_in_many_processes_chooses_what_it_chooses_in_one(tmp_path: Path, name: str) -> None:
    assert searched(tmp_path / "one", name, 8) == searched(tmp_path / "many", name, 8, reopened=True)


@pytest.mark.slow
def test_trials_at_once_lie_apart(tmp_path: Path) -> None:
    config = sweep_config(
        search={"name": "tpe", "startup": 4}, trials=16, space=TWO_FIELDS, start_from_experiment=False
    )
    ledger = Ledger(tmp_path / "tpe", config, {})
    for _ in range(10):
        number, point = ledger.take()
        ledger.end(number, Ending("done", abs(point["optimiser.lr"] - 0.8)))
    running = [ledger.take()[1]["optimiser.lr"] for _ in range(6)]
    assert np.std(running) > 0.05, "running trials count as bad, so that the next is drawn elsewhere"


@pytest.mark.slow
def test_a_ledger_keeps_each_step_once_and_only_numbers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "min", sweep_config(), {"method": {"crops": {"iou": [0.3, 0.6]}}})
    ledger.take()
    for step, value in [(1, 0.5), (2, 0.25), (1, 9.0), (3, float("nan")), (4, 0.125)]:
        assert not ledger.falls_behind(0, step, value)
    assert ledger.study.trials[0].intermediate_values == {1: 0.5, 2: 0.25, 4: 0.125}


@pytest.mark.parametrize("steps", [1, 99, 150, 1050, 1055])
def test_a_whole_curve_ends_where_a_growing_one_does(steps: int) -> None:
    curve = Curve("collapse", "pretrain", every(steps), steps, sign_of_life="loss")
    values = [float(step**2) for step in range(steps)]
    lines = [{"stage": "pretrain", "step": step, "loss": 0.0, "collapse": value} for step, value in enumerate(values)]
    assert curve.points(lines)[-1] == (steps, pytest.approx(end(values)))


def test_a_curve_is_a_mean_since_the_last_point_and_passes_over_steps_trained_again() -> None:
    curve = Curve("collapse", "pretrain", every=2, total_steps=5, sign_of_life="loss")
    lines = [{"stage": "pretrain", "step": step, "loss": 0.0, "collapse": value} for step, value in
             [(0, 1.0), (1, 3.0), (2, 5.0), (1, 9.0), (2, 9.0), (3, 6.0), (4, 8.0)]]  # fmt: skip
    other = [{"stage": "finetune", "step": 0, "loss": 0.0}, {"stage": "pretrain", "fatal": "diverged"}]
    assert curve.points(lines[:1]) == []
    assert curve.points(other + lines[1:]) == [(2, 2.0), (4, 5.5), (5, 8.0)]
    assert curve.missing == ()
    assert (every(60), every(100_000)) == (1, 1000)


def test_a_metric_that_a_training_does_not_have_is_named_with_those_that_it_has() -> None:
    curve = Curve("rankme", "pretrain", every=1, total_steps=5, sign_of_life="loss")
    assert curve.points([{"stage": "pretrain", "step": 0, "loss": 0.5, "collapse": 0.25}]) == []
    assert curve.missing == ("collapse", "loss")


def ended() -> list[Standing]:
    iou = [[0.3, 0.6], [0.0, 0.3], [0.5, 0.9], [0.1, 0.4]]
    return [
        Standing(0, {"method.crops.iou": iou[0]}, "done", 0.5, 60),
        Standing(1, {"method.crops.iou": iou[1]}, "pruned", 0.125, 8),
        Standing(2, {"method.crops.iou": iou[2]}, "done", 0.25, 60, run="pretrain-2"),
        Standing(3, {"method.crops.iou": iou[3]}, "failed", None, 0, "no such pair; widen method.crops.iou"),
    ]


def test_the_best_trial_is_the_best_of_those_that_ran_to_their_end() -> None:
    config = sweep_config()
    assert standings.best(config, ended()) == ended()[2]
    assert [standing.number for standing in standings.ranked(config, ended())] == [2, 0, 1, 3]
    highest = sweep_config(objective={"metric": "collapse", "of": "pretrain", "mode": "max"})
    assert standings.best(highest, ended()) == ended()[0]
    assert standings.best(config, ended()[1:2]) is None


def test_standings_are_a_table_with_the_best_marked_and_failures_in_words() -> None:
    lines = standings.markdown(sweep_config(), ended()).splitlines()
    assert lines[2:8] == [
        "| row | state | steps | collapse |",
        "| --- | --- | --- | --- |",
        "| trial 2: iou 0.5-0.9 | done | 60 | 0.2500 best |",
        "| trial 0: iou 0.3-0.6 | done | 60 | 0.5000 |",
        "| trial 1: iou 0-0.3 | pruned | 8 | 0.1250 |",
        "| trial 3: iou 0.1-0.4 | failed | 0 | - |",
    ]
    assert lines[-1] == "- trial 3 failed: no such pair; widen method.crops.iou"
    assert (
        standings.sentence(sweep_config(), ended()[1]) == "trial 1: iou 0-0.3: pruned after step 8, collapse 0.1250"
    )


def test_standings_for_programs_have_a_column_for_each_number_of_a_point() -> None:
    rows = list(csv.DictReader(io.StringIO(standings.comma_separated(sweep_config(), ended()))))
    assert rows[2] == {
        "row": "trial 2: iou 0.5-0.9", "state": "done", "steps": "60", "collapse": "0.25",
        "method.crops.iou.low": "0.5", "method.crops.iou.high": "0.9", "run": "pretrain-2", "failure": "",
    }  # fmt: skip


def test_the_best_trial_s_file_is_its_experiment(tmp_path: Path, shards: str) -> None:
    sweep = sweeps.load(write_sweep(tmp_path, shards), ["budget.steps=7"])
    experiment = sweep.experiment({"method.crops.iou": [0.5, 0.9]})
    best = tmp_path / "best.yaml"
    text = standings.experiment_file(sweep.config, ended()[2], experiment.model_dump(mode="json"))
    best.write_text(text)
    assert load_experiment(best) == experiment
    assert text.startswith(
        "# Trial 2 of sweep iou, its best so far: collapse 0.25\n#   method.crops.iou: [0.5, 0.9]\n"
    )


def actors() -> dict[str, str]:
    """Return the classes of the actors that are not dead, by id; a run whose worker was killed leaves some."""
    return {key: one["ActorClassName"] for key, one in state.actors().items() if one["State"] != "DEAD"}


def left_over(before: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the placement groups and the new actors that are left, after some time for Ray to end them."""
    deadline = time.monotonic() + 120
    while True:
        groups = [entry["state"] for entry in ray.util.placement_group_table().values()]
        groups = [state for state in groups if state != "REMOVED"]
        new = [name for key, name in actors().items() if key not in before and name not in SERVICES]
        if not (groups or new) or time.monotonic() > deadline:
            return groups, new
        time.sleep(0.5)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pretrainings_that_fall_behind_in_effective_rank_end_early_and_the_report_says_what_that_saved(
    tmp_path: Path, shards: str, ray_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # At 1e-7 the encoder stays as it was drawn, and its rank is twice that of the others.
    changes = {
        "objective": {"metric": "dice_mean"},
        "scheduler": {"name": "asha", "grace": 10, "reduction_factor": 2, "metric": "health/effective_rank"},
        "search": {"name": "grid"},
        "trials": None,
        "space": {"optimiser.lr": {"choice": [1e-7, 2.0, 0.05]}},
    }
    path = write_sweep(tmp_path, shards, encoder=UNET, **changes)
    overrides = ["budget.steps=80", "health.times=8", "training.checkpoint_every_steps=80"]
    runs, before = tmp_path / "runs" / "tiny", actors()
    assert cli.main(["sweep", str(path), *overrides]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    sweep = sweeps.load(path, overrides)
    trials = Ledger(sweep.folder, sweep.config, sweep.base.model_dump(mode="json")).standings()
    assert [trial.state for trial in trials] == ["done", "pruned", "pruned"]
    assert all(10 <= trial.work[0].steps < 80 for trial in trials[1:])
    assert [trial.work[1].steps for trial in trials] == [4, 0, 0], "what was ended early is not fine-tuned"
    assert len(list(runs.glob("finetune-*"))) == 1
    (said,) = standings.saved(sweep.config, trials)
    left = sum(80 - trial.work[0].steps for trial in trials[1:]) + 8
    start = "asha by health/effective_rank ended 2 pretrainings early and left out 2 fine-tunings: "
    assert said.startswith(f"{start}{left} of 252 planned steps")
    assert said in (sweep.folder / "sweep.md").read_text()
    assert f"{left} of 252 planned steps" in printed
    assert said in unescape((sweep.folder / "report.html").read_text())
    assert left_over(before) == ([], [])
    assert load_experiment(sweep.folder / "best.yaml") == sweep.experiment({"optimiser.lr": 1e-7})
    check_mlflow(sweep, trials)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_population_goes_on_and_trains_what_an_undisturbed_one_trains_and_leaves_nothing_behind(
    tmp_path: Path, shards: str, ray_cluster: Path
) -> None:
    # At 2.0 the loss falls to -0.6; at the other rate it stays near 0, so that member 1 copies member 0.
    changes = {
        "objective": {"metric": "loss", "of": "pretrain", "mode": "min"},
        "search": {"name": "pbt", "population": 2, "segments": 2, "quantile": 0.5, "resample": 0, "seed": 1},
        "trials": None,
        "space": {"optimiser.lr": {"log_uniform": [1e-9, 2.5]}},
    }
    path, overrides = write_sweep(tmp_path, shards, **changes), ["optimiser.lr=2.0"]
    runs = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", str(path), *overrides]
    first = subprocess.Popen(command, start_new_session=True)
    wait_for(lambda: second_segment(runs), first)
    kill_tree(first)
    done = {path: path.read_bytes() for path in finished(runs)}
    assert len(done) == 2

    sweep, before = sweeps.load(path, overrides), actors()
    said: list[str] = []
    trials = sweeps.run(sweep, said.append)
    assert [line.split(":")[0] for line in said] == ["3 of 4", "4 of 4"]
    assert {path: path.read_bytes() for path in done} == done
    assert [(trial.state, trial.source, trial.steps) for trial in trials] == [
        ("done", None, 30), ("done", None, 30), ("done", 0, 60), ("done", 0, 60),
    ]  # fmt: skip
    rates = [trial.point["optimiser.lr"] for trial in trials]
    assert (rates[0], rates[2]) == (2.0, 2.0)
    assert rates[3] in (pytest.approx(1.6), pytest.approx(2.4)), "the worst rate is given up"
    ends = [runs / trial.pretrained / "checkpoints" / "pretrain" / "step_000000030" for trial in trials]
    for name in (METHOD, OPTIMISER):
        assert (ends[3] / name).read_bytes() == (ends[0] / name).read_bytes() != (ends[1] / name).read_bytes()
    losses = [[line["loss"] for line in history_steps(runs / trial.pretrained, "pretrain")] for trial in trials]
    assert losses == [pytest.approx(own, abs=1e-5) for own in trained_without_ray(sweep, trials, tmp_path)]
    assert left_over(before) == ([], [])
    assert standings.best(sweep.config, trials) == min(trials[2:], key=lambda trial: trial.value)
    assert len(standings.copies(sweep.config, trials)) == 1
    shown = report_of(compare(in_folders([sweep.folder], Path(sweep.base.home)), Request()))
    assert [chart.heading for chart in shown.charts][1:3] == [
        "loss of the population",
        "optimiser.lr of the population",
    ]
    assert shown.answer.startswith("Best member ")


def trained_without_ray(sweep: sweeps.Sweep, trials: list[Standing], folder: Path) -> list[list[float]]:
    """Train the segments of a population one after the other in this process; return the losses of each."""
    losses, ends = list[list[float]](), list[Path]()
    for place, trial in enumerate(trials):
        course = Course.open(sweep.experiment(trial.point))
        plan = replace(course.plan, ends_at=30 if trial.source is None else 60)

        def feed(first: int, course: Course = course, plan: Plan = plan) -> Iterator[Batch]:
            remaining = replace(course.feed, first_step=first, last_step=plan.last_step)
            return stream.batches(None, remaining, 0, torch.device("cpu"))

        start = None if trial.source is None else ends[trial.source]
        train(Trainee(course.build({})), plan, feed, World(), recorded := Recorder(folder / str(place)), start)
        losses.append([entry["loss"] for entry in recorded.entries])
        ends.append(recorded.checkpoints[plan.last_step])
    return losses


def second_segment(runs: Path) -> bool:
    """Tell whether the first segment of both members is done, and another one has been started."""
    return len(list(runs.glob("pretrain-*/experiment.json"))) == 3 and len(finished(runs)) == 2


def check_mlflow(sweep: sweeps.Sweep, trials: list[Standing]) -> None:
    """Hold that the sweep's trials are its children, with points as numbers, and trainings theirs."""
    client = MlflowClient(f"sqlite:///{sweep.base.home}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (found,) = client.search_runs([experiment], "tags.kind = 'sweep'")
    parent, winner = found.info.run_id, standings.best(sweep.config, trials)
    assert winner is not None
    point = standings.named(sweep.config, winner.number, winner.point).partition(": ")[2]
    assert found.info.run_name == f"sweep: {winner.value:.4f} {point} ({sweep.config.name})"
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'", order_by=["start_time"])
    assert [run.data.tags["state"] for run in children] == [trial.state for trial in trials]
    assert children[0].info.run_name == "trial 0: lr 1e-07"
    assert children[0].data.params == {"optimiser.lr": "1e-07"}
    assert children[0].data.metrics["best/dice_mean"] == trials[0].value
    own = f"tags.mlflow.parentRunId = '{children[0].info.run_id}'"
    assert {run.data.tags["kind"] for run in client.search_runs([experiment], own)} == {"pretrain", "finetune"}


def finished(runs: Path) -> list[Path]:
    return [path.parent / HISTORY for path in runs.glob("pretrain-*/result.json")]
