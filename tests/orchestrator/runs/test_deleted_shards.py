"""A shard that was deleted refuses every command before a run is opened, so that no run is recorded as failed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from tests.experiments import UNET, tiny_experiment, tiny_segmentation
from tests.shardsets import write_slices


def _files(folder: Path, shards: str, labelled: str) -> dict[str, Path]:
    """Write an experiment, a table and a sweep of it; return the file of each command."""
    tree = tiny_experiment("deleted", shards, folder / "home", 4, UNET, downstream=tiny_segmentation(labelled))
    table = {
        "name": "rows", "experiment": "experiment.yaml", "metric": "dice_mean", "title": "Rows",
        "reference": "simsiam", "rows": [{"name": "simsiam", "pretrain_seeds": [0]}],
    }  # fmt: skip
    sweep = {
        "name": "lr", "title": "Rates", "experiment": "experiment.yaml", "trials": 1,
        "space": {"optimiser.lr": {"choice": [0.05]}},
        "objective": {"metric": "dice_mean", "mode": "max", "of": "finetune"},
    }  # fmt: skip
    trees: dict[str, Any] = {"experiment": tree, "table": table, "sweep": sweep}
    for name, content in trees.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    experiment = folder / "experiment.yaml"
    return {
        "pretrain": experiment, "finetune": experiment,
        "table": folder / "table.yaml", "sweep": folder / "sweep.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["pretrain", "finetune", "table", "sweep"])
def test_a_deleted_shard_is_named_before_a_run_is_opened(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_slices(tmp_path / "slices")
    labelled = shards if command == "pretrain" else write_slices(tmp_path / "labelled")
    file = sorted(Path(labelled).glob("train-*.parquet"))[0]
    file.unlink()
    assert cli.main([command, str(_files(tmp_path, shards, labelled)[command])]) == 2
    said = capsys.readouterr().err
    assert f"shards {labelled}: 1 of " in said
    assert f"files are missing or cut off, the first is {file.name}; expected " in said
    assert not list((tmp_path / "home").rglob("outbox.jsonl"))
    assert not (tmp_path / "home" / "mlflow.db").exists()
