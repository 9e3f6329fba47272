"""A start from weights: combinations that cannot work are refused when the experiment is read; keys of runs."""

from typing import Any

import pytest

from methods.base import decisive
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.config.weights import WeightsFile
from tests.experiments import tiny_experiment
from tests.orchestrator.config.test_keys import TREE

FLAT = {"name": "resnet", "spatial_dims": 2, "depth": 18}
DEEP = {"name": "resnet3d"}
ACS = {"name": "resnet3d", "convolutions": "acs"}
UNET = {"name": "unet", "spatial_dims": 3}
SLICES = {"name": "slices", "slices": FLAT}


def experiment(encoder: dict[str, Any], **start: Any) -> Experiment:
    tree = tiny_experiment("w", "shards", "runs", 1)
    crops = {"size": [32, 32, 32]} if encoder.get("spatial_dims") != 2 else {"size": [32, 32]}
    return resolve({**tree, "encoder": encoder, "method": {"name": "simsiam", "crops": crops}, "start": start})


@pytest.mark.parametrize(
    ("encoder", "start"),
    [
        (FLAT, {"layout": "torchvision"}),
        (DEEP, {"layout": "torchvision", "inflate": "i3d"}),
        (DEEP, {"layout": "torchvision", "inflate": "vdt"}),
        (ACS, {"layout": "torchvision", "inflate": "acs"}),
        (ACS, {}),
        (UNET, {"inflate": "i3d"}),
        (DEEP, {"layout": "medicalnet"}),
        (DEEP, {"layout": "monai"}),
        (SLICES, {"layout": "torchvision", "part": "slices"}),
        (FLAT, {"layout": "radimagenet"}),
        (DEEP, {"layout": "radimagenet", "inflate": "i3d"}),
        ({"name": "genesis_unet"}, {"layout": "models_genesis"}),
        ({"name": "residual_encoder_unet", "spatial_dims": 3}, {"layout": "nnssl"}),
    ],
)
def test_what_can_work_is_taken(encoder: dict[str, Any], start: dict[str, Any]) -> None:
    found = experiment(encoder, weights="w.pth", **start).start
    assert found is not None
    assert {name: getattr(found, name) for name in start} == start


@pytest.mark.parametrize(
    ("encoder", "start", "said"),
    [
        (
            FLAT,
            {"layout": "torchvison"},
            r"start\.layout: .*'torchvision'.*, found 'torchvison' \(did you mean torchvision",
        ),
        (
            DEEP,
            {"layout": "torchvision"},
            r"start\.layout torchvision: its kernels are 2D, the encoder is 3D; set .*i3d",
        ),
        (ACS, {"layout": "torchvision"}, r"its kernels are 2D, the encoder is 3D; set start\.inflate to acs"),
        (
            FLAT,
            {"layout": "kinetics"},
            r"start\.layout kinetics: its kernels are 3D, the encoder's 2D; take an encoder",
        ),
        (UNET, {"layout": "monai"}, r"its files are residual networks, the encoder is unet; take encoder resnet or"),
        (
            UNET,
            {"layout": "nnssl"},
            r"files are convolutional U-Nets of nnU-Net, the encoder is unet; take encoder residual_encoder_unet or",
        ),
        (
            {"name": "plain_conv_unet", "spatial_dims": 2},
            {"layout": "nnssl"},
            r"start\.layout nnssl: its kernels are 3D, the encoder's 2D; take an encoder with spatial_dims: 3",
        ),
        (
            {"name": "genesis_unet"},
            {"layout": "transvw", "inflate": "i3d"},
            r"the kernels of layout transvw are 3D already; leave inflate out",
        ),
        (
            {"name": "resnet3d", "network": "p3d_63"},
            {"layout": "torchvision", "inflate": "i3d"},
            r"its files have no pseudo-3D blocks, which encoder\.network p3d_63 is made of",
        ),
        (FLAT, {"inflate": "i3d"}, r"start\.inflate i3d: the encoder is 2D, as the kernels are; leave inflate out"),
        (
            DEEP,
            {"layout": "medicalnet", "inflate": "i3d"},
            r"kernels of layout medicalnet are 3D already; leave inflate",
        ),
        (
            DEEP,
            {"layout": "torchvision", "inflate": "acs"},
            r"inflate acs: the encoder's kernels are 3D; set encoder\.conv",
        ),
        (
            ACS,
            {"layout": "torchvision", "inflate": "i3d"},
            r"kernels are 2D \(convolutions: acs\); set start\.inflate=acs",
        ),
        (
            {**DEEP, "in_channels": 3},
            {"layout": "torchvision", "inflate": "vdt"},
            r"inflate vdt: it turns 3 colours into the depth of 1 channel, the encoder's first kernel has 3; set",
        ),
        (
            {"name": "resnet", "spatial_dims": 3, "grey_to_rgb": True},
            {"layout": "torchvision", "inflate": "vdt"},
            r"the encoder's first kernel has 3; set encoder\.in_channels=1 \(without grey_to_rgb\)",
        ),
        (SLICES, {"layout": "torchvision", "part": "slice"}, r"start\.part 'slice': encoder slices has no such part"),
        (SLICES, {"layout": "torchvision"}, r"its files are residual networks, the encoder is slices"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    encoder: dict[str, Any], start: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        experiment(encoder, weights="w.pth", **start)


def test_a_stage_begins_with_a_file_and_a_wrong_layout_is_not_taken_for_the_name_of_a_stage() -> None:
    stage: dict[str, Any] = {"name": "a", "method": {"name": "simsiam"}, "start": {"weights": "w.pth"}}
    tree = {"name": "w", "data": {"shards": "shards"}, "encoder": FLAT, "stages": [stage]}
    assert resolve(tree).stages[0].start == WeightsFile(weights="w.pth")
    stage["start"] = {"weights": "w.pth", "layout": "x"}
    with pytest.raises(ConfigError, match=r"stages\.0\.start\.layout: expected .*'torchvision'.*found 'x'"):
        resolve(tree)
    stage["start"] = {"weights": "w.pth", "layout": "kinetics"}
    with pytest.raises(ConfigError, match=r"stage a: start\.layout kinetics: its kernels are 3D"):
        resolve(tree)
    stage["start"] = {"encoder": "b"}
    with pytest.raises(ConfigError, match=r"stage a: start names 'b', which is no stage before it"):
        resolve(tree)


def test_layout_and_inflation_change_the_keys_of_runs_and_their_defaults_do_not() -> None:
    assert decisive(WeightsFile(weights="w", part="p")) == {"weights": WeightsFile(weights="w").weights, "part": "p"}
    starts = [{}, {"layout": "torchvision", "inflate": "i3d"}, {"layout": "torchvision", "inflate": "vdt"}]
    starts += [{"layout": "monai", "inflate": "i3d"}]
    keys = [experiment(DEEP, weights="w.pth", **start).pretrain_key("digest") for start in starts]
    assert len(set(keys)) == 4
    assert experiment(DEEP, weights="elsewhere.pth").pretrain_key("digest") == keys[0]
    # As it was before there were layouts: a change makes every such run be computed again.
    assert resolve({**TREE, "start": {"weights": "w.pth"}}).pretrain_key("digest") == "31e9e8ea811514fa"
