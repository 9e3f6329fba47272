"""ResNet3DEncoder: 3D residual networks in forms that share every parameter and differ in their strides.

Paper:     Zhang et al., "Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised 3D
           Pre-training" (SVD-Net, seed 003), sections III-B and III-C: pretrained with their depth kept, the weights
           pass to a network that strides as a task needs.
Reference: urmagicsmine/CSPR @ 390a413, ``resnet3d.py``; urmagicsmine/MP3D @ 4ab3ea1, ``modified_p3d.py`` (P3D-63).
           With one input channel and 1000 classes, ResNet3D-18, 34, 50 and V1c-18 have 33,673,000, 63,982,632,
           48,204,072 and 33,734,984 parameters.
           Blocks are MONAI's, and the keys those of MONAI's ``ResNet``; its whole network does not serve: strides
           of the pool and of the stages are fixed, all but the first norm are batch norm whatever is asked for, and
           there is neither a deep stem nor P3D. Weights begin as in MONAI's; the released code leaves torch's own.
           For lesions, the released P3D pools along the depth between stages; here, the stages stride.
           With ACS convolutions, keys and shapes are those of the 2D networks of torchvision.
"""

from dataclasses import dataclass
from itertools import cycle
from math import prod
from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import ADDED, FrozenConfig
from methods.encoders.acs import ACSConv3d, use_acs
from methods.encoders.base import Encoder
from methods.encoders.pseudo3d import ORDERS, PseudoBlock
from methods.encoders.resnet import BLOCKS, STAGES, Depth, ResNetEncoder, levels_of

NetworkName = Literal["resnet3d_18", "resnet3d_34", "resnet3d_50", "resnet3d_v1c_18", "p3d_63"]
Strides = Annotated[tuple[PositiveInt, ...], Field(min_length=6, max_length=6)]
Triple = tuple[int, int, int]
KEPT: Strides = (1, 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class _Architecture:
    """The blocks of each stage and their kind; ``depth`` is that of the ``resnet`` with the same weights, if any."""

    blocks: tuple[int, ...]
    kind: Literal["basic", "bottleneck", "pseudo"] = "basic"
    deep_stem: bool = False
    depth: Depth | None = None

    @property
    def expansion(self) -> int:
        return 1 if self.kind == "basic" else 4

    @property
    def last_norm(self) -> str:
        return {"basic": "bn2", "bottleneck": "bn3", "pseudo": "bn4"}[self.kind]


ARCHITECTURES: dict[NetworkName, _Architecture] = {
    "resnet3d_18": _Architecture(BLOCKS[18], depth=18),
    "resnet3d_34": _Architecture(BLOCKS[34], depth=34),
    "resnet3d_50": _Architecture(BLOCKS[50], "bottleneck", depth=50),
    "resnet3d_v1c_18": _Architecture(BLOCKS[18], deep_stem=True),
    "p3d_63": _Architecture(BLOCKS[50], "pseudo"),
}


class ResNet3DEncoder(Encoder):
    """Five feature maps: of the stem, and of the four stages; depth is kept, or strided as the config says."""

    class Config(FrozenConfig):
        """Defaults are ResNet3D-18's, as it is pretrained.

        network               ``resnet3d_v1c_18`` has a stem of three 3x3x3 convolutions in place of one of 7x7x7
        depth_strides         along the depth: kept (1 everywhere, for a depth of any length), vanilla (those of the
                              plane), or one number each for stem, pool and the four stages. No weight depends on it
        plane_strides         along height and width, in the same order. No weight depends on it; a pool whose
                              strides are all 1 is left out
        norm, norm_groups     group norm has ``norm_groups`` groups of channels
        init_features         channels of the stem; the stages have multiples of them
        zero_init_residual    begin with each block as the identity, by a last norm of weight 0, as released for
                              the ResNets
        convolutions          full, or acs: 2D kernels, a third of them for each of the three planes (acs.py)
        """

        name: Literal["resnet3d"] = "resnet3d"
        spatial_dims: Literal[3] = 3
        in_channels: PositiveInt = 1
        network: NetworkName = "resnet3d_18"
        depth_strides: Literal["kept", "vanilla"] | Strides = "kept"
        plane_strides: Strides = (2, 2, 1, 2, 2, 2)
        norm: Literal["batch", "group"] = "batch"
        norm_groups: PositiveInt = 32
        init_features: PositiveInt = 64
        zero_init_residual: bool = False
        convolutions: Annotated[Literal["full", "acs"], ADDED] = "full"

        @model_validator(mode="after")
        def _divides_its_channels(self) -> "ResNet3DEncoder.Config":
            if (deep := ARCHITECTURES[self.network].deep_stem) and self.init_features % 2:
                raise ValueError(
                    f"init_features {self.init_features}: the stem of {self.network} begins with half as many "
                    f"channels; use an even number, such as {self.init_features + 1}"
                )
            narrowest = self.init_features // (2 if deep else 1)
            if self.norm == "group" and narrowest % self.norm_groups:
                raise ValueError(
                    f"norm_groups {self.norm_groups} does not divide the {narrowest} channels of the narrowest norm; "
                    "lower norm_groups, or raise init_features"
                )
            return self

        @model_validator(mode="after")
        def _has_cubic_kernels(self) -> "ResNet3DEncoder.Config":
            if self.convolutions == "acs" and ARCHITECTURES[self.network].kind == "pseudo":
                raise ValueError(
                    f"convolutions acs with network {self.network}, whose kernels lie within slices or across them; "
                    "take full convolutions, or another network, such as resnet3d_50"
                )
            return self

        @property
        def strides(self) -> tuple[Triple, ...]:
            """The strides (D, H, W) of stem, pool and the four stages."""
            forms = {"kept": KEPT, "vanilla": self.plane_strides}
            depth = forms[self.depth_strides] if isinstance(self.depth_strides, str) else self.depth_strides
            return tuple((along, plane, plane) for along, plane in zip(depth, self.plane_strides, strict=True))

    def __init__(self, config: Config) -> None:
        from monai.networks.layers.utils import get_norm_layer

        super().__init__()
        built, (stem, pool, *stages) = ARCHITECTURES[config.network], config.strides
        widths = [config.init_features * 2**stage for stage in range(len(STAGES))]
        norm = _norm_of(config)
        self.conv1 = _stem(config, stem)
        self.bn1 = get_norm_layer(norm, spatial_dims=3, channels=widths[0])
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if prod(pool) == 1 else nn.MaxPool3d(3, stride=pool, padding=1)
        taken, orders = widths[0], cycle(ORDERS)
        for name, width, blocks, stride in zip(STAGES, widths, built.blocks, stages, strict=True):
            strides = [stride, *[(1, 1, 1)] * (blocks - 1)]
            layers: list[nn.Module] = []
            for own in strides:
                shortcut = _shortcut(taken, width * built.expansion, own, norm)
                layers.append(_block(built.kind, taken, width, own, shortcut, norm, next(orders)))
                taken = width * built.expansion
            self.add_module(name, nn.Sequential(*layers))
        if config.convolutions == "acs":
            use_acs(self)
        _begin(self, built.last_norm if config.zero_init_residual else None)
        self.config = config
        self.spatial_dims = 3
        self.in_channels = config.in_channels
        self.channels = (widths[0], *(width * built.expansion for width in widths))
        self.stride = max(self.strides)
        self.rounds_up = True
        self.means_differ = config.norm == "batch" or config.norm_groups < self.channels[-1]

    @property
    def steps(self) -> tuple[Triple, ...]:
        """How many times coarser each map is than the one before, or than the image, along D, H and W."""
        stem, pool, first, *others = self.config.strides
        joined = (pool[0] * first[0], pool[1] * first[1], pool[2] * first[2])
        return (stem, joined, *others)

    @property
    def strides(self) -> tuple[int, ...]:
        """The numbers of which input sizes must be multiples, along D, H and W."""
        return tuple(prod(step[axis] for step in self.steps) for axis in range(3))

    def maps(self, x: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """Return the five maps, finest first; sizes that are no multiples of the strides are rounded up."""
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(maps[-1] if maps else x))
        return maps

    def levels(self) -> list[nn.Module]:
        """Return the layers from each map to the next."""
        return levels_of(self)


def vanilla_resnet(config: ResNet3DEncoder.Config) -> ResNetEncoder.Config | None:
    """Return the encoder ``resnet`` with the same keys, shapes and maps, or None where there is none."""
    built = ARCHITECTURES[config.network]
    vanilla = ResNet3DEncoder.Config(depth_strides="vanilla").strides
    if built.depth is None or (config.norm, config.strides, config.convolutions) != ("batch", vanilla, "full"):
        return None
    return ResNetEncoder.Config(
        spatial_dims=3, in_channels=config.in_channels, depth=built.depth, init_features=config.init_features
    )


def _norm_of(config: ResNet3DEncoder.Config) -> Any:
    """Return MONAI's name and arguments for the norm."""
    return "batch" if config.norm == "batch" else ("group", {"num_groups": config.norm_groups})


def _stem(config: ResNet3DEncoder.Config, stride: Triple) -> nn.Module:
    """Return the convolutions before the first norm of all channels; the first of them strides."""
    from monai.networks.layers.utils import get_norm_layer

    width, built = config.init_features, ARCHITECTURES[config.network]
    if not built.deep_stem:
        along = 1 if built.kind == "pseudo" else 7
        padding = (along // 2, 3, 3)
        return nn.Conv3d(config.in_channels, width, (along, 7, 7), stride=stride, padding=padding, bias=False)
    norm, half = _norm_of(config), width // 2
    return nn.Sequential(
        nn.Conv3d(config.in_channels, half, 3, stride=stride, padding=1, bias=False),
        get_norm_layer(norm, spatial_dims=3, channels=half),
        nn.ReLU(inplace=True),
        nn.Conv3d(half, half, 3, padding=1, bias=False),
        get_norm_layer(norm, spatial_dims=3, channels=half),
        nn.ReLU(inplace=True),
        nn.Conv3d(half, width, 3, padding=1, bias=False),
    )


def _shortcut(taken: int, given: int, stride: Triple, norm: Any) -> nn.Module | None:
    """Return what a block's input passes to be added to its output; it has weights only where channels change.

    So that all forms share all parameters, an input of as many channels is only subsampled.
    """
    from monai.networks.layers.utils import get_norm_layer

    if taken != given:
        return nn.Sequential(
            nn.Conv3d(taken, given, 1, stride=stride, bias=False),
            get_norm_layer(norm, spatial_dims=3, channels=given),
        )
    return None if prod(stride) == 1 else nn.AvgPool3d(1, stride=stride)


def _block(
    kind: str, taken: int, width: int, stride: Triple, shortcut: nn.Module | None, norm: Any, order: Any
) -> nn.Module:
    from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck

    if kind == "pseudo":
        return PseudoBlock(taken, width, stride, shortcut, norm, order)
    block: Any = {"basic": ResNetBlock, "bottleneck": ResNetBottleneck}[kind]  # MONAI's type of stride is int
    return block(taken, width, spatial_dims=3, stride=stride, downsample=shortcut, norm=norm)


def _begin(encoder: nn.Module, last_norm: str | None) -> None:
    """Draw the convolutions' weights; a block's norm of the given name begins at 0."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv3d | ACSConv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif last_norm is not None and name.startswith("layer") and name.endswith(f".{last_norm}"):
            nn.init.zeros_(module.get_parameter("weight"))
