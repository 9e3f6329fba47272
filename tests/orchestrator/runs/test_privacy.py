"""No name, id or date of a patient is in anything that ingest, pretraining and fine-tuning write, print or draw."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from data.labels import LABEL_MAP
from data.phantoms.abdomen import LABEL_NAMES
from data.privacy import load_key
from data.shards.index import ShardSet
from data.shards.reader import ShardReader
from data.views.batch import Batch
from data.views.collate import collate
from methods.base import Views
from orchestrator.config.files import resolve
from orchestrator.ingest.run import IngestConfig, ingest
from orchestrator.judging.gallery import MaskGallery
from orchestrator.judging.pictures import masks_figure, views_figure
from orchestrator.runs.finetune import finetune
from orchestrator.runs.pretrain import pretrain
from tests import planted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RECIPE = {"spacing_mm": (16.0, 8.0, 8.0), "pad_to": (1, 32, 32)}
PSEUDONYM = re.compile(r"[dpv]-[0-9a-f]{16}")


@pytest.fixture(scope="module")
def shards(ray_cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Shards of one patient's volumes and DICOM series, from folders that bear the patient's name."""
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("shards")
    dicom = {"source": str(planted.write_dicom(scans)), "layout": "dicom"}
    volumes = {"source": str(planted.write_volumes(scans, (20.0, 10.0, 10.0))), "layout": "nnunet", "also": [dicom]}
    request = {"recipe": "ct_abdomen_slices", "changes": RECIPE, "out": str(out), "val_fraction": 0.5, "max_bad": 0.9}
    report = ingest(IngestConfig.model_validate(volumes | request))
    assert report.shards is not None
    assert len(report.rejects) == 2
    return report.shards


def experiment_tree(shards: str, home: str) -> dict[str, Any]:
    return {
        "name": "privacy",
        "home": home,
        "data": {"shards": shards},
        "encoder": {"name": "unet", "spatial_dims": 2, "in_channels": 1, "features": [4, 4, 8, 8, 8, 4]},
        "method": {
            "name": "simsiam",
            "crops": {"size": [32, 32], "iou": [0.3, 1]},
            "projector_dim": 16,
            "predictor_dim": 8,
        },
        "optimiser": {"name": "sgd", "lr": 0.05},
        "budget": {"steps": 2, "batch_size": 8},
        "downstream": {
            "shards": shards,
            "task": {"name": "segmentation", "crop_size": [32, 32]},
            "optimiser": {"name": "adamw", "lr": 0.01},
            "budget": {"steps": 2, "batch_size": 4},
        },
        "tracking": {"uri": f"sqlite:///{home}/mlflow.db", "pictures": True},
    }


def test_a_patient_is_in_nothing_that_is_written_or_printed(
    ray_cluster: Path,
    shards: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow may keep artifacts below the folder that it is started in
    experiment = resolve(experiment_tree(shards.uri, str(tmp_path / "runs")))
    finetune(experiment, pretrain(experiment))
    written = planted.texts_below(tmp_path)
    for name, least in {
        r"/history\.jsonl": 2, r"/outbox\.jsonl": 2, r"/experiment\.json": 4, r"/result\.json": 2, r"mlflow\.db": 1,
        r"/step_\d+/state\.json": 2, r"/encoder\.json": 2, r"/network\.json": 2,
        r"pictures/views-pretrain\.png": 2, r"pictures/views-finetune\.png": 2, r"pictures/predictions\.png": 2,
    }.items():  # fmt: skip
        assert sum(bool(re.search(f"(^|.*){name}$", path)) for path in written) >= least, name
    logs = planted.texts_below(ray_cluster / "logs")
    assert len(logs) > 5
    written |= {f"log {name}": text for name, text in logs.items()}
    written |= {f"shards {name}": text for name, text in planted.texts_below(Path(shards.uri)).items()}
    written["printed"] = "".join((*capfd.readouterr(), caplog.text)).encode()
    key = load_key()
    assert planted.leaks(written, key, key.hex().encode(), repr(key)[2:-1].encode()) == []


def batch_of(shards: ShardSet) -> Batch:
    """Return four labelled slices as the feed would."""
    table = ShardReader(shards, LABEL_MAP).read(shards.select(having=LABEL_MAP).row_ids[8:12])
    zeros = pa.array(np.zeros(table.num_rows, np.int64))
    return collate(table.append_column("number", zeros).append_column("epoch", zeros).append_column("row", zeros))


def drawn_texts(figure: Figure) -> set[str]:
    found = {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}
    return found - {""}


def test_pictures_name_volumes_by_pseudonyms_only(shards: ShardSet) -> None:
    batch = batch_of(shards)
    assert batch.labels is not None
    gallery = MaskGallery()
    for index in range(len(batch)):
        label = batch.labels[index].long()
        gallery.offer(batch, index, label, label)
    slices = [item for _, item in gallery.best.values()]
    classes = ("background", *LABEL_NAMES.values())
    titles = drawn_texts(masks_figure(slices, classes)) - {"truth", "prediction", "label", *classes}
    assert titles == set(batch.volumes)
    assert all(PSEUDONYM.fullmatch(title) for title in titles)
    boxes = np.broadcast_to([[0, 0], [32, 32]], (len(batch), 2, 2))
    captions = drawn_texts(views_figure(batch, Views(images=(torch.zeros(4, 1, 32, 32),), boxes=(boxes,))))
    assert {re.sub(r"\d+", "N", caption) for caption in captions} == {"stored, N x N", "view N, N x N"}


def test_workers_write_with_the_person_s_umask_and_ray_s_token_is_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import os, pathlib, ray\n"
        "from orchestrator.cluster.connection import connected\n"
        "os.umask(0o027)\n"
        "with connected():\n"
        f"    ray.get(ray.remote(pathlib.Path.touch).remote(pathlib.Path({str(tmp_path / 'written')!r})))\n"
        f"pathlib.Path({str(tmp_path / 'mine')!r}).touch()\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=400, env=inherited | {"HOME": str(home)})
    modes = {
        name: oct(stat.S_IMODE((tmp_path / name).stat().st_mode))
        for name in ("written", "mine", "home/.ray/auth_token")
    }
    assert modes == {"written": "0o640", "mine": "0o640", "home/.ray/auth_token": "0o600"}


def test_shards_and_runs_of_the_shared_ray_have_the_modes_of_this_process(shards: ShardSet, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in Path(shards.uri).glob("*.parquet")}
    assert modes == {stat.S_IMODE(mine.stat().st_mode)}
