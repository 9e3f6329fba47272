"""PlainConvUNetEncoder and ResidualEncoderUNetEncoder: the contracting paths of nnU-Net's networks, in 2D and 3D.

Paper:     Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
           Nature Methods 2021; Isensee et al., "nnU-Net Revisited", MICCAI 2024 (ResEnc presets).
Reference: dynamic-network-architectures 0.4.4, ``PlainConvEncoder`` and ``ResidualEncoder``, of which they are made;
           MIC-DKFZ/nnUNet @ 0e495086, ``get_network_via_name.py`` (ResEncL: the defaults here, 3D).
           Keys are the package's, without its second names: it registers each convolution and norm once by name and
           once more under ``all_modules``, as one tensor under two keys. ``doubled_keys`` adds them again.
           Weights begin as nnU-Net's do: He's for a slope of 0.01, and residual blocks as the identity.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder

if TYPE_CHECKING:
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder

PerStage = tuple[PositiveInt | tuple[PositiveInt, ...], ...]
SLOPE = 1e-2
# Where the package registers again what has a name: the convolution first, then the norm (there is no dropout).
PLACES = {"conv": 0, "norm": 1}
_NAMED = re.compile(r"(?P<block>.*)\.(?P<kind>conv|norm)\.(?P<tensor>[^.]+)$")


class ConvUNetConfig(FrozenConfig):
    """What both networks say of each of their stages, finest first.

    features        channels of each stage's map
    stage_strides   how many times coarser each stage's map is than the one before, or than the image: one number for
                    all axes, or one for each
    kernel_sizes    sides of each stage's kernels, written alike; one number for all stages
    blocks          convolutions of each stage, or its residual blocks
    norm            instance is nnU-Net's. It leaves each channel of a map with nearly the same mean for every image:
                    methods that average the last map (SimSiam, VoCo, a pooled classifier, a probe) need batch
    """

    spatial_dims: Literal[2, 3]
    in_channels: PositiveInt = 1
    features: tuple[PositiveInt, ...] = (32, 64, 128, 256, 320, 320)
    stage_strides: PerStage = (1, 2, 2, 2, 2, 2)
    kernel_sizes: PositiveInt | PerStage = 3
    blocks: tuple[PositiveInt, ...]
    norm: Literal["instance", "batch"] = "instance"

    @model_validator(mode="after")
    def _agree_on_stages_and_axes(self) -> "ConvUNetConfig":
        listed: dict[str, Any] = {"stage_strides": self.stage_strides, "blocks": self.blocks}
        if isinstance(self.kernel_sizes, tuple):
            listed["kernel_sizes"] = self.kernel_sizes
        for name, values in listed.items():
            if len(values) != len(self.features):
                raise ValueError(
                    f"{name} has {len(values)} values, features {len(self.features)}; give one for each stage"
                )
            if wrong := [value for value in values if isinstance(value, tuple) and len(value) != self.spatial_dims]:
                raise ValueError(
                    f"{name} has {wrong[0]} for {self.spatial_dims} axes; give one number, or {self.spatial_dims}"
                )
        if even := [side for kernel in self.kernels for side in kernel if side % 2 == 0]:
            raise ValueError(f"kernel_sizes has {even[0]}: an even kernel shifts its map; use odd ones, such as 3")
        return self

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """The strides of each stage, one per axis."""
        return self._per_axis(self.stage_strides)

    @property
    def kernels(self) -> tuple[tuple[int, ...], ...]:
        """The sides of each stage's kernels, one per axis."""
        sides = self.kernel_sizes
        return self._per_axis((sides,) * len(self.features) if isinstance(sides, int) else sides)

    def _per_axis(self, values: PerStage) -> tuple[tuple[int, ...], ...]:
        return tuple((value,) * self.spatial_dims if isinstance(value, int) else value for value in values)


class _ConvUNetEncoder(Encoder):
    """What both encoders share: their maps are their stages'."""

    stages: nn.Sequential

    def __init__(self, config: ConvUNetConfig) -> None:
        super().__init__()
        self.spatial_dims = config.spatial_dims
        self.in_channels = config.in_channels
        self.channels = config.features
        self.means_differ = config.norm != "instance"
        self._steps = config.steps
        self.stride = max(self.strides)

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """How many times coarser each map is than the one before, or than the image, along each axis."""
        return self._steps

    @property
    def strides(self) -> tuple[int, ...]:
        """The numbers of which input sizes must be multiples, one per axis."""
        return tuple(prod(step[axis] for step in self._steps) for axis in range(self.spatial_dims))

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the stages' maps, finest first."""
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(maps[-1] if maps else x))
        return maps


class PlainConvUNetEncoder(_ConvUNetEncoder):
    """The stages of nnU-Net's ``PlainConvUNet``: convolution, norm, leaky ReLU; each stage's first one is strided."""

    class Config(ConvUNetConfig):
        """Defaults are nnU-Net's usual ones in 3D, 6 stages from 32 to 320 channels."""

        name: Literal["plain_conv_unet"] = "plain_conv_unet"
        blocks: tuple[PositiveInt, ...] = (2, 2, 2, 2, 2, 2)

    def __init__(self, config: Config) -> None:
        check_package(config.name)
        from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder

        super().__init__(config)
        built = PlainConvEncoder(n_conv_per_stage=list(config.blocks), **_arguments(config))
        self.config = config
        self.rounds_up = True
        self.stages = _prepared(built).stages

    def levels(self) -> list[nn.Module]:
        """Return the stages."""
        return list(self.stages)


class ResidualEncoderUNetEncoder(_ConvUNetEncoder):
    """The stem and stages of nnU-Net's ``ResidualEncoderUNet``; by default those of ResEncL."""

    class Config(ConvUNetConfig):
        """Defaults are those of ResEncL, in which OpenMind's CNNs are released too.

        zero_init_residual   begin with each block as the identity, by a last norm of weight 0, as nnU-Net does
        """

        name: Literal["residual_encoder_unet"] = "residual_encoder_unet"
        blocks: tuple[PositiveInt, ...] = (1, 3, 4, 6, 6, 6)
        zero_init_residual: bool = True

    def __init__(self, config: Config) -> None:
        check_package(config.name)
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
        from dynamic_network_architectures.initialization.weight_init import init_last_bn_before_add_to_0

        super().__init__(config)
        built = _prepared(ResidualEncoder(n_blocks_per_stage=list(config.blocks), **_arguments(config)))
        if config.zero_init_residual:
            built.apply(init_last_bn_before_add_to_0)
        self.config = config
        assert built.stem is not None
        self.stem = built.stem
        self.stages = built.stages

    def levels(self) -> list[nn.Module]:
        """Return the stem with the first stage, and the other stages."""
        first, *others = self.stages
        return [nn.Sequential(self.stem, first), *others]


def check_package(encoder: str) -> None:
    """Raise ValueError where nnU-Net's package of networks is not installed."""
    if find_spec("dynamic_network_architectures") is None:
        raise ValueError(
            f"encoder {encoder}: its package is not installed; expected dynamic-network-architectures; type: pip "
            "install --no-deps 'dynamic-network-architectures>=0.4.4,<0.5' (the encoder uses none of what it names)"
        )


def doubled_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the package's second names too, as its own networks save and load it strictly."""
    doubled = dict[str, Tensor]()
    for key, value in state.items():
        doubled[key] = value
        if found := _NAMED.match(key):
            doubled[f"{found['block']}.all_modules.{PLACES[found['kind']]}.{found['tensor']}"] = value
    return doubled


def package_arguments(config: ConvUNetConfig) -> dict[str, Any]:
    """Return the arguments of the package's encoders and networks, in plain types; classes by their full names."""
    dims = config.spatial_dims
    return {
        "n_stages": len(config.features),
        "features_per_stage": list(config.features),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [list(kernel) for kernel in config.kernels],
        "strides": [list(step) for step in config.steps],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{config.norm}norm.{config.norm.capitalize()}Norm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _arguments(config: ConvUNetConfig) -> dict[str, Any]:
    """Return the arguments with the classes themselves, and the input channels."""
    flat = config.spatial_dims == 2
    convolution = nn.Conv2d if flat else nn.Conv3d
    instance, batch = (nn.InstanceNorm2d, nn.BatchNorm2d) if flat else (nn.InstanceNorm3d, nn.BatchNorm3d)
    classes = {"conv_op": convolution, "norm_op": instance if config.norm == "instance" else batch}
    return {
        **package_arguments(config),
        **classes,
        "nonlin": nn.LeakyReLU,
        "input_channels": config.in_channels,
    }


def _prepared(built: "PlainConvEncoder | ResidualEncoder") -> Any:
    """Draw the weights, and leave each tensor its first name."""
    from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He

    class _ByName(ConvDropoutNormReLU):
        """A block whose layers have one name each."""

        def forward(self, x: Tensor) -> Tensor:
            """Pass the layers in turn."""
            x = self.norm(self.conv(x))
            return self.nonlin(x) if hasattr(self, "nonlin") else x

    for module in list(built.modules()):
        if isinstance(module, ConvDropoutNormReLU):
            del module.all_modules
            module.__class__ = _ByName
    return built.apply(InitWeights_He(SLOPE))
