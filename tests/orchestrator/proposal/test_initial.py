"""A first experiment: what `raydiology init` writes fits the shards and the machine, and says why."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data.boxes import Boxes
from data.scan import Scan
from data.shards.index import IndexCard, ShardSet, write_index
from data.shards.writer import Sample, to_row, write_shard
from orchestrator import cli
from orchestrator.config.files import load
from orchestrator.proposal.files import write
from orchestrator.proposal.fingerprint import Fingerprint, Machine
from orchestrator.proposal.numbers import batch_of, crop_of, without_outliers
from orchestrator.runs import dry_run
from orchestrator.tables import table as tables
from tests.shardsets import write_pictures, write_slices

LAPTOP = Machine(cores=2, free_bytes=8 * 2**30)
SERVER = Machine(cores=32, free_bytes=200 * 2**30, gpus=2, gpu_bytes=40 * 2**30)


def shards_of(
    folder: Path,
    shape: Sequence[int],
    classes: Sequence[tuple[int, ...] | None] = (None,) * 8,
    splits: Sequence[str] = ("train",) * 6 + ("val",) * 2,
    names: dict[int, str] | None = None,
    box_names: dict[int, str] | None = None,
) -> str:
    """Write a sample of noise for each split, of (C, *S) voxels, each of a patient of its own.

    With ``box_names``, a sample has two boxes of the first of them, and every third one of the last.
    """
    rng = np.random.default_rng(0)
    files = []
    for split in ("train", "val"):
        rows = []
        for number, own in enumerate(splits):
            if own == split:
                voxels = rng.integers(0, 200, shape, dtype=np.uint8)
                scan = Scan(voxels=voxels, spacing_mm=(1.0,) * (len(shape) - 1), modality="MR", scale=1 / 255)
                if box_names:
                    corners = np.tile(np.array([[2] * (len(shape) - 1), [9] * (len(shape) - 1)]), (2, 1, 1))
                    scan = scan.with_(
                        boxes=Boxes(corners, np.array([min(box_names), sorted(box_names)[-(number % 3 == 0)]]))
                    )
                name = f"{number:03d}"
                rows.append(to_row(Sample(scan, f"s{name}", f"p{name}", f"v{name}", "t", split, classes[number])))
        if rows and (file := write_shard(str(folder), f"{split}-00000", [rows])):
            files.append(file)
    write_index(str(folder), files, IndexCard({"name": "test"}, class_names=names or {}, box_names=box_names or {}))
    return str(folder)


def shards_of_sizes(folder: Path, sizes: Sequence[tuple[int, ...]]) -> str:
    """Write an unlabelled sample of noise for each size, all to be trained on."""
    rng = np.random.default_rng(0)
    rows = []
    for number, shape in enumerate(sizes):
        voxels = rng.integers(0, 200, shape, dtype=np.uint8)
        scan = Scan(voxels=voxels, spacing_mm=(1.0,) * (len(shape) - 1), modality="MR", scale=1 / 255)
        rows.append(to_row(Sample(scan, f"s{number:03d}", f"p{number:03d}", f"v{number:03d}", "t", "train")))
    file = write_shard(str(folder), "train-00000", [rows])
    assert file is not None
    write_index(str(folder), [file], IndexCard({"name": "test"}))
    return str(folder)


def written(shards: str, folder: Path, machine: Machine = LAPTOP, labelled: str | None = None) -> dict[str, Any]:
    """Write the files into a folder; return the experiment as YAML reads it."""
    files = write(shards, labelled, str(folder), machine)
    return yaml.safe_load(files[0].read_text())


@pytest.mark.slow
def test_labelled_slices_get_a_segmentation_and_a_table_of_two_pretrainings_and_none(tmp_path: Path) -> None:
    shards = write_slices(tmp_path / "liver scans", size=48)
    files = write(shards, None, str(tmp_path / "out"), LAPTOP)
    assert [path.name for path in files] == ["liver-scans.yaml", "liver-scans_table.yaml"]
    tree = yaml.safe_load(files[0].read_text())
    assert (tree["encoder"]["spatial_dims"], tree["encoder"]["in_channels"]) == (2, 1)
    assert tree["method"]["crops"] == {"size": [32, 32], "iou": [0.3, 0.6]}
    assert tree["downstream"]["task"]["labels"] == [1, 2]
    assert "- 1 # liver" in files[0].read_text()
    table = tables.load(files[1])
    assert [row.name for row in table.config.rows] == ["scratch", "SimSiam, IoU [0.3, 0.6]", "SimMIM"]
    methods = [experiment.pretraining[0].method.name for _, experiment in table.experiments]
    assert methods == ["scratch", "simsiam", "simmim"] * 2
    tables.check(table)


def test_every_chosen_number_has_its_reason_beside_it(tmp_path: Path) -> None:
    write(write_slices(tmp_path / "s"), None, str(tmp_path), LAPTOP)
    lines = (tmp_path / "s.yaml").read_text().splitlines()
    for field in ("spatial_dims", "in_channels", "features", "steps", "batch_size", "crop_size", "cpus_per_worker"):
        assert all(" # " in line for line in lines if line.strip().startswith(f"{field}:")), field
    assert any("two thirds of the smallest sample" in line.lower() for line in lines)


@pytest.mark.slow
def test_classes_get_a_classification_that_names_them(tmp_path: Path) -> None:
    tree = written(write_pictures(tmp_path / "x"), tmp_path)
    assert tree["downstream"]["task"]["kind"] == "single"
    assert tree["downstream"]["task"]["score"] == "auc"
    assert tree["downstream"]["task"]["grades"] is True
    assert "0 grade 0 (9), 1 grade 1 (9)" in (tmp_path / "x.yaml").read_text()


def test_several_labels_per_sample_get_a_classification_of_several(tmp_path: Path) -> None:
    classes = [(0, 1), (1,), (), (0,), (0, 1), (), (0,), (1,)]
    shards = shards_of(tmp_path / "x", (3, 40, 40), classes, names={0: "effusion", 1: "mass"})
    tree = written(shards, tmp_path)
    assert (tree["encoder"]["in_channels"], tree["downstream"]["task"]["kind"]) == (3, "multi_label")
    assert "grades" not in tree["downstream"]["task"]


BOXES = {3: "nodule", 7: "mass"}


@pytest.mark.slow
def test_boxes_get_a_detection_that_names_and_counts_them(tmp_path: Path) -> None:
    tree = written(shards_of(tmp_path / "x", (1, 60, 40), box_names=BOXES), tmp_path)
    task = tree["downstream"]["task"]
    assert (task["name"], task["size"], task["score"], task["head_dims"]) == ("detection", 64, "ap50", [128])
    assert "slices" not in task
    text = (tmp_path / "x.yaml").read_text()
    assert "3 nodule (10), 7 mass (2)" in text
    assert "boxes (3 nodule, 7 mass) of 6 samples to train on, 2 held back" in " ".join(text.replace("#", "").split())
    dry_run.describe(load(tmp_path / "x.yaml"))
    assert tables.load(tmp_path / "x_table.yaml").config.metric == "score"


def test_boxes_come_after_label_maps_and_before_classes(tmp_path: Path) -> None:
    classes = [(0,), (1,)] * 4
    shards = shards_of(tmp_path / "x", (1, 40, 40), classes, names={0: "no", 1: "yes"}, box_names=BOXES)
    assert written(shards, tmp_path)["downstream"]["task"]["name"] == "detection"


@pytest.mark.slow
def test_boxes_of_volumes_get_slices_that_the_network_strides_and_a_server_gets_the_papers_widths(
    tmp_path: Path,
) -> None:
    shards = shards_of(tmp_path / "x", (1, 20, 60, 60), box_names=BOXES)
    tree = written(shards, tmp_path)
    assert (tree["downstream"]["task"]["slices"], tree["downstream"]["task"]["size"]) == (16, 64)
    dry_run.describe(load(tmp_path / "x.yaml"))
    on_server = written(shards, tmp_path / "server", SERVER)["downstream"]["task"]
    assert set(on_server) == {"name", "size", "slices", "score"}


def test_where_the_samples_held_back_have_one_class_accuracy_is_the_score(tmp_path: Path) -> None:
    classes = [(0,), (1,), (0,), (1,), (0,), (1,), (0,), (0,)]
    shards = shards_of(tmp_path / "x", (1, 40, 40), classes, names={0: "benign", 1: "malignant"})
    assert written(shards, tmp_path)["downstream"]["task"]["score"] == "accuracy"


@pytest.mark.slow
def test_shards_without_labels_get_an_experiment_for_pretraining_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(tmp_path / "mr", (4, 40, 36, 48))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", shards]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "written: mr.yaml",
        "next: raydiology pretrain mr.yaml --dry-run",
        "then: raydiology pretrain mr.yaml",
    ]
    experiment = load("mr.yaml")
    assert experiment.downstream is None
    assert experiment.encoder.in_channels == 4
    dry_run.describe(experiment)


@pytest.mark.parametrize(
    ("splits", "classes", "counted"),
    [
        (("train",) * 8, [(0,), *[None] * 7], "1 in split train, 0 in val"),
        (("train",) * 6 + ("val",) * 2, [*[None] * 6, (0,), (1,)], "0 in split train, 2 in val"),
    ],
)
def test_labels_that_cannot_judge_get_a_pretraining_alone_that_says_why(
    splits: Sequence[str], classes: Sequence[tuple[int, ...] | None], counted: str, tmp_path: Path
) -> None:
    shards = shards_of(tmp_path / "x", (1, 40, 40), classes, splits, names={0: "benign", 1: "malignant"})
    (file,) = write(shards, None, str(tmp_path), LAPTOP)
    assert load(file).downstream is None
    assert f"labelled patients: {counted}" in " ".join(file.read_text().replace("#", "").split())
    with pytest.raises(ValueError, match=f"labelled patients: {counted}"):
        write(shards, shards, str(tmp_path / "asked"), LAPTOP)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 9, 24, 20), (1, 28, 28), (2, 12, 12, 12), (1, 14, 60)])
def test_samples_too_small_for_crops_get_puzzles_of_patches(shape: tuple[int, ...], tmp_path: Path) -> None:
    tree = written(shards_of(tmp_path / "tiny", shape), tmp_path)
    assert tree["method"]["name"] == "patch_location"
    dry_run.describe(load(tmp_path / "tiny.yaml"))


def test_samples_that_are_too_small_for_anything_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"smallest sample has 10 x 10 voxels, expected at least 12 .* pad_to="):
        written(shards_of(tmp_path / "x", (1, 10, 10)), tmp_path)
    assert not (tmp_path / "x.yaml").exists()


def test_a_crop_leaves_room_for_pairs_in_the_smallest_sample() -> None:
    def crop(smallest: tuple[int, ...], most: int) -> tuple[int, ...] | None:
        extents = np.array([smallest, [length + 50 for length in smallest]])
        choice = crop_of(Fingerprint("x", "train", 1, (), extents), most)
        return choice.value if choice else None

    assert crop((96, 300), 96) == (64, 96)
    assert crop((35, 50, 35), 32) == (16, 32, 16)
    assert crop((300, 300, 300), 32) == (32, 32, 32)
    assert crop((30, 30), 96) is None


def test_a_few_small_samples_are_left_out_by_a_filter_that_says_how_many() -> None:
    extents = np.full((100, 2), 120)
    extents[:3] = 20
    kept = without_outliers(Fingerprint("x", "train", 1, (), extents), 96)
    assert (kept.min_size, kept.num_small, kept.smallest) == ((120, 120), 3, (120, 120))
    extents[:40] = 20
    assert without_outliers(Fingerprint("x", "train", 1, (), extents), 96).min_size is None
    extents[:] = 120
    extents[:3] = 100
    assert without_outliers(Fingerprint("x", "train", 1, (), extents), 96).min_size is None


@pytest.mark.slow
def test_the_filter_of_small_samples_stands_in_the_experiment(tmp_path: Path) -> None:
    sizes = [(1, 12, 12)] + [(1, 60, 60)] * 29
    shards = shards_of_sizes(tmp_path / "x", sizes)
    tree = written(shards, tmp_path)
    assert tree["data"]["keep"] == {"min_size": [60, 60]}
    assert tree["method"]["name"] == "simsiam"
    assert "leaves out 1 of 30," in (tmp_path / "x.yaml").read_text()


def test_without_a_validation_split_the_patients_are_cross_validated(tmp_path: Path) -> None:
    classes = [(0,), (1,)] * 4
    shards = shards_of(tmp_path / "x", (1, 40, 40), classes, splits=("train",) * 8, names={0: "no", 1: "yes"})
    assert written(shards, tmp_path)["downstream"]["num_folds"] == 5


def test_other_shards_can_hold_the_labels_even_with_other_channels(tmp_path: Path) -> None:
    pool = shards_of(tmp_path / "pool", (3, 40, 40))
    tree = written(pool, tmp_path, labelled=write_slices(tmp_path / "labelled"))
    assert tree["data"]["shards"] == pool
    assert tree["downstream"]["shards"] == str(tmp_path / "labelled")
    assert tree["downstream"]["encoder"] == {"in_channels": 1}


def test_what_cannot_be_judged_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    pool = shards_of(tmp_path / "pool", (1, 40, 40))
    with pytest.raises(ValueError, match="0 samples with label maps, boxes or classes"):
        written(pool, tmp_path, labelled=pool)
    volumes = shards_of(tmp_path / "volumes", (1, 40, 40, 40))
    with pytest.raises(ValueError, match=r"2D samples, those of .*volumes are 3D; ingest both with the same recipe"):
        written(volumes, tmp_path, labelled=write_slices(tmp_path / "labelled"))
    one = shards_of(tmp_path / "one", (1, 40, 40), [(0,)], splits=("train",), names={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="1 samples to pretrain on, expected at least 2"):
        written(one, tmp_path)
    assert list(tmp_path.glob("*.yaml")) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    shards = write_slices(tmp_path / "s")
    (tmp_path / "s_table.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"s_table\.yaml exists; .* give another by --out"):
        write(shards, None, str(tmp_path), LAPTOP)
    assert [path.name for path in write(shards, None, str(tmp_path / "own.yaml"), LAPTOP)] == [
        "own.yaml",
        "own_table.yaml",
    ]
    assert (tmp_path / "s_table.yaml").read_text() == "mine"


@pytest.mark.slow
def test_a_machine_with_gpus_gets_a_worker_each_and_a_batch_that_they_share(tmp_path: Path) -> None:
    shards = write_slices(tmp_path / "s", num_patients=60)
    tree = written(shards, tmp_path, SERVER)
    assert (tree["resources"]["gpu"], tree["resources"]["workers"]) == (True, 2)
    assert tree["encoder"]["features"] == [32, 32, 64, 128, 256, 32]
    experiment = load(tmp_path / "s.yaml")
    assert [experiment.idle_workers(training) for training in experiment.trainings] == [None, None]
    assert experiment.training.precision == "bf16"


def test_a_batch_is_what_memory_holds_and_no_more_than_half_of_the_samples() -> None:
    assert batch_of(16, num_samples=1000, fits=900, machine=LAPTOP).value == 16
    assert batch_of(16, num_samples=1000, fits=7, machine=LAPTOP).value == 4
    assert batch_of(16, num_samples=10, fits=900, machine=LAPTOP).value == 4
    assert batch_of(16, num_samples=3, fits=900, machine=LAPTOP).value == 2
    assert batch_of(128, num_samples=10_000, fits=50, machine=SERVER).value == 2 * 32


def test_too_little_memory_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    shards = write_slices(tmp_path / "s")
    with pytest.raises(
        ValueError, match=r"memory for \d samples of 48 x 48 voxels \(0\.0 GiB\), expected at least 2"
    ):
        written(shards, tmp_path, Machine(cores=2, free_bytes=2**20))


def test_the_fingerprint_is_of_what_is_pretrained_on(tmp_path: Path) -> None:
    shards = ShardSet.open(shards_of(tmp_path / "x", (2, 20, 30)))
    assert str(Fingerprint.of(shards)) == "6 samples of MR, 2D, 2 channels, all 20 x 30"
