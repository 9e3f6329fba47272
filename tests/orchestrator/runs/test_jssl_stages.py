"""JSSL's three stages hand over every weight that the next one holds, and both the whole and the slice encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.config.files import resolve
from orchestrator.runs import finetune, network, pretrain
from orchestrator.training.checkpoint import ENCODER, export_encoder
from tests.experiments import tiny_experiment, tiny_segmentation
from tests.shardsets import write_slices, write_volumes

SLICES = {"name": "resnet", "spatial_dims": 2, "depth": 18, "init_features": 2}
VOLUMES = {
    "name": "slice_transformer",
    "slices": SLICES,
    "num_slices": 32,
    "dim": 16,
    "hidden_dim": 12,
    "num_layers": 1,
    "attention": {"num_heads": 2, "head_dim": 4},
}
FLOW = {"optimiser": {"name": "sgd", "lr": 0.05}, "budget": {"steps": 3, "batch_size": 4}}
SIZE = [32, 32, 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jssl")
    write_slices(folder / "slices", num_patients=4, size=64)
    write_volumes(folder / "volumes", num_patients=4, size=64)
    return folder


def tree_of(folder: Path, clusters: str) -> dict[str, Any]:
    volumes = {"data": {"shards": str(folder / "volumes")}, "encoder": VOLUMES}
    crops = {"large_crops": {"size": 32}, "hidden_dim": 16, "projector_dim": 8, "num_prototypes": 6}
    inter = {"name": "jssl_cluster", "size": SIZE, "clusters": {"name": clusters, "num_prototypes": 3}}
    given = tiny_experiment("jssl", str(folder / "slices"), folder / "runs", 3, SLICES)
    given |= {"method": None, "optimiser": None, "budget": None}
    stages = [
        {"name": "intra", "method": {"name": clusters, **crops}},
        {"name": "mask", "method": {"name": "jssl_mask", "size": SIZE}, "start": {"slices": "intra"}, **volumes},
        {"name": "inter", "method": inter, **volumes},
    ]
    return {**given, "stages": [{**FLOW, **stage} for stage in stages]}


@pytest.mark.parametrize("clusters", ["swav", "deepcluster_v2"])
def test_every_key_of_each_hand_over_is_accounted_for(folder: Path, tmp_path: Path, clusters: str) -> None:
    first, second, third = pretrain.check(resolve(tree_of(folder, clusters)))
    ends: dict[str, str] = {}

    def trained(method: torch.nn.Module, name: str, config: Any) -> dict[str, torch.Tensor]:
        """Export an encoder as after a training that changed all of it; return its weights."""
        encoder = method.get_submodule("encoder")
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 1
        ends[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        export_encoder(tmp_path / name, encoder, {"encoder": config.model_dump()})
        return load_file(tmp_path / name / ENCODER)

    slices = trained(first.build({}), "intra", first.encoder)
    begun = second.build(ends).encoder.state_dict()
    assert {key: value.tolist() for key, value in slices.items()} == {
        key.removeprefix("slices."): value.tolist() for key, value in begun.items() if key.startswith("slices.")
    }
    related = trained(second.build(ends), "mask", second.encoder)
    begun = third.build(ends).encoder.state_dict()
    assert begun.keys() == related.keys()
    assert all(torch.equal(begun[key], value) for key, value in related.items())


@pytest.mark.parametrize(("part", "shards", "size"), [("slices", "slices", [32, 64]), ("", "volumes", [32, 32, 64])])
def test_the_slice_encoder_serves_2d_tasks_and_the_whole_3d_tasks(
    folder: Path, tmp_path: Path, part: str, shards: str, size: list[int]
) -> None:
    tree = tree_of(folder, "swav")
    tree["downstream"] = {**tiny_segmentation(str(folder / shards), steps=2), "part": part}
    tree["downstream"]["task"] = {"name": "segmentation", "crop_size": size}
    asked = resolve(tree)
    last = pretrain.check(asked)[-1]
    encoder = last.build({}).encoder
    export_encoder(tmp_path, encoder, {"encoder": last.encoder.model_dump()})
    built = network.build_network(asked, finetune.check(asked).shards, str(tmp_path))
    prefix = f"{part}." if part else ""
    assert built.encoder.spatial_dims == len(size)
    assert all(
        torch.equal(value, encoder.state_dict()[prefix + key]) for key, value in built.encoder.state_dict().items()
    )
