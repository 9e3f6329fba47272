"""Weights: the file that an encoder begins with, which layout its keys have, and how its kernels become 3D."""

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag

from methods.base import ADDED, FrozenConfig
from methods.encoders.kernels import COLOURS, Inflation
from methods.encoders.layouts import LAYOUTS, OWN, LayoutName
from methods.encoders.resnet3d import ARCHITECTURES, ResNet3DEncoder
from orchestrator.config.paths import AbsolutePath


class WeightsFile(FrozenConfig):
    """Weights that an encoder, or a part of it, begins with.

    weights   a file or folder: what a pretraining exports (``encoder.safetensors``), a run's folder, or a file of
              another project (safetensors, or a state dict saved by torch)
    part      the part of the encoder that takes them; none: the whole encoder
    layout    whose keys they have: this project's own (raydiology); those of the residual networks of torchvision,
              MONAI, MedicalNet (Med3D), Kinetics (3D-ResNets-PyTorch), CSPR (SVD-Net) or RadImageNet; or those of
              Models Genesis, TransVW, Swin UNETR's SSL, VoCo, nnssl and OpenMind, or UniMiSS
    inflate   how 2D kernels become 3D ones: i3d repeats them along the depth; vdt puts them in the middle of it, and
              red, green and blue one behind the other; acs leaves them 2D for an encoder of ``convolutions: acs``
    """

    weights: AbsolutePath
    part: str = ""
    layout: Annotated[LayoutName, ADDED] = OWN
    inflate: Annotated[Inflation | None, ADDED] = None


def _kind(start: Any) -> str:
    return "file" if isinstance(start, WeightsFile) or (isinstance(start, dict) and "weights" in start) else "stages"


# A mapping with ``weights`` is a file even where it is wrong in another field, and is refused as one.
Start = Annotated[
    Annotated[WeightsFile, Tag("file")] | Annotated[dict[str, str], Tag("stages")], Discriminator(_kind)
]


def check_start(start: WeightsFile, encoder: BaseModel) -> None:
    """Raise ValueError where a layout or an inflation cannot serve an encoder; no file is read."""
    if start.layout != OWN:
        _check_layout(start, encoder)
    if start.inflate is not None:
        _check_inflation(start, encoder)


def _check_layout(start: WeightsFile, encoder: BaseModel) -> None:
    layout, its, fields = f"start.layout {start.layout}", LAYOUTS[start.layout], encoder.model_dump()
    dims = its.dims
    if fields["name"] not in its.encoders:
        raise ValueError(
            f"{layout}: its files are {its.what}, the encoder is {fields['name']}; take encoder "
            f"{' or '.join(its.encoders)}, or leave layout out for weights of this project"
        )
    if isinstance(encoder, ResNet3DEncoder.Config) and ARCHITECTURES[encoder.network].kind == "pseudo":
        raise ValueError(
            f"{layout}: its files have no pseudo-3D blocks, which encoder.network {encoder.network} is made of; "
            "take another network, such as resnet3d_50"
        )
    if dims == (3,) and fields["spatial_dims"] == 2:
        raise ValueError(f"{layout}: its kernels are 3D, the encoder's 2D; take an encoder with spatial_dims: 3")
    if dims == (2,) and fields["spatial_dims"] == 3 and start.inflate is None:
        raise ValueError(
            f"{layout}: its kernels are 2D, the encoder is 3D; set start.inflate to "
            f"{'acs' if _is_acs(encoder) else 'i3d or vdt'}"
        )


def _check_inflation(start: WeightsFile, encoder: BaseModel) -> None:
    fields, inflate = encoder.model_dump(), f"start.inflate {start.inflate}"
    if fields["spatial_dims"] == 2:
        raise ValueError(f"{inflate}: the encoder is 2D, as the kernels are; leave inflate out, or take a 3D encoder")
    if start.layout != OWN and LAYOUTS[start.layout].dims == (3,):
        raise ValueError(f"{inflate}: the kernels of layout {start.layout} are 3D already; leave inflate out")
    if (start.inflate == "acs") != _is_acs(encoder):
        remedy = (
            "set start.inflate=acs"
            if _is_acs(encoder)
            else "set encoder.convolutions=acs (encoder resnet3d), or start.inflate to i3d or vdt"
        )
        what = "2D (convolutions: acs)" if _is_acs(encoder) else "3D"
        raise ValueError(f"{inflate}: the encoder's kernels are {what}; {remedy}")
    channels = COLOURS if fields.get("grey_to_rgb") else fields["in_channels"]
    if start.inflate == "vdt" and channels != 1:
        raise ValueError(
            f"{inflate}: it turns {COLOURS} colours into the depth of 1 channel, the encoder's first kernel has "
            f"{channels}; set encoder.in_channels=1 (without grey_to_rgb), or start.inflate=i3d"
        )


def _is_acs(encoder: BaseModel) -> bool:
    return isinstance(encoder, ResNet3DEncoder.Config) and encoder.convolutions == "acs"
