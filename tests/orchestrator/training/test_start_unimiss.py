"""Files of UniMiSS: tensors of images, of volumes or of both are taken by their released names; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods.encoders import PyramidTransformerEncoder
from orchestrator.config.weights import WeightsFile
from orchestrator.training.checkpoint import CheckpointError
from orchestrator.training.start import begin
from tests.orchestrator.config.test_weights import experiment
from tests.orchestrator.training.test_start_layouts import Spoken
from tests.released_networks import mit_shapes, unimiss_shapes, voco_shapes
from tests.released_weights import filled

WIDTHS = (3, 4, 6, 8, 10)
SHAPES = unimiss_shapes(widths=WIDTHS)
TINY = {"stem_dim": 3, "stage_dims": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 5)}
# A tensor of each sort: ours, and theirs.
NAMES = {
    "stem.3D.conv.weight": "patch_embed3D0.conv.weight",
    "stages.1.embed.2D.norm.bias": "patch_embed2D2.proj.norm.bias",
    "stages.3.positions.3D": "pos_embed3D4",
    "stages.0.token": "cls_tokens1",
    "stages.2.token.weight": "cls_tokens3.weight",
    "stages.1.blocks.0.attn.reduce.3D.weight": "block2.0.attn.sr3D.weight",
    "stages.3.blocks.0.mlp.fc1.bias": "block4.0.mlp.fc1.bias",
}


def encoder_of(dims: int, **fields: Any) -> PyramidTransformerEncoder:
    torch.manual_seed(1)
    return PyramidTransformerEncoder(
        PyramidTransformerEncoder.Config.model_validate({"spatial_dims": dims, "switchable": False, **TINY, **fields})
    )


def start_from(folder: Path, found: Any) -> WeightsFile:
    torch.save(found, folder / "weights.pth")
    return WeightsFile(weights=str(folder / "weights.pth"), layout="unimiss")


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", ""])
@pytest.mark.parametrize(("dims", "switchable"), [(2, False), (3, False), (3, True)])
def test_every_tensor_of_the_encoder_is_the_file_s(dims: int, switchable: bool, prefix: str, tmp_path: Path) -> None:
    weights = filled(unimiss_shapes(prefix, widths=WIDTHS))
    encoder = encoder_of(dims, switchable=switchable, in_channels=3 if dims == 2 else 1)
    found = begin(encoder, start_from(tmp_path, {"student": weights, "epoch": 3}))
    own = encoder.state_dict()
    assert (found.initial, len(found.taken)) == ((), len(own))
    assert set(found.changed) == ({"stem.2D.conv.weight"} if switchable else set())
    kinds = ("2D", "3D") if switchable else (f"{dims}D",)
    of_encoder = {f"{prefix}transformer.{key}" for key in mit_shapes(WIDTHS, kinds)}
    assert set(found.left) == set(weights) - of_encoder
    for ours, theirs in NAMES.items():
        if ours in own:
            assert torch.equal(own[ours], weights[f"{prefix}transformer.{theirs}"]), ours
    # Every value of the file is in one tensor, and no other value is.
    taken = torch.cat([v.flatten() for k, v in own.items() if k not in found.changed]).sort().values
    changed = {f"{prefix}transformer.patch_embed2D0.conv.weight"} if switchable else set()
    given = torch.cat([weights[key].flatten() for key in of_encoder - changed]).sort().values
    assert torch.equal(taken, given)


def test_colours_of_images_are_summed_for_slices_of_one_channel(tmp_path: Path) -> None:
    weights, encoder = filled(SHAPES), encoder_of(3, switchable=True)
    found = begin(encoder, start_from(tmp_path, weights))
    assert dict(found.changed) == {"stem.2D.conv.weight": "summed over 3 input channels"}
    kernel = weights["module.backbone.transformer.patch_embed2D0.conv.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(encoder.state_dict()["stem.2D.conv.weight"], kernel)


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        (
            {"student": filled(SHAPES), "teacher": filled(SHAPES)},
            {},
            r"2 entries hold tensors by name \(student, teacher\), .*; save the one that is meant in a file",
        ),
        (
            filled({key: s for key, s in SHAPES.items() if "2D" not in key}),
            {"spatial_dims": 2},
            r"\d+ tensors of the encoder are not in the file \(stem\.2D\.conv\.weight, ",
        ),
        (
            filled(SHAPES),
            {"depths": (1, 2, 1, 1)},
            r"\d+ tensors of the encoder are not in the file \(stages\.1\.blocks\.1\.",
        ),
        (filled(SHAPES), {"volume_size": (16, 64, 64)}, r"4 of \d+ tensors have other shapes \(stages\.0\.positions"),
        (
            filled(voco_shapes(24, 2)),
            {},
            r"expects keys of a pyramid transformer of UniMiSS, such as block1\.0\.attn\.kv\.weight; found swinViT",
        ),
        (
            {"student": filled(SHAPES), "args": Spoken()},
            {},
            r"cannot be read \(.*\); expected .* nothing but tensors",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_what_came_and_what_was_expected(
    file: Any, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    dims = fields.get("spatial_dims", 3)
    with pytest.raises(CheckpointError, match=rf"weights weights\.pth: .*{said}"):
        begin(encoder_of(dims, **fields), start_from(tmp_path, file))


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    start = start_from(tmp_path, filled(SHAPES))
    whole = Path(start.weights).read_bytes()
    Path(start.weights).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=r"weights\.pth: cannot be read .*expected a whole safetensors file, or"
    ):
        begin(encoder_of(3), start)


def test_an_experiment_takes_the_layout_for_its_encoder_alone() -> None:
    pyramid = {"name": "pyramid_transformer", "spatial_dims": 2}
    assert experiment(pyramid, weights="w.pth", layout="unimiss").start.layout == "unimiss"
    with pytest.raises(ValueError, match=r"its files are pyramid transformers of UniMiSS, the encoder is unet; take"):
        experiment({"name": "unet", "spatial_dims": 3}, weights="w.pth", layout="unimiss")
