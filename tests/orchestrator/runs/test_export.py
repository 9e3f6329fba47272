import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.encoders import ENCODERS
from orchestrator.cli import main
from orchestrator.runs.export import export
from orchestrator.training.checkpoint import CheckpointError, export_encoder, load_encoder

CONFIGS: list[dict[str, Any]] = [
    {"name": "swin_unetr", "spatial_dims": 2, "feature_size": 12},
    {"name": "swin_unetr", "spatial_dims": 3, "feature_size": 12, "window_size": 3},
    {"name": "unet", "spatial_dims": 3, "features": [4, 4, 8, 8, 16, 4]},
    {"name": "swin_unetr", "spatial_dims": 3, "feature_size": 12, "window_size": 3, "v2": True},
    {"name": "unet", "spatial_dims": 2, "features": [4, 4, 8, 8, 16, 4], "norm": "batch"},
    {"name": "densenet", "spatial_dims": 2, "growth_rate": 4, "block_config": [1, 2, 1, 1], "init_features": 8},
    {"name": "resnet", "spatial_dims": 2, "depth": 50, "init_features": 4, "grey_to_rgb": True},
    {"name": "resnet", "spatial_dims": 3, "depth": 18, "init_features": 4, "in_channels": 2},
    {"name": "resnet3d", "network": "resnet3d_50", "init_features": 4, "depth_strides": "vanilla"},
    {"name": "vnet", "spatial_dims": 2, "in_channels": 2},
    {"name": "vit", "spatial_dims": 3, "image_size": 32, "hidden_size": 12, "mlp_dim": 8, "num_heads": 2},
]
KINDS = {
    "swin_unetr": "SwinUNETR",
    "unet": "BasicUNet",
    "densenet": "DenseNet",
    "resnet": "ResNet",
    "resnet3d": "ResNet",
    "vit": "ViT",
    "vnet": "VNet",
}


def write_run(folder: Path, fields: dict[str, Any]) -> torch.nn.Module:
    encoder = ENCODERS[fields["name"]](ENCODERS[fields["name"]].Config(**fields))
    (folder / "encoder").mkdir(parents=True)
    export_encoder(folder / "encoder", encoder, {"encoder": encoder.config.model_dump(mode="json")})
    return encoder


@pytest.mark.slow
def test_each_exported_encoder_loads_strictly_into_monai_without_this_project(tmp_path: Path) -> None:
    scripts, expected = [], []
    for place, fields in enumerate(CONFIGS):
        encoder = write_run(tmp_path / f"run-{place}", fields)
        scripts.append(export(tmp_path / f"run-{place}", tmp_path / f"out-{place}")[-1])
        assert not {"data", "methods", "orchestrator"} & set(scripts[-1].read_text().replace(".", " ").split())
        expected.append(f"loaded {len(encoder.state_dict())} tensors strictly into {KINDS[fields['name']]}")
    # -I: no current folder and no PYTHONPATH, so that nothing of the project is imported by chance. MONAI's import
    # takes longer than all the rest: one script is typed as a person would, the others share a process.
    shared = "import runpy, sys; [runpy.run_path(script, run_name='__main__') for script in sys.argv[1:]]"
    said = []
    for command in ([str(scripts[0])], ["-c", shared, *map(str, scripts[1:])]):
        done = subprocess.run(
            [sys.executable, "-I", *command], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        said += done.stdout.splitlines()
    assert said == expected


def test_an_encoder_that_monai_does_not_have_is_refused_in_words(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"name": "pooled_unet", "spatial_dims": 2, "features": [2, 2, 2, 2, 2]})
    with pytest.raises(ValueError, match=r"^encoder pooled_unet: MONAI has no class for it; load encoder/"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_3d_network_whose_strides_monai_does_not_have_is_refused_in_words(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"name": "resnet3d", "init_features": 2})
    with pytest.raises(
        ValueError, match=r"^encoder resnet3d \(but for ResNet3D-18, .* vanilla strides\): MONAI has no"
    ):
        export(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize(("encoder", "task"), [("densenet", "segmentation"), ("unet", "classification")])
def test_a_network_that_monai_does_not_have_is_refused_in_words(tmp_path: Path, encoder: str, task: str) -> None:
    fields = {"name": encoder, "spatial_dims": 2, "in_channels": 1}
    network = tmp_path / "run" / "network"
    network.mkdir(parents=True)
    (network / "network.safetensors").write_bytes(b"")
    (network / "network.json").write_text(json.dumps({"encoder": fields, "task": {"name": task}}))
    with pytest.raises(ValueError, match=rf"network for {task} on encoder {encoder}: MONAI has no class"):
        export(tmp_path / "run", tmp_path / "out")


def test_a_folder_without_weights_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither encoder/encoder\.safetensors nor network/network\.safetensors"):
        export(tmp_path, tmp_path / "out")


def test_a_folder_that_holds_the_export_of_another_run_is_refused(tmp_path: Path) -> None:
    for name in ("run-a", "run-b"):
        write_run(tmp_path / name, CONFIGS[2])
    files = export(tmp_path / "run-a", tmp_path / "out")
    assert export(tmp_path / "run-a", tmp_path / "out") == files
    weights = files[0].read_bytes()
    with pytest.raises(ValueError, match=r"\(run: found run-a, asked for run-b\).*give another --out"):
        export(tmp_path / "run-b", tmp_path / "out")
    assert files[0].read_bytes() == weights


def test_an_encoder_of_another_width_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, CONFIGS[2])
    wider = {**CONFIGS[2], "features": [8, 4, 8, 8, 16, 4]}
    other = ENCODERS["unet"](ENCODERS["unet"].Config(**wider))
    with pytest.raises(CheckpointError, match=r"keys do not match \(conv_0\.conv_0\.adn\.N\.bias"):
        load_encoder(tmp_path / "encoder", other)


def test_loading_gives_the_encoder_the_exported_weights(tmp_path: Path) -> None:
    encoder = write_run(tmp_path, CONFIGS[2])
    other = ENCODERS["unet"](ENCODERS["unet"].Config(**CONFIGS[2]))
    load_encoder(tmp_path / "encoder", other)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_export_is_typed_with_a_run_and_a_folder_and_names_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", CONFIGS[2])
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(name).parent for name in written] == [tmp_path / "out"] * len(written)
    assert all(Path(name).stat().st_size > 0 for name in written)
    assert {Path(name).name for name in written} == {"encoder.safetensors", "encoder.json", "README.md", "load.py"}
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "tensors"), "--to", "safetensors"]) == 0
    assert "ENCODERS" in (tmp_path / "tensors" / "load.py").read_text()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "nnunet"), "--to", "nnunet"]) == 2
    assert "encoder unet: nnU-Net has no such network; pretrain" in capsys.readouterr().err.replace("\n", " ")
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
