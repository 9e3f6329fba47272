"""A dry run shows all that would run; every experiment dry-runs at 1, 2, 4 and 8 workers, tables and sweeps at 8."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.boxes import Boxes
from data.scan import Scan
from data.shards.index import IndexCard, write_index
from data.shards.writer import Sample, to_row, write_shard
from methods.base import Method
from orchestrator.cli import main
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import load, merge
from orchestrator.config.parts import TRAINABLE, EncoderConfig, StageMethodConfig
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps.space import extremes
from orchestrator.tables import table as tables
from orchestrator.training.outline import outline_method, outline_of
from tests.batches import facts_of
from tests.experiments import UNET, tiny_experiment, tiny_segmentation
from tests.orchestrator.config.test_experiment import EXPERIMENTS, ON_COHORTS, SWEEPS, TABLES
from tests.shardsets import write_pictures, write_slices

# Most first, with the smallest shares of a batch: what is measured once is remembered.
WORKERS = (8, 4, 2, 1)
MOST = (8,)  # of tables and sweeps, whose experiments are files of their own
LABELS = {number: f"label {number}" for number in range(1, 15)}
CLASSES = {number: f"grade {number}" for number in range(5)}
PATIENTS = {"train": 30, "val": 5, "test": 5}
SIDES = (32, 48, 64, 96, 128, 160, 192, 224, 256)
# Of volumes whose slices can be cut into 2, 3, 4 and 5 equal parts.
FLAT = ((64, 120, 120), (64, 240, 240), (64, 360, 360))


@cache
def written(folder: Path, extent: tuple[int, ...], channels: int) -> Path:
    """Write a shard set with label maps, classes and boxes; return its folder."""
    out = folder / f"{'x'.join(map(str, extent))}-{channels}"
    rng = np.random.default_rng(0)
    files = []
    for split, count in PATIENTS.items():
        rows = [to_row(sample(rng, number, split, extent, channels)) for number in range(count)]
        file = write_shard(str(out), f"{split}-00000", [rows])
        assert file is not None
        files.append(file)
    write_index(str(out), files, IndexCard({"name": "test"}, LABELS, CLASSES, box_names={0: "finding"}))
    return out


def sample(rng: np.random.Generator, number: int, split: str, extent: tuple[int, ...], channels: int) -> Sample:
    voxels = rng.integers(0, 255, (channels, *extent[:-1], 1), np.uint8)
    label = rng.integers(0, 15, (*extent[:-1], 1), np.uint8)
    scan = Scan(
        voxels=np.broadcast_to(voxels, (channels, *extent)).copy(),
        spacing_mm=(1.0,) * len(extent),
        modality="CT",
        label=np.broadcast_to(label, extent).copy(),
        scale=1 / 255,
        boxes=boxes_in(extent),
    )
    name = f"{split}-{number}"
    return Sample(scan, name, name, name, "test", split, (number % 5,))


def boxes_in(extent: tuple[int, ...]) -> Boxes:
    """Return the box of a plane's middle, which is one plane thick."""
    low, high = (np.array(extent) * np.array([share]) // 8 for share in (3, 5))
    if len(extent) == 3:
        low[0], high[0] = extent[0] // 2, extent[0] // 2 + 1
    return Boxes(np.stack([low, high])[None].astype(np.int64), np.zeros(1, np.int64))


def extent_of(trained: Sequence[tuple[StageMethodConfig, EncoderConfig]]) -> tuple[int, ...]:
    """Return the smallest size that all of some methods take, each on its encoder."""
    methods = {outline_method(method, encoder, facts_of(CLASSES)) for method, encoder in trained}
    dims, _ = fed(*trained[0])
    extents = [*((side,) * dims for side in SIDES), *(FLAT if dims == 3 else ())]
    return next(extent for extent in extents if all(_takes(method, extent) for method in methods))


def fed(method: StageMethodConfig, encoder: EncoderConfig) -> tuple[int, int]:
    """Return the spatial dimensions and the channels of the samples that a method is fed."""
    return TRAINABLE[method.name].takes(outline_of(encoder))


def _takes(method: Method, extent: tuple[int, ...]) -> bool:
    try:
        method.check_extent(extent)
    except ValueError:
        return False
    return True


def provide(experiments: Sequence[Experiment], folder: Path) -> None:
    """Put shards where some experiments look for them, from the current folder on."""
    readers: dict[str, list[tuple[StageMethodConfig, EncoderConfig]]] = {}
    channels: dict[str, int] = {}
    for experiment in experiments:
        for stage in experiment.pretraining:
            for data in experiment.data_of(stage):
                readers.setdefault(data.shards, []).append((stage.method, experiment.encoder_of(stage)))
                _, channels[data.shards] = fed(stage.method, experiment.encoder_of(stage))
        if task := experiment.downstream:
            tuned = experiment.downstream_encoder
            trained = [(stage.method, experiment.encoder_of(stage)) for stage in experiment.pretraining]
            whole = (TRAINABLE["scratch"].Config(), tuned)  # of a task on volumes after photographs
            last = next((one for one in reversed(trained) if fed(*one)[0] == tuned.spatial_dims), whole)
            readers.setdefault(task.shards, []).append(last)
            channels.setdefault(task.shards, tuned.in_channels)
    for uri, found in readers.items():
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        Path(uri).symlink_to(written(folder, extent_of(found), channels[uri]))


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.mark.slow
@pytest.mark.parametrize("path", [*EXPERIMENTS, *TABLES, *SWEEPS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_dry_runs_as_typed_at_any_number_of_workers(
    path: Path, kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if path in TABLES:
        verb, experiments = "table", [experiment for _, experiment in tables.load(path).experiments]
    elif path in SWEEPS:
        sweep = sweeps.load(path)
        points = extremes(sweep.config.space, sweep.base.model_dump(mode="json"))
        verb, experiments = "sweep", [sweep.experiment(point) for point in [{}, *points]]
    else:
        experiments = [load(path)]
        verb = "finetune" if experiments[0].downstream else "pretrain"
    provide(experiments, kinds)
    for workers in WORKERS if path in EXPERIMENTS else MOST:
        assert main([verb, str(path), "--dry-run", f"resources.workers={workers}"]) == 0, capsys.readouterr().err
        assert ("GiB" in capsys.readouterr().out) == bool(experiments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "cohort"), ON_COHORTS, ids=lambda part: Path(part).stem)
def test_every_row_takes_the_samples_of_its_cohort(path: Path, cohort: str) -> None:
    table = tables.load(path, cohort=cohort)
    assert table.cohort is not None
    extents = {}
    for request in table.cohort.requests(table.cohort.folder(table.base.home)):
        recipe = request.resolved_recipe
        extents[request.out] = recipe.resize_to[1:] if recipe.kind == "slices" else recipe.resize_to
    for one in {trial.row: experiment for trial, experiment in table.experiments}.values():
        for stage in one.pretraining:
            for data in one.data_of(stage):
                if extent := extents[data.shards]:  # else each scan has a size of its own
                    method = outline_method(stage.method, one.encoder_of(stage), facts_of(CLASSES))
                    method.check_extent(extent)


def experiment(folder: Path, **changes: object) -> Path:
    """Write an experiment on slices with label maps, whose probe is on pictures with classes."""
    shards = write_slices(folder / "slices", size=64)
    tree = tiny_experiment("tiny", shards, folder / "runs", 6, **changes)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder / "tiny.yaml"


@pytest.mark.parametrize(
    ("verb", "changes", "said"),
    [
        ("finetune", {}, "experiment tiny: no downstream task; add downstream:"),
        ("finetune", {"task": {"name": "classification", "size": 32}}, "0 samples with a class in split 'train'"),
        ("finetune", {"task": {"labels": [7]}}, "downstream.task.labels: value 7 is not among the shards' labels"),
        ("finetune", {"num_folds": 9, "fold": 8}, "patients"),
        ("finetune", {"encoder": {"in_channels": 3}}, "encoder.in_channels is 3, the labelled shards have 1"),
        ("probe", {}, "experiment tiny: no probe; add probe: with shards and size"),
    ],
)
def test_a_dry_run_refuses_what_would_fail_after_the_pretraining(
    verb: str, changes: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = experiment(tmp_path)
    if changes:
        tree = yaml.safe_load(path.read_text())
        tree["downstream"] = merge(tiny_segmentation(tree["data"]["shards"]), changes)
        path.write_text(yaml.safe_dump(tree))
    assert main([verb, str(path), "--dry-run"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_split_that_no_sample_is_in_is_refused(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = experiment(tmp_path, encoder=UNET, downstream=tiny_segmentation(write_slices(tmp_path / "labelled")))
    assert main([verb, str(path), "--dry-run", "data.split=trian"]) == 2
    assert "data.split 'trian': 0 samples in shards" in capsys.readouterr().err
    assert main([verb, str(path), "data.split=trian"]) == 2
    assert "set data.split to one of train, val, or to null" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_of_a_table_tells_each_row_and_refuses_a_row_that_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(tmp_path, encoder=UNET, downstream=tiny_segmentation(write_slices(tmp_path / "labelled")))
    rows = [{"name": "scratch", "pretrain_seeds": []}, {"name": "simsiam", "pretrain_seeds": [0, 1]}]
    rows.append({"name": "PCRLv2", "missing": "it is not built", "paper": {"mean": 0.8}})
    tree = {"name": "t", "title": "t", "experiment": "tiny.yaml", "rows": rows, "reference": "scratch"}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(tree))
    assert main(["table", str(tmp_path / "table.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    forecast = next(number for number, line in enumerate(said) if "to train" in line)
    printed = [[cell.strip() for cell in line.strip("│").split("│")] for line in said[:forecast]]
    assert [cells[:4] for cells in printed if cells[0] in ("scratch", "simsiam", "PCRLv2")] == [
        ["scratch", "1", "0", "4"],
        ["simsiam", "2", "0", "6 + 4"],
        ["PCRLv2", "missing", "-", "-"],
    ]
    assert "missing (it is not built): PCRLv2" in said
    rows.append({"name": "wide", "overrides": {"downstream.task.labels": [7]}})
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(tree))
    assert main(["table", str(tmp_path / "table.yaml"), "--dry-run"]) == 2
    assert "value 7 is not among the shards' labels" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_of_a_sweep_checks_each_field_at_its_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(tmp_path, encoder=UNET)
    tree = {"name": "s", "title": "s", "experiment": "tiny.yaml", "trials": 2, "start_from_experiment": False}
    tree |= {"objective": {"metric": "collapse", "mode": "min", "of": "pretrain"}}
    tree |= {"space": {"method.crops.size": {"choice": [[32, 32], [48, 48]]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 0
    assert "a trial: pretrain, 6 steps, about 0.0 GiB of GPU memory" in capsys.readouterr().out
    tree["space"] = {"method.crops.size": {"choice": [[32, 32], [40, 40]]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 2
    assert "40" in capsys.readouterr().err


def test_a_dry_run_of_a_probe_tells_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment(tmp_path, probe={"shards": write_pictures(tmp_path / "pictures"), "size": 32})
    assert main(["probe", str(path), "--dry-run"]) == 0
    assert "probe: trained on 18 samples, judged by 6, 2 classes" in capsys.readouterr().out
