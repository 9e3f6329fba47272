"""Two workers equal one, with and without micro-batches: the loop in two processes, and commands through Ray."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import yaml
from torch import multiprocessing as mp

from data.views.batch import Batch
from orchestrator.cli import main
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.history import HISTORY, steps
from orchestrator.judging.cases import CASES
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.run import RESULT
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.world import World
from tests.experiments import UNET, tiny_experiment, tiny_segmentation
from tests.shardsets import write_pictures, write_slices

PRETRAININGS = {
    "simsiam": {},
    "exemplar": {"method": {"name": "exemplar", "side": 32, "projector_dim": 8}},
}
FINETUNINGS = ("segmentation", "classification")
SIZES = (None, 1)
IN_CHUNKS = {**UNET, "norm": "instance"}  # micro-batches would divide the statistics of batch norm
NOT_COMPARED = ("samples_per_s", "data_wait_share")


def experiment_of(case: str, folder: Path, workers: int, micro_batch_size: int | None) -> Experiment:
    return resolve(tree_of(case, folder, workers, micro_batch_size))


def tree_of(case: str, folder: Path, workers: int, micro_batch_size: int | None) -> dict[str, Any]:
    pictures, slices = str(folder / "pictures"), str(folder / "slices")
    resources = {"workers": workers, "micro_batch_size": micro_batch_size}
    # Batch norm after instance norm magnifies how sums round: with longer steps, runs would drift apart.
    sgd = {"name": "sgd", "lr": 1e-5}
    changes: dict[str, Any] = {"resources": resources, "optimiser": sgd}
    if case in PRETRAININGS:
        changes |= {"probe": {"shards": pictures, "size": 32, "times": 2}, **PRETRAININGS[case]}
    elif case == "segmentation":
        task = {**tiny_segmentation(slices), "optimiser": {"name": "sgd", "lr": 0.01}}
        changes["downstream"] = {**task, "resources": resources}
    else:
        changes["downstream"] = {
            "shards": pictures,
            "task": {"name": "classification", "size": 32, "hidden_dims": [8], "dropout": 0},
            "optimiser": sgd,
            "budget": {"steps": 4, "batch_size": 12},
        }
    return tiny_experiment(case, pictures, folder / "runs", steps=4, encoder=IN_CHUNKS, **changes)


def of(experiment: Experiment) -> tuple[Trainee, Plan, FeedPlan]:
    """Build what a worker trains, and say how long and on what, as a command does."""
    if experiment.downstream:
        labelled = finetune.check(experiment)
        plan = finetune.plan_of(experiment, labelled)
        return finetune.build_trainee(experiment, None), plan, finetune.feed_of(experiment, labelled, plan)
    (course,) = pretrain.check(experiment)
    return pretrain.build_trainee(experiment, 0, {}), course.plan, course.feed


def trained(case: str, folder: Path, world: World, micro_batch_size: int | None = None) -> list[dict[str, Any]]:
    """Train, and return what is logged of each step."""
    trainee, plan, feed_plan = of(experiment_of(case, folder, world.size, micro_batch_size))
    assert feed_plan.world == world.size
    entries: list[dict[str, Any]] = []

    def batches(first_step: int) -> Iterator[Batch]:
        return stream.local_batches(feed_plan, world.rank)

    def report(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        entries.extend(metrics["history"])

    train(trainee, plan, batches, world, report)
    return entries


def train_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    found = {
        f"{case}-{size}": trained(case, Path(folder), world, size)
        for case in (*PRETRAININGS, *FINETUNINGS)
        for size in SIZES
    }
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_pictures(folder / "pictures")
    write_slices(folder / "slices", size=40)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, list[dict[str, Any]]]]:
    mp.spawn(train_on_rank, args=(str(folder),), nprocs=2)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def written(case: str, folder: Path, micro_batch_size: int | None = None) -> str:
    """Write the experiment of two workers into a file."""
    file = folder / f"{case}.yaml"
    file.write_text(yaml.safe_dump(tree_of(case, folder, 2, micro_batch_size)))
    return str(file)


@pytest.mark.slow
def test_a_fine_tuning_by_two_workers_of_ray_scores_as_one_by_one_worker(folder, ray_cluster, capsys):
    alone = trained("segmentation", folder, World())
    assert main(["finetune", written("segmentation", folder, micro_batch_size=2), "method={name: scratch}"]) == 0
    (run,) = (folder / "runs" / "segmentation").glob("finetune-*")
    found = steps(run, finetune.STAGE)
    assert [entry["samples"] for entry in found] == [entry["samples"] for entry in alone]
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in alone], abs=1e-5)
    expected = {**{name: alone[-1][name] for name in alone[-1]["judged"]}, "best_step": 4}
    scores = json.loads((run / RESULT).read_text())["scores"]
    assert scores == pytest.approx(expected, abs=1e-6)
    cases = pd.read_parquet(run / CASES)
    assert cases.groupby("label")["dice"].mean().mean() == pytest.approx(scores["score"])
    printed = dict(re.findall(r"^(.+?) +(\d+\.\d{4})$", capsys.readouterr().out, re.MULTILINE))
    assert {name: float(printed[name]) for name in scores} == pytest.approx(scores, abs=1e-4)


def table_in(text: str) -> str:
    """Return what is printed from the table on: Ray writes its own warnings of a slow machine to the same stream."""
    return text[text.index("┏") :]


@pytest.mark.slow
def test_a_pretraining_by_two_workers_of_ray_is_probed_as_one_by_one_worker(folder, ray_cluster, capsys):
    alone = trained("simsiam", folder, World())
    file = written("simsiam", folder)
    assert main(["pretrain", file]) == 0
    (run,) = (folder / "runs" / "simsiam").glob("pretrain-*")
    assert f"encoder: {run / 'encoder'}\n" in capsys.readouterr().out
    found = steps(run, "pretrain")
    assert [entry["samples"] for entry in found] == [entry["samples"] for entry in alone]
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in alone], abs=1e-5)
    assert [entry["step"] + 1 for entry in found if "probe/linear_auc" in entry] == [2, 4]
    history = (run / HISTORY).read_bytes()
    assert main(["probe", file]) == 0
    assert (run / HISTORY).read_bytes() == history, "it was not trained again"
    (probed,) = (folder / "runs" / "simsiam").glob(f"probe-*/{RESULT}")
    metrics = json.loads(probed.read_text())["pretrained"]["metrics"]
    assert metrics == pytest.approx({name: alone[-1][name] for name in metrics}, abs=1e-5)
    shown, before = table_in(capsys.readouterr().out), probed.stat().st_mtime_ns
    assert main(["probe", file]) == 0
    assert (table_in(capsys.readouterr().out), probed.stat().st_mtime_ns) == (shown, before), (
        "it was not probed again"
    )


def compared(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in NOT_COMPARED} for entry in entries]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*PRETRAININGS, *FINETUNINGS])
def test_two_workers_log_what_one_logs_with_and_without_micro_batches(case, folder, ranks):
    alone = compared(trained(case, folder, World()))
    judged = {"simsiam": "probe/linear_auc", "exemplar": "probe/knn_auc"}.get(case, "score")
    assert (len(alone), judged in alone[-1]) == (4, True)
    found = [compared(rank[f"{case}-{size}"]) for rank in ranks for size in SIZES]
    found.append(compared(trained(case, folder, World(), micro_batch_size=3)))
    for entries in found:
        for entry, expected in zip(entries, alone, strict=True):
            assert {name: value for name, value in entry.items() if name in ("step", "samples", "judged")} == {
                name: value for name, value in expected.items() if name in ("step", "samples", "judged")
            }
            assert entry.keys() == expected.keys()
            assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
            numbers = [name for name, value in entry.items() if isinstance(value, float) and name != "grad_norm"]
            assert [entry[name] for name in numbers] == pytest.approx([expected[name] for name in numbers], abs=1e-5)
