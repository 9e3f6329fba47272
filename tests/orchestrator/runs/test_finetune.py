"""Fine-tuning without Ray: which labels are used, where weights come from, what a validated checkpoint holds."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from monai.networks.nets import BasicUNet
from safetensors.torch import load_file
from torch import multiprocessing as mp

from data.shards.index import ShardSet
from data.views.batch import Batch
from methods.base import Progress
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.feed import stream
from orchestrator.judging.cases import CASES, to_parquet
from orchestrator.runs import finetune
from orchestrator.runs.pretrain import build_encoder
from orchestrator.training.checkpoint import ENCODER, CheckpointError, State, export_encoder
from orchestrator.training.loop import train
from orchestrator.training.world import World
from tests.shardsets import SLICES_PER_VOLUME, write_slices

WIDTHS = [4, 4, 8, 8, 8, 4]
POOLED = (
    "encoder={name: pooled_unet, spatial_dims: 2, features: [4, 4, 4, 4, 4], dropout: 0.1}",
    "downstream.task.crop_size=[64, 64]",
)
ALONE = World(0, 1, torch.device("cpu"))


def experiment_of(shards: str, *overrides: str) -> Experiment:
    tree: dict[str, Any] = {
        "name": "finetune",
        "home": "runs",
        "data": {"shards": shards},
        "encoder": {"name": "unet", "spatial_dims": 2, "in_channels": 1, "features": WIDTHS},
        "method": {"name": "scratch"},
        "downstream": {
            "shards": shards,
            "task": {"name": "segmentation", "crop_size": [32, 32]},
            "optimiser": {"name": "adamw", "lr": 0.01},
            "budget": {"epochs": 4, "batch_size": 12},
            "evaluate_every_epochs": 1,
        },
    }
    return resolve(tree, overrides)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


def labelled_of(experiment: Experiment) -> finetune.LabelledSamples:
    return finetune.labelled_samples(finetune.downstream_of(experiment))


class Recorder:
    """Keeps every reported entry and the files of every checkpoint."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.checkpoints: list[dict[str, bytes]] = []

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        self.entries += metrics["history"]
        if checkpoint is not None:
            self.checkpoints.append({path.name: path.read_bytes() for path in checkpoint.iterdir()})


def train_here(experiment: Experiment, encoder: str | None = None) -> tuple[State, Recorder]:
    """Train as a worker does, in this process."""
    labelled = labelled_of(experiment)
    plan = finetune.plan_of(experiment, labelled)
    feed_plan = finetune.feed_of(experiment, labelled, plan)

    def batches(first_step: int) -> Iterator[Batch]:
        return stream.local_batches(feed_plan, rank=0)

    recorder = Recorder()
    return train(finetune.build_trainee(experiment, encoder), plan, batches, ALONE, recorder), recorder


def test_a_label_fraction_keeps_whole_patients_and_is_nested(shards: str) -> None:
    kept = [labelled_of(experiment_of(shards, f"downstream.label_fraction={f}")) for f in (0.34, 0.5, 1)]
    assert [len(part.patients) for part in kept] == [2, 3, 6]
    assert set(kept[0].patients) < set(kept[1].patients) < set(kept[2].patients)
    assert [part.train.num_samples for part in kept] == [n * SLICES_PER_VOLUME for n in (2, 3, 6)]
    assert {part.val.num_samples for part in kept} == {2 * SLICES_PER_VOLUME}


def test_the_seed_does_not_change_which_patients_are_kept(shards: str) -> None:
    kept = [
        labelled_of(experiment_of(shards, "downstream.label_fraction=0.5", f"downstream.seed={s}")) for s in (0, 1)
    ]
    assert kept[0].patients == kept[1].patients


def test_the_feed_delivers_labelled_samples_of_the_kept_patients_only(shards: str) -> None:
    experiment = experiment_of(shards, "downstream.label_fraction=0.34")
    labelled = labelled_of(experiment)
    plan = finetune.plan_of(experiment, labelled)
    assert plan.total_steps == 4 * 12 // 12
    batches = list(stream.local_batches(finetune.feed_of(experiment, labelled, plan), rank=0))
    seen = {sample.split("-")[0] for batch in batches for sample in batch.sample_ids}
    assert seen == {patient.replace("p", "v") for patient in labelled.patients}
    assert all(batch.labels is not None for batch in batches)


def test_every_patient_is_validated_on_in_one_fold_and_trained_on_in_the_others(shards: str) -> None:
    parts = [labelled_of(experiment_of(shards, "downstream.num_folds=3", f"downstream.fold={n}")) for n in range(3)]
    names = parts[0].shards.rows["patient"]
    held_out = [set(names.take(part.val.row_ids).to_pylist()) for part in parts]
    assert sorted(patient for fold in held_out for patient in fold) == sorted(
        set(names.take(parts[0].shards.select("train").row_ids).to_pylist())
    )
    for part, fold in zip(parts, held_out, strict=True):
        assert not fold & set(part.patients)
        assert len(fold) + len(part.patients) == 6
    with pytest.raises(ConfigError, match=r"downstream: fold 3 of num_folds 3; expected 0 to 2"):
        experiment_of(shards, "downstream.num_folds=3", "downstream.fold=3")


def moved(shards: str, tmp_path: Path, *overrides: str) -> list[set[str]]:
    """Return the encoder's parameters and statistics that differ from the initial ones, at each checkpoint."""
    experiment = experiment_of(shards, *POOLED, *overrides)
    start = finetune.build_network(experiment, ShardSet.open(shards), None).encoder.state_dict()
    _, recorder = train_here(experiment)
    differing = []
    for files in recorder.checkpoints:
        (tmp_path / ENCODER).write_bytes(files[ENCODER])
        now = load_file(tmp_path / ENCODER)
        differing.append({name for name, value in now.items() if not torch.equal(value, start[name])})
    return differing


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_weights_and_its_statistics(shards: str, tmp_path: Path) -> None:
    assert moved(shards, tmp_path, "downstream.frozen_levels=all") == [set()] * 4


@pytest.mark.slow
def test_frozen_levels_are_those_that_see_the_image_first(shards: str, tmp_path: Path) -> None:
    last = moved(shards, tmp_path, "downstream.frozen_levels=2")[-1]
    assert {name.split(".")[1] for name in last} == {"2", "3", "4"}
    everything = moved(shards, tmp_path)[-1]
    assert {name for name in everything if name.split(".")[1] in "234"} == last


@pytest.mark.slow
def test_an_encoder_that_is_frozen_for_two_epochs_learns_from_the_third_on(shards: str, tmp_path: Path) -> None:
    overrides = (
        "downstream.frozen_levels=all",
        "downstream.frozen_epochs=2",
        "downstream.optimiser.weight_decay=0.1",
    )
    first, second, third, fourth = moved(shards, tmp_path, *overrides)
    assert (first, second) == (set(), set())
    assert third == fourth == moved(shards, tmp_path)[-1]


def test_modules_are_let_go_at_the_step_at_which_gradients_are(shards: str) -> None:
    network = finetune.build_network(experiment_of(shards, *POOLED), ShardSet.open(shards), None)
    network.freeze(None, until=7 / 10)  # the nearest float32 lies below
    network.after_step(Progress(6, 10, 0))
    assert not network.train().encoder.training
    network.after_step(Progress(7, 10, 0))
    assert network.train().encoder.training


def test_more_frozen_levels_than_there_are_are_refused(shards: str) -> None:
    with pytest.raises(
        ValueError, match=r"frozen_levels 6: the encoder has 5 levels; give at most as many, or `all`"
    ):
        finetune.check(experiment_of(shards, "downstream.frozen_levels=6"))


def test_initial_weights_follow_the_downstream_seed_and_the_encoder_its_file(shards: str, tmp_path: Path) -> None:
    labelled = ShardSet.open(shards)
    same, again, other = (
        finetune.build_network(experiment_of(shards, f"downstream.seed={seed}"), labelled, None) for seed in (3, 3, 4)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(same.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not torch.equal(
        same.encoder.state_dict()[key := next(iter(same.encoder.state_dict()))], other.encoder.state_dict()[key]
    )
    export_encoder(tmp_path, other.encoder, {})
    loaded = finetune.build_network(experiment_of(shards, "downstream.seed=3"), labelled, str(tmp_path))
    for name, value in loaded.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[name])
    decoder = {n: v for n, v in loaded.network.state_dict().items() if n.startswith(("upcat", "final"))}
    assert all(torch.equal(value, same.network.state_dict()[name]) for name, value in decoder.items())


def test_fields_of_the_encoder_that_hold_no_weights_can_be_changed_downstream(shards: str) -> None:
    swin = "{name: swin_unetr, spatial_dims: 2, feature_size: 12, num_heads: [1, 2, 2, 4], drop_path: 0.1}"
    experiment = experiment_of(
        shards, f"encoder={swin}", "downstream.encoder={drop_path: 0.0}", "downstream.task.crop_size=[64, 64]"
    )
    assert finetune.build_network(experiment, ShardSet.open(shards), None).encoder.config.drop_path == 0.0
    assert experiment.encoder.drop_path == 0.1


def test_an_encoder_that_learnt_other_channels_keeps_all_weights_but_those_that_meet_them(
    shards: str, tmp_path: Path
) -> None:
    changes = ("encoder.in_channels=2", "downstream.encoder={in_channels: 1}")
    experiment, labelled = experiment_of(shards, *changes), finetune.check(experiment_of(shards, *changes)).shards
    pretrained = build_encoder(experiment)
    export_encoder(tmp_path, pretrained, {})
    learnt = pretrained.state_dict()
    initial = finetune.build_network(experiment, labelled, None).encoder.state_dict()
    loaded = finetune.build_network(experiment, labelled, str(tmp_path)).encoder.state_dict()
    anew = {name for name, value in loaded.items() if value.shape != learnt[name].shape}
    assert anew == {"conv_0.conv_0.conv.weight"}
    for name, value in loaded.items():
        assert torch.equal(value, (initial if name in anew else learnt)[name])
    wider = experiment_of(shards, *changes, "downstream.encoder.features=[8, 8, 8, 8, 8, 8]")
    with pytest.raises(CheckpointError, match=r"keys do not match"):
        finetune.build_network(wider, labelled, str(tmp_path))


@pytest.mark.slow
def test_training_validates_every_epoch_and_keeps_what_other_tools_take(shards: str, tmp_path: Path) -> None:
    state, recorder = train_here(experiment_of(shards))
    scores = [(entry["step"] + 1, entry["score"]) for entry in recorder.entries if "score" in entry]
    assert [step for step, _ in scores] == [3, 6, 9, 12]
    assert (state.best_step, state.best["score"]) == max(scores, key=lambda pair: pair[1])
    best = recorder.entries[state.best_step - 1]
    assert state.best == {name: best[name] for name in best["judged"]}
    files = recorder.checkpoints[-1]
    for name in (finetune.NETWORK, finetune.NETWORK_CARD, finetune.PREDICTIONS):
        (tmp_path / name).write_bytes(files[name])
    card = json.loads((tmp_path / finetune.NETWORK_CARD).read_text())
    assert (card["class_names"], card["label_values"]) == (["background", "liver", "kidney"], [1, 2])
    theirs = BasicUNet(
        spatial_dims=2, in_channels=1, out_channels=3, features=WIDTHS, norm=("batch", {"affine": True})
    )
    theirs.load_state_dict(load_file(tmp_path / finetune.NETWORK), strict=True)


@pytest.mark.slow
def test_every_validation_leaves_its_cases_in_the_checkpoint(shards: str) -> None:
    state, recorder = train_here(experiment_of(shards))
    scored = [entry for entry in recorder.entries if "score" in entry]
    for entry, files in zip(scored, recorder.checkpoints, strict=True):
        cases = pd.read_parquet(io.BytesIO(files[CASES]))
        assert set(cases["split"]) == {"validation"}
        assert cases.groupby("label")["dice"].mean().mean() == pytest.approx(entry["score"])
    assert state.best_step in [entry["step"] + 1 for entry in scored]


@pytest.mark.slow
def test_training_stops_after_the_patience(shards: str) -> None:
    frozen = experiment_of(shards, "downstream.optimiser.lr=1.0e-30", "downstream.patience_epochs=2")
    state, recorder = train_here(frozen)
    assert (state.step, state.best_step) == (9, 3)
    assert len([entry for entry in recorder.entries if "score" in entry]) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("downstream.val_split=validation", r"0 samples with a label map in split 'validation', expected at least 1"),
        ("encoder.in_channels=3", r"encoder.in_channels is 3, the labelled shards have 1; set encoder.in_channels=1"),
        ("encoder.spatial_dims=3", r"encoder.spatial_dims is 3, the labelled shards have 2"),
        ("downstream.task.crop_size=[32, 24]", r"24 is not a multiple of the encoder's stride 16"),
        ("downstream.task.largest_component=true", r"largest_component: the samples are slices, so that a volume's"),
        ("downstream=null", r"experiment finetune: no downstream task; add downstream:"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(shards: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.check(experiment_of(shards, override))


def validate_on_rank(rank: int, shards: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metrics, cases = validate(shards, World(rank, 2, torch.device("cpu")))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(metrics))
    Path(folder, f"rank-{rank}.parquet").write_bytes(cases)
    dist.destroy_process_group()


def validate(shards: str, world: World) -> tuple[dict[str, float], bytes]:
    experiment = experiment_of(shards)
    labelled = labelled_of(experiment)
    network = finetune.build_network(experiment, labelled.shards, None).eval()
    validation = finetune.validation_of(experiment, labelled)
    return validation.run(network, world), to_parquet("validation", validation.cases)


@pytest.mark.slow
def test_two_ranks_score_what_one_rank_scores(shards: str, tmp_path: Path) -> None:
    mp.spawn(validate_on_rank, args=(shards, str(tmp_path)), nprocs=2)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    alone, cases = validate(shards, ALONE)
    assert [Path(tmp_path, f"rank-{rank}.parquet").read_bytes() for rank in range(2)] == [cases, cases]
    assert ranks[0] == ranks[1]
    assert ranks[0] == pytest.approx(alone, abs=1e-12)
    assert np.isfinite(list(alone.values())).all()
