"""The catalogue counts what methods train at their papers' sizes, and these are the sizes of the experiments."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from methods import METHODS
from methods.papers import PAPER_SIZES
from orchestrator.cli import main
from orchestrator.commands import console
from orchestrator.config.files import load
from orchestrator.machine import parameters as parameters_
from orchestrator.machine.catalogue import catalogue
from tests.clusters import ROOT

EXPERIMENTS = ROOT / "experiments"
PROXY_TASKS = ("rotation", "patch_location", "jigsaw", "exemplar", "cpc")
PAPERS = {
    "simsiam": ["iou_positives/flare22.yaml"],
    "voco": ["voco/btcv.yaml"],
    "simmim": ["voco/btcv_simmim.yaml"],
    **{name: [f"proxy_tasks/{name}_{cohort}.yaml" for cohort in ("pancreas", "fundus")] for name in PROXY_TASKS},
}


@pytest.fixture(scope="module")
def parameters() -> dict[str, list[dict[str, Any]]]:
    return {entry["name"]: entry["parameters"] for entry in catalogue()["methods"]}


def linear(taken: int, given: int) -> int:
    return taken * given + given


def fully(taken: int, given: int) -> int:
    """Count the parameters of two hidden layers of 2048 and 1024 with batch norm, and of a linear layer."""
    return linear(taken, 2048) + 2 * 2048 + linear(2048, 1024) + 2 * 1024 + linear(1024, given)


def token_decoder(voxels: int) -> int:
    """Count MAE's decoder: eight blocks of width 512 behind a transformer of width 768."""
    block = 4 * 512 + linear(512, 3 * 512) + linear(512, 512) + linear(512, 2048) + linear(2048, 512)
    return linear(768, 512) + 512 + 8 * block + 2 * 512 + linear(512, voxels)


GRU = 3 * (1024 * 256 + 256 * 256 + 2 * 256)
# Per method: (variant, dimensions) -> each head. A cube's vector has 4**3 x 256 numbers, a patch's 256; that of a
# photograph has 7**2 x 1024, of its patch 2**2 x 1024.
HEADS: dict[str, dict[tuple[str, int], dict[str, int]]] = {
    "simsiam": {("paper", 2): {"projector": 9_969_664, "predictor": 2_100_224}},
    # Swin UNETR's skip blocks: two convolutions each, and a third where the number of channels changes.
    "voco": {
        ("cvpr", 3): {"head": linear(768, 2048) + 2 * linear(2048, 2048)},
        ("paper", 3): {"head": linear(768, 2048) + 2 * linear(2048, 2048)},
        ("released", 3): {
            "head": linear(1152, 2048)
            + 2 * linear(2048, 2048)
            + 27 * 48 * (1 + 48) + 48
            + sum(2 * 27 * width**2 for width in (48, 96, 192, 768))
        },
    },
    "simmim": {("volumes", 3): {"pixels": linear(768, 32**3)}},
    "mae": {
        ("paper", 2): {"decoder": token_decoder(3 * 16**2)},
        ("volumes", 3): {"decoder": token_decoder(16**3)},
    },
    "dino": {
        ("paper", 2): {"head": linear(384, 2048) + linear(2048, 2048) + linear(2048, 256) + 256 * 65_536},
    },
    "rotation": {
        ("paper", 3): {"head": fully(16_384, 10)},
        ("released", 3): {"head": fully(16_384, 10)},
        ("paper", 2): {"head": fully(50_176, 4)},
    },
    "patch_location": {("paper", 3): {"head": fully(2 * 256, 26)}, ("released", 2): {"head": fully(2 * 4096, 8)}},
    "jigsaw": {("released", 3): {"head": fully(27 * 256, 100)}, ("paper", 2): {"head": fully(9 * 4096, 100)}},
    "exemplar": {
        ("paper", 3): {"heads": linear(16_384, 1024)},
        ("released", 3): {"heads": 50_334_720},
        ("released", 2): {"heads": 3 * linear(50_176, 1024)},
    },
    "swav": {
        (variant, dims): {"projector": linear(2048, 2048) + 2 * 2048 + linear(2048, 128), "clusters": 3000 * 128}
        for variant in ("paper", "released")
        for dims in (2, 3)
    },
    "deepcluster_v2": {
        ("paper", 2): {"projector": linear(2048, 2048) + 2 * 2048 + linear(2048, 128)},
        ("released", 3): {
            "projector": linear(2048, 2048) + 2 * 2048 + linear(2048, 128),
            "clusters": 3 * 3000 * 128,
        },
    },
    "jssl_mask": {("paper", 3): {"decoder": linear(640, 640)}},
    "jssl_cluster": {("released", 3): {"clusters": 3000 * 640}},
    "cpc": {
        ("released", 3): {"projector": linear(256, 1024), "context": GRU, "predictors": 2 * linear(256, 1024)},
        ("paper", 3): {"projector": linear(256, 1024), "context": GRU, "predictors": linear(256, 1024)},
        ("paper", 2): {"projector": linear(4096, 1024), "context": GRU, "predictors": 2 * linear(256, 1024)},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_number_of_parameters_that_a_person_counts(name: str, parameters) -> None:
    for (variant, dims), heads in HEADS[name].items():
        counted = [
            entry["heads"]
            for entry in parameters[name]
            if (entry["variant"], entry["spatial_dims"]) == (variant, dims)
        ]
        assert counted == [heads] * len(counted) != []


@pytest.mark.parametrize("name", PROXY_TASKS)
def test_the_proxy_tasks_encoders_have_the_known_numbers_of_parameters(name: str, parameters) -> None:
    encoders = {(entry["spatial_dims"], entry["in_channels"]): entry["encoder"] for entry in parameters[name]}
    assert encoders == {(3, 1): 3_535_440, (3, 2): 3_535_872, (3, 4): 3_536_736, (2, 3): 6_953_856}


def test_the_swin_transformer_of_swin_unetr_has_the_known_number_of_parameters(parameters) -> None:
    assert {entry["encoder"] for entry in parameters["voco"]} == {8_062_002}
    assert {entry["encoder"] for entry in parameters["simsiam"]} == {6_306_810}


def test_every_variant_of_every_method_that_a_paper_trained_is_counted(parameters) -> None:
    for name, method in METHODS.items():
        field = method.Config.model_fields.get("variant")
        variants = set(get_args(field.annotation)) if field else {""}
        assert {entry["variant"] for entry in parameters[name]} == (variants if name in PAPER_SIZES else set())
    assert {"simsiam", "voco", "jigsaw", "jssl_cluster", "svdnet"} <= PAPER_SIZES.keys()


def test_svd_net_is_as_large_as_the_paper_prints_it(parameters) -> None:
    """Seed 003, Table II: 33.67, 63.98 and 48.20 million parameters; methods.md 4.1 counts them exactly."""
    whole = {one["network"]: one["encoder"] + one["heads"]["head"] for one in parameters["svdnet"]}
    assert {name: count for name, count in whole.items() if name.startswith("resnet")} == {
        "resnet3d_18": 33_673_000,
        "resnet3d_34": 63_982_632,
        "resnet3d_50": 48_204_072,
        "resnet3d_v1c_18": 33_734_984,
    }


@pytest.mark.slow
def test_the_record_holds_what_is_counted_when_everything_is_built() -> None:
    found = parameters_.built()
    assert json.loads(parameters_.RECORD.read_text()) == found, (
        "write it anew: python -m orchestrator.machine.parameters > orchestrator/machine/parameters.json"
    )


def test_settings_that_the_record_lacks_are_built_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(PAPER_SIZES["rotation"][0], fields={"side": 128, "hidden_dims": (7,)})
    monkeypatch.setitem(PAPER_SIZES, "rotation", (size,))
    counted = parameters_.parameters("rotation")
    assert [entry["heads"] for entry in counted] == [{"head": linear(16_384, 7) + 2 * 7 + linear(7, 10)}] * 2
    assert {entry["encoder"] for entry in counted} == {3_535_440}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_experiments_train_at_the_papers_size(name: str) -> None:
    """In 2D, an experiment may name another encoder, and then says so itself."""
    for file in PAPERS[name]:
        experiment = load(EXPERIMENTS / file)
        stage = experiment.pretraining[0].method
        sizes = [size for size in PAPER_SIZES[name] if size.encoder.spatial_dims == experiment.encoder.spatial_dims]
        configs = [type(stage).model_validate({**size.fields, "variant": stage.variant}) for size in sizes]
        assert configs[0] == stage
        if experiment.encoder.name == sizes[0].encoder.name:
            assert sizes[0].encoder == experiment.encoder


@pytest.mark.slow
def test_the_classifiers_of_svd_net_s_table_ii_are_counted(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    found = {network["name"]: network for network in catalogue()["networks"]}
    assert found["resnet_18"]["parameters"] == 11_689_512
    assert found["resnet3d_18"]["parameters"] == 33_673_000
    assert found["resnet3d_18"]["multiply_adds"] == 15_970_930_688
    monkeypatch.setattr(console.out, "width", 200)
    assert main(["methods"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "63,982,632" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells == ["resnet3d_34", "3 x 224 x 224, 1 ch.", "63,982,632", "32.62 G"]


@pytest.mark.slow
def test_the_command_prints_the_counts_as_json_and_as_a_table(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    assert main(["methods", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == catalogue()
    monkeypatch.setattr(console.out, "width", 200)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "exemplar" in line and "pancreas" in line and "released" in line)
    assert "pooled_unet 3,535,440" in row
    assert "heads 50,334,720" in row
    assert any("paper, released" in line and "rotation" in line and "head 35,671,050" in line for line in lines)
