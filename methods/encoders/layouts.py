"""Layouts: under which names, and in which shapes, other projects save their residual networks.

Reference: pytorch/vision @ 054e54c, ``torchvision/models/resnet.py``; MONAI 1.6, ``networks/nets/resnet.py``;
           Tencent/MedicalNet @ 34b9bb2, ``med3d/models/resnet.py`` (Med3D; ResNet-18 and 34 have shortcuts of type A,
           ResNet-50 of type B); kenshohara/3D-ResNets-PyTorch @ 2031c32, ``models/resnet.py``; urmagicsmine/CSPR @
           afe0c44, ``mmcls/models/backbones/resnet3d.py`` (SVD-Net). Strides and dilations change no shape.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

LayoutName = Literal["raydiology", "torchvision", "monai", "medicalnet", "kinetics", "cspr"]
OWN: LayoutName = "raydiology"
# A key of every residual network; what stands before it is a wrapper's prefix, such as ``module.`` or ``backbone.``.
ANCHOR = "layer1.0.conv1.weight"
# The stem of SVD-Net's V1c-18, as its release and as ``resnet3d`` name it.
_DEEP_STEM = {
    "stem.0.conv.": "conv1.0.",
    "stem.0.bn.": "conv1.1.",
    "stem.1.conv.": "conv1.3.",
    "stem.1.bn.": "conv1.4.",
    "stem.2.conv.": "conv1.6.",
    "stem.2.bn.": "bn1.",
}


@dataclass(frozen=True)
class Layout:
    """The residual networks of a project.

    dims       how many dimensions their kernels have
    channels   input channels; None: any number
    heads      how keys begin that belong to no residual network: a classifier's or a decoder's
    renamed    how keys begin that have other names in this project, and these names
    """

    dims: tuple[int, ...]
    channels: int | None
    heads: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, key: str) -> str:
        """Return the name that a key, without its prefix, has in this project."""
        for theirs, ours in self.renamed.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key

    @property
    def expects(self) -> str:
        """The first kernel of its files, in words."""
        numbers = {None: "any number of input channels", 1: "1 input channel"}
        on = numbers.get(self.channels, f"{self.channels} input channels")
        return f"a first kernel of {' or '.join(map(str, self.dims))} dimensions on {on}"


LAYOUTS: dict[LayoutName, Layout] = {
    "torchvision": Layout((2,), 3, ("fc.",)),
    "monai": Layout((2, 3), None, ("fc.",)),
    "medicalnet": Layout((3,), 1, ("conv_seg.",)),
    "kinetics": Layout((3,), 3, ("fc.",)),
    "cspr": Layout((3,), 1, ("head.", "fc."), _DEEP_STEM),
}


@dataclass(frozen=True)
class Trunk:
    """The residual network in a file: tensors by this project's names, their keys in the file, and the other keys."""

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    left: tuple[str, ...]


def trunk_of(weights: Mapping[str, Tensor], name: LayoutName) -> Trunk:
    """Find the residual network in a file of a layout.

    Raises ValueError where the file holds none, holds several, or its first kernel is not the layout's.
    """
    layout, prefix = LAYOUTS[name], _prefix(weights, name)
    tensors, keys, left = dict[str, Tensor](), dict[str, str](), list[str]()
    for key, value in weights.items():
        inner = key.removeprefix(prefix)
        if not key.startswith(prefix) or inner.startswith(layout.heads):
            left.append(key)
        else:
            keys[layout.name_of(inner)], tensors[layout.name_of(inner)] = key, value
    first = next((key for key in ("conv1.weight", "conv1.0.weight") if key in tensors), None)
    if first is None:
        raise ValueError(f"layout {name} expects {layout.expects}, named conv1.weight; found {_some(weights)}")
    shape = tuple(tensors[first].shape)
    if len(shape) - 2 not in layout.dims or layout.channels not in (None, shape[1]):
        raise ValueError(f"layout {name} expects {layout.expects}; found {keys[first]} of shape {shape}")
    return Trunk(tensors, keys, tuple(left))


def _prefix(weights: Iterable[str], layout: LayoutName) -> str:
    """Return what stands before every key of the residual network."""
    found = [key.removesuffix(ANCHOR) for key in weights if key == ANCHOR or key.endswith(f".{ANCHOR}")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"layout {layout} expects keys of a residual network, such as {ANCHOR}; found {_some(weights)}"
        )
    raise ValueError(
        f"layout {layout} expects one residual network; found {len(found)}, under {', '.join(found)}; save the one "
        "that is meant in a file of its own"
    )


def _some(keys: Iterable[str]) -> str:
    names = list(keys)
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
