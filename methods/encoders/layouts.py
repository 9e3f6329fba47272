"""Layouts: under which names, and in which shapes, other projects save their networks.

Reference: pytorch/vision @ 054e54c, ``torchvision/models/resnet.py``; MONAI 1.6, ``networks/nets/resnet.py``;
           Tencent/MedicalNet @ 34b9bb2, ``med3d/models/resnet.py`` (Med3D; ResNet-18 and 34 have shortcuts of type A,
           ResNet-50 of type B); kenshohara/3D-ResNets-PyTorch @ 2031c32, ``models/resnet.py``; urmagicsmine/CSPR @
           afe0c44, ``mmcls/models/backbones/resnet3d.py`` (SVD-Net). Strides and dilations change no shape.
           BMEII-AI/RadImageNet, ``pytorch_example.ipynb`` (torchvision's children by number);
           MrGiovanni/ModelsGenesis @ 104f487, ``pytorch/unet3d.py``; fhaghighi/TransVW @ 1664586,
           ``pytorch/README.md`` (``classficationNet.`` holds the encoder); Project-MONAI/research-contributions @
           2ff2db0, ``SwinUNETR/Pretrain/models/ssl_head.py``, and MONAI's ``SwinUNETR.load_from`` (``module.``,
           ``fc1``; issues #88, #268, #346); Luffy03/VoCo @ 0b54710, ``models/voco_head.py`` (Swin UNETR V2);
           MIC-DKFZ/nnUNet @ 0e495086, ``pretrainedTrainer.py`` (nnssl and OpenMind, of ResEncL and plain U-Nets);
           YtongXie/UniMiSS-code @ 68be0a4, ``UniMiSS/models/MiT.py`` and ``main.py`` (``module.backbone.``; the
           decoder beside ``transformer.``; ``student`` and ``teacher`` in one checkpoint).
           Not here, since no encoder holds them: Primus and other ViTs, UniMiSS+; since no code of it could be read:
           the Universal Model of Zhang et al.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

LayoutName = Literal[
    "raydiology",
    "torchvision",
    "monai",
    "medicalnet",
    "kinetics",
    "cspr",
    "radimagenet",
    "models_genesis",
    "transvw",
    "swin_unetr_ssl",
    "voco",
    "nnssl",
    "unimiss",
]
OWN: LayoutName = "raydiology"
# A key of every residual network; what stands before it is a wrapper's prefix, such as ``module.`` or ``backbone.``.
ANCHOR = "layer1.0.conv1.weight"
RESIDUAL = ("resnet", "resnet3d")
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
    """The networks of a project.

    dims       how many dimensions their kernels have
    channels   input channels; None: any number
    heads      how keys begin that belong to no encoder: a classifier's or a decoder's
    renamed    how keys begin that have other names in this project, and these names
    replaced   what stands within keys, and what stands there in this project
    anchors    a key of each of its networks; what stands before it is a wrapper's prefix
    first      the names, in this project, that a first kernel may have
    twice      what stands within keys that hold a tensor of the encoder a second time
    kinds      what stands within keys of which an encoder may hold one kind only; those of others are left
    encoders   the encoders of this project that its files fit
    what, one  what its files hold, and one such network, in words
    """

    dims: tuple[int, ...]
    channels: int | None
    heads: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    anchors: tuple[str, ...] = (ANCHOR,)
    first: tuple[str, ...] = ("conv1.weight", "conv1.0.weight")
    twice: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    encoders: tuple[str, ...] = RESIDUAL
    what: str = "residual networks"
    one: str = "residual network"

    def name_of(self, key: str) -> str:
        """Return the name that a key, without its prefix, has in this project."""
        for theirs, ours in self.replaced.items():
            key = key.replace(theirs, ours)
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


# torchvision's ResNet as a list of its children.
_BY_NUMBER = {"0.": "conv1.", "1.": "bn1.", "4.": "layer1.", "5.": "layer2.", "6.": "layer3.", "7.": "layer4."}
_GENESIS = Layout(
    (3,),
    1,
    ("up_tr", "out_tr.", "projection_head.", "prototypes."),
    anchors=("down_tr64.ops.0.conv1.weight",),
    first=("down_tr64.ops.0.conv1.weight",),
    encoders=("genesis_unet",),
    what="3D U-Nets of Models Genesis",
    one="3D U-Net of Models Genesis",
)
_SWIN: dict[str, Any] = {
    "anchors": ("patch_embed.proj.weight",),
    "first": ("patch_embed.proj.weight",),
    "encoders": ("swin_unetr",),
    "what": "Swin transformers of Swin UNETR",
    "one": "Swin transformer of Swin UNETR",
}
# Stages count from 1 in UniMiSS' names, and from 0 here; the first class token is a parameter, the others are layers.
_STAGES: dict[str, str] = {
    **{f"block{stage}.": f"stages.{stage - 1}.blocks." for stage in range(1, 5)},
    **{f"cls_tokens{stage}": f"stages.{stage - 1}.token" for stage in range(1, 5)},
    **{f"patch_embed{kind}0.": f"stem.{kind}." for kind in ("2D", "3D")},
    **{f"patch_embed{kind}{s}.proj.": f"stages.{s - 1}.embed.{kind}." for kind in ("2D", "3D") for s in range(1, 5)},
    **{f"pos_embed{kind}{s}": f"stages.{s - 1}.positions.{kind}" for kind in ("2D", "3D") for s in range(1, 5)},
}

LAYOUTS: dict[LayoutName, Layout] = {
    "torchvision": Layout((2,), 3, ("fc.",)),
    "monai": Layout((2, 3), None, ("fc.",)),
    "medicalnet": Layout((3,), 1, ("conv_seg.",)),
    "kinetics": Layout((3,), 3, ("fc.",)),
    "cspr": Layout((3,), 1, ("head.", "fc."), _DEEP_STEM),
    "radimagenet": Layout((2,), 3, renamed=_BY_NUMBER, anchors=("4.0.conv1.weight",)),
    "models_genesis": _GENESIS,
    "transvw": _GENESIS,
    "swin_unetr_ssl": Layout(
        (3,), None, ("rotation_head.", "contrastive_head.", "conv."), replaced={".mlp.fc": ".mlp.linear"}, **_SWIN
    ),
    "voco": Layout((3,), None, replaced={".mlp.fc": ".mlp.linear"}, **_SWIN),
    "nnssl": Layout(
        (3,),
        None,
        anchors=("stages.0.blocks.0.conv1.conv.weight", "stages.0.0.convs.0.conv.weight"),
        first=("stem.convs.0.conv.weight", "stages.0.0.convs.0.conv.weight"),
        twice=(".all_modules.", "decoder.encoder."),
        encoders=("residual_encoder_unet", "plain_conv_unet"),
        what="convolutional U-Nets of nnU-Net",
        one="convolutional U-Net of nnU-Net",
    ),
    "unimiss": Layout(
        (2, 3),
        None,
        ("norm_new.", "head_new."),
        _STAGES,
        replaced={".attn.sr2D.": ".attn.reduce.2D.", ".attn.sr3D.": ".attn.reduce.3D."},
        anchors=("block1.0.attn.kv.weight",),
        first=("stem.3D.conv.weight", "stem.2D.conv.weight"),
        kinds=(".2D", ".3D"),
        encoders=("pyramid_transformer",),
        what="pyramid transformers of UniMiSS",
        one="pyramid transformer of UniMiSS",
    ),
}


@dataclass(frozen=True)
class Trunk:
    """The network in a file: tensors by this project's names, their keys in the file, and the other keys."""

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    left: tuple[str, ...]


def trunk_of(weights: Mapping[str, Tensor], name: LayoutName) -> Trunk:
    """Find the network in a file of a layout.

    Raises ValueError where the file holds none, holds several, or its first kernel is not the layout's.
    """
    layout, prefix = LAYOUTS[name], _prefix(weights, name)
    tensors, keys, left = dict[str, Tensor](), dict[str, str](), list[str]()
    for key, value in weights.items():
        if any(mark in key for mark in layout.twice):
            continue
        inner = key.removeprefix(prefix)
        if not key.startswith(prefix) or inner.startswith(layout.heads):
            left.append(key)
        else:
            keys[layout.name_of(inner)], tensors[layout.name_of(inner)] = key, value
    first = next((key for key in layout.first if key in tensors), None)
    if first is None:
        raise ValueError(f"layout {name} expects {layout.expects}, named {layout.first[0]}; found {_some(weights)}")
    shape = tuple(tensors[first].shape)
    if len(shape) - 2 not in layout.dims or layout.channels not in (None, shape[1]):
        raise ValueError(f"layout {name} expects {layout.expects}; found {keys[first]} of shape {shape}")
    return Trunk(tensors, keys, tuple(left))


def _prefix(weights: Iterable[str], layout: LayoutName) -> str:
    """Return what stands before every key of the network."""
    own = LAYOUTS[layout]
    found = [
        key.removesuffix(anchor)
        for anchor in own.anchors
        for key in weights
        if (key == anchor or key.endswith(f".{anchor}")) and not any(mark in key for mark in own.twice)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"layout {layout} expects keys of a {own.one}, such as {own.anchors[0]}; found {_some(weights)}"
        )
    raise ValueError(
        f"layout {layout} expects one {own.one}; found {len(found)}, under {', '.join(found)}; "
        "save the one that is meant in a file of its own"
    )


def _some(keys: Iterable[str]) -> str:
    names = list(keys)
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
