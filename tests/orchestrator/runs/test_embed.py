"""Features of a cohort: a row for each sample, from a run or a folder, the same each time."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from data.shards.index import ShardSet
from methods.downstream.networks import segmentation_network
from methods.encoders import ENCODERS, Encoder
from orchestrator.cli import main
from orchestrator.runs.embed import EmbeddingRequest, embed
from orchestrator.runs.network import NETWORK, NETWORK_CARD
from orchestrator.training.checkpoint import export_encoder
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World
from tests.shardsets import write_slices, write_volumes

UNET = {"name": "unet", "features": (4, 4, 8, 8, 16, 4)}


def write_run(run: Path, dims: int, **fields: Any) -> Encoder:
    torch.manual_seed(0)
    kind = ENCODERS["unet"]
    encoder = kind(kind.Config.model_validate({**UNET, "spatial_dims": dims, **fields}))
    (run / "encoder").mkdir(parents=True)
    export_encoder(run / "encoder", encoder, {"encoder": encoder.config.model_dump(mode="json")})
    return encoder.eval()


def features_of(file: Path) -> np.ndarray:
    return np.array(pq.read_table(file)["features"].to_pylist(), np.float32)


def test_the_command_writes_a_row_for_each_sample_of_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, file = write_slices(tmp_path / "shards", num_patients=4, size=40), tmp_path / "new" / "val.parquet"
    encoder = write_run(tmp_path / "run", 2)
    assert main(["embed", str(tmp_path / "run"), shards, "--out", str(file), "--split", "val"]) == 0
    assert capsys.readouterr().out == f"6 rows: {file}\n"
    opened, table = ShardSet.open(shards), pq.read_table(file)
    rows = opened.select("val").row_ids
    held = opened.rows.take(rows)
    for name in ("sample_id", "patient", "volume", "split"):
        assert table[name].to_pylist() == held[name].to_pylist()
    expected = []
    for batch in batches_of(opened, rows, World(device=torch.device("cpu"))):
        for index in range(len(batch)):
            image = nn.functional.pad(batch.sample(index)[None], (0, 8, 0, 8))
            expected.append(encoder.features(image)[-1].mean((2, 3))[0])
    np.testing.assert_allclose(features_of(file), torch.stack(expected).detach().numpy(), rtol=1e-5, atol=1e-6)
    told = json.loads(table.schema.metadata[b"raydiology"])
    assert (told["shards"], told["level"], told["size"], told["encoder"]) == (opened.digest, 4, None, "unet")
    first = file.read_bytes()
    assert main(["embed", str(tmp_path / "run"), shards, "--out", str(file), "--split", "val"]) == 0
    assert file.read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == ["val.parquet"]


@pytest.mark.slow
def test_a_finer_map_of_resized_volumes_comes_from_an_encoder_s_own_folder_as_from_its_run(tmp_path: Path) -> None:
    shards = write_volumes(tmp_path / "shards", num_patients=4, size=20)
    encoder = write_run(tmp_path / "run", 3)
    for name, place in (("whole", tmp_path / "run"), ("folder", tmp_path / "run" / "encoder")):
        line = ["embed", str(place), shards, "--out", str(tmp_path / name), "--size", "16,32,32", "--level", "1"]
        assert main(line) == 0
    found = features_of(tmp_path / "whole")
    assert found.shape == (4, encoder.channels[1])
    assert np.array_equal(features_of(tmp_path / "folder"), found)
    assert embed(EmbeddingRequest(tmp_path / "run", shards, None, (16, 32, 32), -4), tmp_path / "same") == 4
    assert np.array_equal(features_of(tmp_path / "same"), found)


def test_the_encoder_in_a_fine_tuned_network_is_embedded_with(tmp_path: Path) -> None:
    shards, kind = write_slices(tmp_path / "shards", num_patients=4, size=32), ENCODERS["resnet"]
    torch.manual_seed(0)
    encoder = kind(kind.Config.model_validate({"spatial_dims": 2, "depth": 18, "init_features": 4}))
    (tmp_path / "run" / "network").mkdir(parents=True)
    save_file(segmentation_network(encoder, 3).state_dict(), tmp_path / "run" / "network" / NETWORK)
    card = {"encoder": encoder.config.model_dump(mode="json"), "task": {"name": "segmentation"}}
    (tmp_path / "run" / "network" / NETWORK_CARD).write_text(json.dumps(card))
    export_encoder(tmp_path, encoder, card)
    for name, place in (("network", tmp_path / "run"), ("encoder", tmp_path)):
        embed(EmbeddingRequest(place, shards, size=32), tmp_path / name)
    assert np.array_equal(features_of(tmp_path / "network"), features_of(tmp_path / "encoder"))


@pytest.mark.parametrize(
    ("dims", "fields", "how", "said"),
    [
        (2, {"in_channels": 3}, [], r"takes images of 3 input channels, shards \S+ have 1; embed shards like those"),
        (3, {}, [], r"takes images of 3 spatial dimensions, shards \S+ have 2; embed shards like those"),
        (2, {}, ["--level", "5"], r"--level 5: the encoder has 5 maps; give 0 to 4, or -1 for the last"),
        (2, {}, ["--size", "40"], r"--size \(40, 40\): 40 is not a multiple of the encoder's stride 16; use 32"),
        (2, {}, ["--size", "4x4"], r"--size 4x4: expected a whole number, or one per axis, such as 64,96,96"),
        (2, {}, ["--split", "tset"], r"no samples in split 'tset'; see `\S+ shards show`"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    dims: int, fields: dict[str, Any], how: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_slices(tmp_path / "shards", num_patients=4, size=32)
    write_run(tmp_path / "run", dims, **fields)
    assert main(["embed", str(tmp_path / "run"), shards, "--out", str(tmp_path / "f"), *how]) == 2
    assert re.search(said, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "f").exists()


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no encoder\.safetensors with encoder\.json there; give the folder of a"):
        embed(EmbeddingRequest(tmp_path, "shards"), tmp_path / "f")
