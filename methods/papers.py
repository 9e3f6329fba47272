"""Papers' sizes: the images, the encoder and the settings of size with which each method was published.

They are stated only here: `raydiology methods` counts parameters from them. Other fields are the configs' defaults.
"""

from dataclasses import dataclass, field
from typing import Any, get_args

from methods.base import FrozenConfig
from methods.encoders import (
    DenseNetEncoder,
    PooledUNetEncoder,
    PyramidTransformerEncoder,
    ResNet3DEncoder,
    ResNetEncoder,
    SliceTransformerEncoder,
    SwinEncoder,
    ViTEncoder,
)
from methods.encoders.resnet import Depth
from methods.encoders.resnet3d import NetworkName


@dataclass(frozen=True)
class PaperSize:
    """One pretraining of a paper.

    fields        fields of the method's config, besides the variant
    num_classes   that a supervised pretraining learns
    """

    images: str
    encoder: FrozenConfig
    fields: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 0


@dataclass(frozen=True)
class PaperNetwork:
    """A classifier of a paper: an encoder, and a linear layer from its averaged last map.

    size   of the images that it sees, along the encoder's axes
    """

    name: str
    encoder: FrozenConfig
    size: tuple[int, ...]
    num_classes: int


def _proxy_sizes(volumes: dict[str, Any], pictures: dict[str, Any]) -> tuple[PaperSize, ...]:
    """Return seed 004's sizes: cubes of 128 voxels for its U-Net, pictures of 224 pixels for DenseNet-121."""
    cubes = (("pancreas CT", 1), ("UK Biobank brains, T1 and FLAIR", 2), ("BraTS brains, four sequences", 4))
    fundus = DenseNetEncoder.Config(spatial_dims=2, in_channels=3)
    return (
        *(PaperSize(name, PooledUNetEncoder.Config(spatial_dims=3, in_channels=n), volumes) for name, n in cubes),
        PaperSize("fundus photographs", fundus, pictures),
    )


_CLUSTERED = (
    PaperSize("CT and MR slices", ResNetEncoder.Config(spatial_dims=2, grey_to_rgb=True)),
    PaperSize("CT and MR volumes", ResNetEncoder.Config(spatial_dims=3)),
)
_RESTORED = (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3)),)
_SWITCHED = (
    PaperSize("radiographs", PyramidTransformerEncoder.Config(spatial_dims=2, in_channels=3, switchable=False)),
    PaperSize("CT volumes", PyramidTransformerEncoder.Config(spatial_dims=3)),
)
_RELATED = (PaperSize("CT and MR volumes", SliceTransformerEncoder.Config.model_validate({"variant": "released"})),)

# Seed 001, section 4.2; seed 002, Table 9; seed 004, sections 3 and 4. Seed 004's patches measure 39 voxels (32 in
# CPC) and 66 pixels (74 in CPC); its encoders see 32 and 64 of them. SimMIM is a rival in seed 002, there with
# UNETR's transformer: parameters are counted with the encoder of its other rows, and so are those of the rivals after
# it. Seed 000 trains ResNet-50 on slices and a 3D convolutional network of no name on volumes: parameters are counted
# with ResNet-50 for both. BYOL and VICReg are in none of these papers, and are counted with the encoder of their kin.
PAPER_SIZES: dict[str, tuple[PaperSize, ...]] = {
    "simsiam": (
        PaperSize(
            "CT slices",
            SwinEncoder.Config(spatial_dims=2, drop_path=0.1),
            {"crops": {"size": (96, 96), "iou": (0.3, 0.6)}},
        ),
    ),
    "voco": (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3)),),
    "simmim": (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3), {"crop_size": (64, 96, 96)}),),
    "mae": (
        PaperSize(
            "photographs", ViTEncoder.Config(spatial_dims=2, in_channels=3, positions="sin_cos", qkv_bias=True)
        ),
        PaperSize("CT volumes", ViTEncoder.Config(spatial_dims=3)),
    ),
    "dino": (
        PaperSize(
            "photographs",
            ViTEncoder.Config(
                spatial_dims=2, in_channels=3, hidden_size=384, mlp_dim=1536, num_heads=6, qkv_bias=True
            ),
        ),
    ),
    "spark": (
        PaperSize("photographs", ResNetEncoder.Config(spatial_dims=2, in_channels=3)),
        PaperSize("CT volumes", ResNetEncoder.Config(spatial_dims=3)),
    ),
    "gl_mae": (PaperSize("CT volumes", ViTEncoder.Config(spatial_dims=3, positions="sin_cos", qkv_bias=True)),),
    **dict.fromkeys(
        (
            "models_genesis",
            "pcrl",
            "pcrlv2",
            "transvw",
            "volume_fusion",
            "swin_pretext",
            "position_label",
            "rubiks_cube",
            "rubiks_cube_plus",
            "jigsaw_clustering",
            "gvsl",
            "swinmm",
        ),
        _RESTORED,
    ),
    "universal_model": (PaperSize("CT and MR volumes", SwinEncoder.Config(spatial_dims=3), num_classes=2),),
    "unimiss": _SWITCHED,
    "usst": _SWITCHED,
    "swav": _CLUSTERED,
    "deepcluster_v2": _CLUSTERED,
    "simclr": _CLUSTERED[:1],
    "byol": _CLUSTERED[:1],
    "moco_v2": _CLUSTERED[:1],
    "moco_v3": (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3)),),
    "barlow_twins": _CLUSTERED[:1],
    "vicreg": _CLUSTERED[:1],
    "vicregl": (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3)),),
    "c2l": (PaperSize("radiographs", ResNetEncoder.Config(spatial_dims=2, depth=18, grey_to_rgb=True)),),
    "pgl": _CLUSTERED[1:],
    "jssl_mask": _RELATED,
    "jssl_cluster": _RELATED,
    "svdnet": tuple(
        PaperSize("photographs, colours as slices", ResNet3DEncoder.Config(network=network), num_classes=1000)
        for network in get_args(NetworkName)
    ),
    "svdnet_detection": tuple(
        PaperSize(
            "photographs, colours as slices", ResNet3DEncoder.Config(network=network, norm="group"), num_classes=80
        )
        for network in get_args(NetworkName)
    ),
    "rotation": _proxy_sizes({"side": 128}, {"side": 224}),
    "patch_location": _proxy_sizes({}, {"patches": {"size": 64, "jitter": 8}}),
    "jigsaw": _proxy_sizes({}, {"patches": {"size": 64, "jitter": 8}}),
    "exemplar": _proxy_sizes({"side": 128}, {"side": 224}),
    "cpc": _proxy_sizes(
        {}, {"patches": {"grid": 5, "overlap": 0.5, "span": 0.917, "size": 64}, "skip_rows": 1, "border": "zero"}
    ),
}

# Seed 003, Table II: photographs of 224 x 224 pixels, whose colours are the depth of a 3D network's input.
PAPER_NETWORKS: tuple[PaperNetwork, ...] = (
    *(
        PaperNetwork(
            f"resnet_{depth}", ResNetEncoder.Config(spatial_dims=2, in_channels=3, depth=depth), (224, 224), 1000
        )
        for depth in get_args(Depth)
    ),
    *(
        PaperNetwork(network, ResNet3DEncoder.Config(network=network), (3, 224, 224), 1000)
        for network in get_args(NetworkName)
    ),
)
