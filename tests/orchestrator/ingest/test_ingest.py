"""Ingest on real Ray: the same shards however often it is started, stopped or killed, and no names anywhere."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data.labels import LABEL_MAP
from data.phantoms.abdomen import LABEL_NAMES, write_cohort
from data.shards.check import verify
from data.shards.index import ShardSet
from data.shards.reader import ShardReader
from orchestrator.cli import main
from orchestrator.ingest.run import IngestConfig, IngestReport, ingest
from orchestrator.terminal import progress
from orchestrator.terminal.display import Display
from tests import planted
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
COARSE_MM = (20.0, 10.0, 10.0)
COARSE = {"spacing_mm": (16.0, 8.0, 8.0), "pad_to": (1, 16, 16)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patients: three bundles."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), 16, num_unlabelled=8, seed=2, spacing_mm=COARSE_MM)


def config(source: Path, out: Path, **fields) -> IngestConfig:
    fields = {"layout": "nnunet", "recipe": "ct_abdomen_slices", "changes": COARSE} | fields
    return IngestConfig(source=str(source), out=str(out), **fields)


def run(source: Path, out: Path, **fields) -> IngestReport:
    return ingest(config(source, out, **fields))


def digest(report: IngestReport) -> str:
    assert report.shards is not None
    return report.shards.digest


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, cohort, tmp_path_factory) -> tuple[Path, IngestReport]:
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    return out, run(cohort, out, readers=1)


def test_a_cohort_becomes_sound_shards_with_patients_split(undisturbed):
    out, report = undisturbed
    shards = report.shards
    assert list(verify(str(out))) == []
    assert shards.label_names == LABEL_NAMES
    assert shards.recipe["name"] == "ct_abdomen_slices"
    per_split = {split: shards.rows.take(shards.select(split).row_ids) for split in ("train", "val", "test")}
    assert {split: len(rows["patient"].unique()) for split, rows in per_split.items()} == {
        "train": 21,
        "val": 3,
        "test": 0,
    }
    assert report.bundles_written == 3
    assert shards.counts == {"studies_found": 24, "studies_quarantined": 0}
    for split in ("train", "val"):
        assert set(shards.select(split).group_sizes[:-1]) == {16}


def test_shards_do_not_depend_on_the_number_of_readers(undisturbed, cohort, tmp_path):
    assert digest(run(cohort, tmp_path / "shards", readers=3)) == digest(undisturbed[1])


def test_relative_places_are_the_command_s_on_a_cluster_that_was_started_elsewhere(undisturbed, cohort, monkeypatch):
    monkeypatch.chdir(cohort.parent)
    report = run(Path(cohort.name), Path("relative"))
    assert digest(report) == digest(undisturbed[1])
    assert list(verify(str(cohort.parent / "relative"))) == []


def test_done_again_nothing_is_written(undisturbed, cohort):
    out, report = undisturbed
    before = states(out)
    again = run(cohort, out)
    assert (again.bundles_written, digest(again)) == (0, digest(report))
    assert states(out) == before
    assert "nothing was changed" in again.summary()


def test_the_command_ends_by_naming_the_next_one(undisturbed, cohort, capsys):
    out, _ = undisturbed
    asked = [
        "ingest",
        "--source",
        str(cohort),
        "--layout",
        "nnunet",
        "--recipe",
        "ct_abdomen_slices",
        "--out",
        str(out),
    ]
    asked += [argument for name, value in COARSE.items() for argument in ("--set", f"{name}={list(value)}")]
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "each study counts as a patient of its own" in lines[1]
    assert lines[-1] == f"next: raydiology init {out} --labelled {out}"


def test_only_what_is_missing_is_written_again(undisturbed, cohort, tmp_path):
    out = tmp_path / "shards"
    shutil.copytree(undisturbed[0], out)
    lost = next(out.glob("train-00001-*"))
    kept = states(out)[next(out.glob("train-00000-*")).name]
    lost.unlink()
    report = run(cohort, out)
    assert (report.bundles_written, digest(report)) == (1, digest(undisturbed[1]))
    assert states(out)[next(out.glob("train-00000-*")).name] == kept
    assert list(verify(str(out))) == []


def test_an_ingest_that_is_ended_or_killed_leaves_no_half_shard_and_continues_to_the_same_digest(
    ray_cluster, tmp_path
):
    # Seven bundles: both ends come well before the last one, on a busy machine too.
    cohort = write_cohort(tmp_path / "cohort", 1, num_unlabelled=55, seed=2, spacing_mm=COARSE_MM)
    out = tmp_path / "shards"
    program = (
        "import sys\nfrom orchestrator import stop\nfrom tests.orchestrator.ingest.test_ingest import run, Path\n"
        f"try:\n    with stop.heard():\n        run(Path({str(cohort)!r}), Path({str(out)!r}), readers=1)\n"
        "except stop.Interruption:\n    sys.exit(stop.exit_code())"
    )
    for bundle, number, code in ((0, signal.SIGTERM, 143), (1, signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as victim:
            wait_for((out / ".ingest" / f"bundle-{bundle:05d}.json").exists, victim)
            victim.send_signal(number)
        assert victim.returncode == code
    assert not (out / "index.parquet").exists()
    for shard in out.rglob("*.parquet"):
        assert pq.ParquetFile(shard).metadata.num_rows > 0
    time.sleep(2)  # a worker outlives its driver by a moment
    report = run(cohort, out)
    assert 0 < report.bundles_written < 7
    assert digest(report) == digest(run(cohort, tmp_path / "undisturbed"))
    assert list(verify(str(out))) == []
    assert list(out.rglob(".writing-*")) == []


def test_another_request_for_the_same_folder_is_refused_unless_it_may_replace(undisturbed, cohort, tmp_path):
    out = tmp_path / "shards"
    shutil.copytree(undisturbed[0], out)
    with pytest.raises(ValueError, match=r"made differently \(seed: found 0, asked for 5\).*--overwrite"):
        run(cohort, out, seed=5)
    report = run(cohort, out, seed=5, overwrite=True)
    assert digest(report) != digest(undisturbed[1])
    assert list(verify(str(out))) == []


@pytest.fixture(scope="module")
def flawed(tmp_path_factory) -> Path:
    """Ten patients, of whom one is a copy under another name, one is empty and one holds NaN."""
    folder = write_cohort(tmp_path_factory.mktemp("flawed"), 7, seed=3, spacing_mm=COARSE_MM)
    images = folder / "imagesTr"
    shutil.copy(images / "phantom_002_0000.nii.gz", images / "phantom_007_0000.nii.gz")
    (images / "phantom_008_0000.nii.gz").write_bytes(b"")
    nan = np.full((9, 9, 9), np.nan, np.float32)
    nib.save(nib.Nifti1Image(nan, np.eye(4)), images / "phantom_009_0000.nii.gz")
    return folder


def test_bad_studies_and_copies_go_to_the_quarantine_list_and_the_rest_on(ray_cluster, flawed, tmp_path):
    out = tmp_path / "shards"
    report = run(flawed, out, max_bad=0.3)
    assert report.shards is not None
    assert len(report.shards.rows["volume"].unique()) == 7
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"study", "found", "expected", "remedy"}] * 3
    copy, empty, nan = lines
    original = copy["found"].removeprefix("the same voxels as study ")
    assert original in report.shards.rows["volume"].to_pylist()
    assert "0 bytes" in empty["found"] or "empty" in empty["found"]
    assert "NaN" in nan["found"]
    assert "phantom_00" not in (out / "quarantine.jsonl").read_text()
    assert list(verify(str(out))) == []
    assert f"  1 x the same voxels as another study: {copy['remedy']}" in report.summary().splitlines()
    assert run(flawed, out, max_bad=0.3).bundles_written == 0
    kept = run(flawed, out, max_bad=0.3, keep_names=True)
    assert kept.bundles_written == 0
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [f"imagesTr/phantom_{n:03d}" for n in (7, 8, 9)]


def test_too_many_bad_studies_fail_after_the_list_is_written(ray_cluster, flawed, tmp_path):
    report = run(flawed, tmp_path / "shards", max_bad=0.2)
    assert report.too_many_bad
    assert report.shards is None
    assert "30% of the studies are bad, expected at most 20%" in report.summary()
    assert len((tmp_path / "shards" / "quarantine.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "shards" / "index.parquet").exists()


def planted_config(folder: Path, out: Path, **fields) -> IngestConfig:
    """Ask for volumes and a DICOM series of one patient, from folders that bear the patient's name."""
    volumes, dicom = planted.write_volumes(folder, COARSE_MM), planted.write_dicom(folder)
    return config(volumes, out, also=({"source": str(dicom), "layout": "dicom"},), **fields)


def test_planted_names_ids_and_dates_are_in_no_shard_list_or_log(ray_cluster, tmp_path, capfd, caplog):
    terminal = io.StringIO()
    with progress.showing_on(Display(Console(file=terminal))):
        report = ingest(planted_config(tmp_path, tmp_path / "shards", max_bad=0.9))
    assert report.shards is not None
    assert len(report.shards.rows["volume"].unique()) == 3
    assert {re.sub(r"\d+ bytes", "N bytes", reject.found) for reject in report.rejects} == {
        "a truncated gzip stream of N bytes",
        "no pixel data; no ImagePositionPatient; no ImageOrientationPatient; no PixelSpacing",
    }
    assert {len(name) for name in report.shards.rows["dataset"].unique().to_pylist()} == {len("d-") + 16}
    printed = capfd.readouterr()
    texts = planted.texts_below(tmp_path / "shards")
    texts["printed"] = "".join((terminal.getvalue(), report.summary(), *printed, caplog.text)).encode()
    logs = planted.texts_below(ray_cluster / "logs")
    assert len(logs) > 5
    assert planted.leaks(texts | logs) == []


@pytest.mark.parametrize(
    ("layout", "found"),
    [("nnunet", r"a truncated gzip stream of \d+ bytes"), ("dicom", "no pixel data; no ImagePositionPatient")],
)
def test_strict_stops_at_a_bad_study_without_its_name(ray_cluster, tmp_path, capfd, caplog, layout, found):
    source = planted.write_dicom(tmp_path) if layout == "dicom" else planted.write_volumes(tmp_path, COARSE_MM)
    message = rf"study v-[0-9a-f]{{16}}: {found}.*leave --strict out to quarantine it"
    with pytest.raises(ValueError, match=message) as caught:
        run(source, tmp_path / "shards", layout=layout, strict=True)
    texts = {
        "raised": "".join(traceback.format_exception(caught.value)).encode(),
        "printed": "".join((*capfd.readouterr(), caplog.text)).encode(),
    }
    assert planted.leaks(texts | planted.texts_below(tmp_path / "shards")) == []


def test_real_volumes_are_ingested_with_their_labels(ray_cluster, scans, tmp_path):
    report = run(scans / "msd_hippocampus", tmp_path / "shards", recipe="mri_volume", changes={})
    shards = report.shards
    assert isinstance(shards, ShardSet)
    assert report.rejects == ()
    assert shards.num_samples == 72
    assert shards.select(having=LABEL_MAP).num_samples == 72
    assert set(shards.select().group_sizes) == {1}
    assert [shards.select(split).num_samples for split in ("train", "val", "test")] == [58, 14, 0]
    table = ShardReader(shards, LABEL_MAP).read(shards.select("train").row_ids[:5])
    for value in table["label"]:
        assert set(np.frombuffer(value.as_buffer(), np.uint8)) == {0, 1, 2}
