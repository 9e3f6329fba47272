"""A pretraining, or a fine-tuning without one, begins with a file of another project; other files are refused."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.shards.index import ShardSet
from orchestrator.cli import main
from orchestrator.commands import console
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.network import build_network
from orchestrator.runs.run import Run
from orchestrator.training.checkpoint import ENCODER, CheckpointError
from tests.documents import ROOT, blocks_of
from tests.experiments import tiny_experiment, tiny_segmentation
from tests.released_weights import filled, medicalnet_shapes, monai_shapes, torchvision_shapes
from tests.shardsets import write_volumes

WIDTH = 2
DEEP = {"name": "resnet3d", "spatial_dims": 3, "init_features": WIDTH}
CROPS = {"size": [4, 32, 32], "iou": [0.3, 0.6]}
TORCHVISION = {"layout": "torchvision", "inflate": "i3d"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_volumes(tmp_path_factory.mktemp("volumes"))


def experiment_of(shards: str, folder: Path, file: Path, *overrides: str, **start: str) -> Experiment:
    tree = tiny_experiment(
        "tiny",
        shards,
        folder / "runs",
        2,
        encoder=DEEP,
        method={"crops": CROPS},
        start={"weights": str(file), **start},
        downstream={**tiny_segmentation(shards), "task": {"name": "segmentation", "crop_size": [4, 32, 32]}},
    )
    return resolve(tree, overrides)


def released(folder: Path, name: str = "resnet18.pth", content: Any = None) -> Path:
    torch.save(filled(torchvision_shapes(18, WIDTH)) if content is None else content, folder / name)
    return folder / name


@pytest.mark.slow
def test_a_pretraining_begins_with_inflated_kernels_of_photographs(shards: str, tmp_path: Path) -> None:
    file = released(tmp_path)
    asked = experiment_of(shards, tmp_path, file, **TORCHVISION)
    (course,) = pretrain.check(asked)
    initial, begun = (course.build(before).encoder.state_dict() for before in (None, {}))
    weights = torch.load(file, weights_only=True)
    for name, value in begun.items():
        expected = weights[name]
        if name == "conv1.weight":
            expected = expected.sum(1, keepdim=True)
        if expected.ndim == 4:
            depth = value.shape[2]
            expected = torch.stack([expected / depth] * depth, dim=2)
        torch.testing.assert_close(value, expected)
        assert name.endswith("num_batches_tracked") or not torch.equal(value, initial[name]), name
    assert str(course.start_said()).startswith(
        "stage pretrain begins with weights resnet18.pth (layout torchvision, inflate i3d): 120 of 120 tensors taken"
        ", 20 of them changed (conv1.weight summed over 3 input channels, repeated over 7 planes and divided by 7; "
    )


@pytest.mark.slow
@pytest.mark.parametrize("inflate", ["i3d", "vdt", "acs"])
def test_a_dry_run_says_what_would_be_taken_changed_and_left(
    inflate: str,
    shards: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console.out, "width", 2000)
    kind = "acs" if inflate == "acs" else "full"
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment_of(shards, tmp_path, released(tmp_path)).model_dump_json())
    changes = ["start.layout=torchvision", f"start.inflate={inflate}", f"encoder.convolutions={kind}"]
    assert main(["pretrain", str(path), "--dry-run", *changes]) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage pretrain begins")]
    number = 1 if inflate == "acs" else 20
    assert f"(layout torchvision, inflate {inflate}): 120 of 120 tensors taken, {number} of them changed (" in said
    assert said.rstrip().endswith("left in the file: fc.weight, fc.bias")
    assert not (tmp_path / "runs").exists()
    assert main(["pretrain", str(path), "--dry-run"]) == 2
    assert "resnet18.pth: 22 of 120 keys do not match" in capsys.readouterr().err


def test_checkpoints_with_numbers_beside_the_weights_are_read(shards: str, tmp_path: Path) -> None:
    state = filled(medicalnet_shapes(18, WIDTH))
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9).state_dict()
    content = {"ecpoch": 3, "batch_id": 0, "state_dict": state, "optimeizer": optimiser}
    asked = experiment_of(shards, tmp_path, released(tmp_path, "resnet_18.pth", content), layout="medicalnet")
    (course,) = pretrain.check(asked)
    assert course.transfer is not None
    assert (len(course.transfer.taken), len(course.transfer.initial)) == (102, 18)
    save_file(state, tmp_path / "resnet_18.safetensors")
    again = experiment_of(shards, tmp_path, tmp_path / "resnet_18.safetensors", layout="medicalnet")
    assert pretrain.check(again)[0].transfer == course.transfer


def test_a_wrong_layout_is_refused_with_the_layouts_that_fit(shards: str, tmp_path: Path) -> None:
    file = released(tmp_path, "resnet_18.pth", filled(medicalnet_shapes(18, WIDTH)))
    for start, said in (
        (
            {"layout": "kinetics"},
            r"on 3 input channels; found module\.conv1\.weight.*; it fits start\.layout=monai or ",
        ),
        ({}, r"keys do not match .* beside the weights; it fits start\.layout=monai or medicalnet or cspr$"),
    ):
        with pytest.raises(CheckpointError, match=rf"^weights resnet_18\.pth: .*{said}"):
            pretrain.check(experiment_of(shards, tmp_path, file, **start))


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-300])
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _legacy(path: Path) -> Path:
    torch.save(filled(torchvision_shapes(18, WIDTH)), path, _use_new_zipfile_serialization=False)
    return path


def _safetensors(path: Path) -> Path:
    save_file(filled(torchvision_shapes(18, WIDTH)), path)
    return path


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        (
            "cut.pth",
            lambda path: _cut(released(path.parent, path.name)),
            r"cannot be read \(.+\); expected a whole safe",
        ),
        ("cut.pt", lambda path: _cut(_legacy(path)), r"cannot be read \(.+\); expected a whole safetensors file, or"),
        (
            "cut.safetensors",
            lambda path: _cut(_safetensors(path)),
            r"cannot be read \(.+\); expected a whole safetensors",
        ),
        ("empty.pth", _empty, r"cannot be read \(.+\); expected a whole"),
        ("empty.safetensors", _empty, r"cannot be read \(.+\); expected a whole"),
        ("text.pth", lambda path: [path.write_text("weights"), path][1], r"cannot be read \(.+\); expected a whole"),
        (
            "numpy.pth",
            lambda path: released(path.parent, path.name, {"state_dict": {}, "best": np.float64(0.5)}),
            r"cannot be read \(Unsupported global: GLOBAL numpy.*scalar.*\); expected .* nothing but tensors",
        ),
        (
            "object.pth",
            lambda path: released(path.parent, path.name, {"opt": Namespace(lr=1), "state_dict": {}}),
            r"cannot be read \(Unsupported global: GLOBAL argparse\.Namespace was not an allowed global by",
        ),
        (
            "numbers.pth",
            lambda path: released(path.parent, path.name, {"epoch": 1, "arch": "resnet"}),
            r"no tensors by name, but entries epoch: int, arch: str; expected a state dict, or a checkpoint",
        ),
        (
            "tensor.pth",
            lambda path: released(path.parent, path.name, torch.zeros(2)),
            r"no tensors by name, but Tensor;",
        ),
        ("nothing.pth", lambda path: released(path.parent, path.name, {}), r"no tensors by name, but dict; expected"),
        (
            "two.pth",
            lambda path: released(path.parent, path.name, {n: {"a": torch.zeros(2)} for n in ("student", "teacher")}),
            r"2 entries hold tensors by name \(student, teacher\), and none is called state_dict; save the one that",
        ),
        (
            "diverged.pth",
            lambda path: released(
                path.parent,
                path.name,
                {**filled(torchvision_shapes(18, WIDTH)), "bn1.running_var": torch.full((WIDTH,), torch.nan)},
            ),
            r"bn1\.running_var has values that are not finite; take weights of a training that did not diverge",
        ),
        (
            "folder",
            lambda path: [path.mkdir(), path][1],
            r"encoder folder: no encoder\.safetensors there; expected a file",
        ),
        (
            "missing.pth",
            lambda path: path,
            r"encoder missing\.pth: no encoder\.safetensors there; expected a file of",
        ),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_with_the_reason(
    name: str, make: Any, said: str, shards: str, tmp_path: Path
) -> None:
    file = make(tmp_path / name)
    with pytest.raises(CheckpointError, match=said) as refused:
        pretrain.check(experiment_of(shards, tmp_path, file, **TORCHVISION))
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.slow
def test_any_cut_of_a_file_is_refused(shards: str, tmp_path: Path) -> None:
    """Wherever it is cut, as a broken download may be."""
    for file in (released(tmp_path), _legacy(tmp_path / "legacy.pth"), _safetensors(tmp_path / "a.safetensors")):
        whole = file.read_bytes()
        for length in [*range(0, 64, 9), *np.linspace(64, len(whole) - 1, 12).astype(int)]:
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"cannot be read|no tensors by name|do not match"):
                pretrain.check(experiment_of(shards, tmp_path, file, **TORCHVISION))


def test_a_fine_tuning_without_a_pretraining_begins_with_the_file(shards: str, tmp_path: Path) -> None:
    """Rows such as I3D, Med3D or Kinetics: ``scratch`` trains nothing, and hands the file's weights over."""
    file, nothing = released(tmp_path), ["method={name: scratch}"]
    asked = experiment_of(shards, tmp_path, file, *nothing, **TORCHVISION)
    finetune.check(asked)
    stages = pretrain.check(asked)
    run = Run(tmp_path / "run", asked, kind="pretrain", key="key")
    encoder = pretrain._run_stages(stages, run, None)
    exported = load_file(tmp_path / "run" / "encoder" / ENCODER)
    weights = torch.load(file, weights_only=True)
    torch.testing.assert_close(exported["layer4.1.conv2.weight"][:, :, 1], weights["layer4.1.conv2.weight"] / 3)
    network = build_network(asked, ShardSet.open(shards), encoder)
    assert all(torch.equal(value, exported[name]) for name, value in network.encoder.state_dict().items())
    report = (tmp_path / "run" / "start-pretrain.txt").read_text().splitlines()
    assert report[0] == stages[0].start_said()
    assert len(report) == 2 + 122
    assert asked.hands_over
    assert not asked.trains
    assert finetune._caption(asked, pretrain.PretrainingResult(run.folder, "key", encoder), None).title == (
        "weights resnet18.pth: fine-tuning, seeds 0 (pretraining) and 0"
    )
    plain = resolve({**asked.model_dump(mode="json"), "start": None})
    assert not plain.hands_over
    assert pretrain.folder_of(plain) != pretrain.folder_of(asked)


def test_own_2d_weights_become_an_own_3d_encoder(shards: str, tmp_path: Path) -> None:
    trunk = {key: value for key, value in filled(monai_shapes(18, 2, 1, WIDTH)).items() if not key.startswith("fc.")}
    save_file(trunk, tmp_path / ENCODER)
    asked = experiment_of(shards, tmp_path, tmp_path, inflate="i3d")
    (course,) = pretrain.check(asked)
    begun = course.build({}).encoder.state_dict()
    torch.testing.assert_close(begun["conv1.weight"][:, :, 0], trunk["conv1.weight"] / 7)
    with pytest.raises(CheckpointError, match=r"20 of 120 keys do not match"):
        pretrain.check(experiment_of(shards, tmp_path, tmp_path))


@pytest.mark.slow
def test_the_example_of_the_documents_begins_with_its_file(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in blocks_of(ROOT / "docs" / "how_to" / "stages.md") if "layout:" in block.text]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out, "width", 2000)
    Path("example.yaml").write_text(block.text)
    Path("shards").mkdir()
    Path("shards/real-ct-volumes").symlink_to(shards)
    released(tmp_path)
    smaller = [f"encoder.init_features={WIDTH}", "method.crops.size=[16, 32, 32]"]
    assert main(["pretrain", "example.yaml", "--dry-run", *smaller]) == 0
    assert "begins with weights resnet18.pth (layout torchvision, inflate i3d): 120 of 120" in capsys.readouterr().out
