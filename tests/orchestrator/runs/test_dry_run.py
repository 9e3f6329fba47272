"""A dry run says what would run, what that would need, and when it would hardly learn."""

from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.commands import console
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices

UNET = {"name": "unet", "spatial_dims": 2, "features": [4, 4, 8, 8, 8, 4]}


def printed(folder: Path, shards: str, capsys: pytest.CaptureFixture, **changes: object) -> str:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment("tiny", shards, folder / "runs", 60, **changes)))
    assert main(["pretrain", str(path), "--dry-run"]) == 0
    assert not (folder / "runs").exists()
    return capsys.readouterr().out


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write_slices(tmp_path / "slices", num_patients=8, size=40)


@pytest.mark.slow
def test_samples_steps_and_sizes_are_said_and_nothing_is_begun(tmp_path, shards, capsys, monkeypatch):
    monkeypatch.setattr(console.out, "width", 200)
    lines = printed(tmp_path, shards, capsys).splitlines()
    row = next(line for line in lines if "simsiam" in line and "GiB" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][:2] == ["pretrain", "simsiam"]
    assert " 60 " in row
    assert lines[-1].startswith("shards ")


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "doubted"), [("instance", True), ("batch", False)])
def test_a_method_that_averages_maps_is_doubted_after_instance_norm(
    tmp_path, shards, capsys, monkeypatch, norm, doubted
):
    monkeypatch.setattr(console.out, "width", 400)
    text = printed(tmp_path, shards, capsys, encoder={**UNET, "norm": norm})
    assert ("stage pretrain: simsiam averages the last map" in text) == doubted
    assert ("set encoder.norm=batch" in text) == doubted


@pytest.mark.parametrize(("num_prototypes", "doubted"), [(3000, True), (8, False)])
def test_a_batch_that_cannot_fill_the_prototypes_is_doubted_with_numbers(
    tmp_path, shards, capsys, monkeypatch, num_prototypes, doubted
):
    monkeypatch.setattr(console.out, "width", 800)
    crops = {"size": 32}
    method = {"name": "swav", "large_crops": crops, "hidden_dim": 8, "num_prototypes": num_prototypes}
    text = printed(tmp_path, shards, capsys, method=method)
    assert (
        "stage pretrain: method.num_prototypes 3000: 16 embeddings are coded together (8 samples" in text
    ) == doubted
