"""Which metrics are better when higher or lower, and how that orders rows and links."""

import json

import pytest
import torch
from pydantic import ValidationError

from orchestrator.direction import best, best_first, direction_of
from orchestrator.sweeps.settings import Objective
from orchestrator.tracking.pages import MlflowRuns, is_served, view_of
from tests.methods.test_contract import EACH_IN_FEWEST, samples_of, tiny_method

BOUNDS = ("_least", "_most")  # of the numbers beside them


@pytest.mark.parametrize(("name", "dims"), EACH_IN_FEWEST)
def test_it_is_known_of_every_number_that_a_method_logs_whether_lower_is_better(name: str, dims: int) -> None:
    method = tiny_method(name, 3 if name.split()[0] in ("rotation", "cpc") else dims)
    batch = samples_of(name, method.encoder.spatial_dims, 2)
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(0)))
    assert {part for part in losses.parts if direction_of(part) is None and not part.endswith(BOUNDS)} == set()


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("score", "max"),
        ("best/dice/liver", "max"),
        ("dice_mean", "max"),
        ("health/effective_rank", "max"),
        ("probe/linear_accuracy", "max"),
        ("probe/knn_auc", "max"),
        ("best/initial/probe/knn_f1", "max"),
        ("kappa_quadratic", "max"),
        ("best/ap50/nodule", "max"),
        ("best/sensitivity_at_0.5", "max"),
        ("test/mean_box/ap50", "max"),
        ("mfroc", "max"),
        ("proposal_box_loss", "min"),
        ("best/initial/probe/linear_kappa", "max"),
        ("collapse", "min"),
        ("health/uniformity", "min"),
        ("health/alignment", "min"),
        ("loss", "min"),
        ("dice_loss", "min"),
        ("mean_error", "min"),
        ("loss_of_constant", None),
        ("epoch", None),
        ("lr", None),
        ("best/best_step", None),
    ],
)
def test_a_metric_s_direction_does_not_depend_on_where_it_was_measured(metric: str, direction: str | None) -> None:
    assert direction_of(metric) == direction


def test_rows_go_from_the_best_to_the_worst_and_those_without_a_value_last() -> None:
    values = [0.2, None, 0.5, 0.3]
    assert (best_first(values, "max"), best(values, "max")) == ([2, 3, 0, 1], 2)
    assert (best_first(values, "min"), best(values, "min")) == ([0, 3, 2, 1], 0)
    assert (best_first(values, None), best(values, None)) == ([0, 2, 3, 1], None)
    assert best([0.2, None], "max") is None


def test_an_objective_s_mode_is_its_metric_s_unless_another_is_given() -> None:
    assert Objective(metric="dice_mean").mode == "max"
    assert Objective(metric="collapse", of="pretrain").mode == "min"
    assert Objective(metric="collapse", mode="max").mode == "max"
    with pytest.raises(
        ValidationError, match="metric lr: higher or lower may be better; give mode: max or mode: min"
    ):
        Objective.model_validate({"metric": "lr"})


def test_a_view_shows_a_metric_its_curve_and_the_fields_that_differ() -> None:
    known = MlflowRuns("sqlite:////runs/my%20home/mlflow.db", "1", ("a", "b"))
    view = view_of(known, "finetune", "best/dice_mean", "dice_mean", ["lr", "seed"])
    bars, line, parallel = view["compareRunCharts"]
    assert (bars["metricKey"], line["selectedMetricKeys"]) == ("best/dice_mean", ["dice_mean"])
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (["lr", "seed"], ["best/dice_mean"])
    assert view["searchFilter"] == "attributes.run_id IN ('a', 'b')"
    assert view["selectedColumns"][:2] == ["metrics.`best/dice_mean`", "tags.`row`"]
    assert (str(known.home), known.server) == ("/runs/my home", "http://127.0.0.1:5000")


def test_a_view_of_more_runs_than_a_tag_can_name_shows_all_runs_of_their_kind() -> None:
    known = MlflowRuns("http://mlflow:5000", "1", tuple(f"{number:032x}" for number in range(200)))
    view = view_of(known, "trial", "best/collapse", "collapse", [])
    assert (view["searchFilter"], view["orderByAsc"]) == ("tags.kind = 'trial'", True)
    assert len(json.dumps(view)) < 5000
    assert known.home is None


def test_where_nothing_answers_no_page_is_served() -> None:
    assert not is_served("http://127.0.0.1:1")
