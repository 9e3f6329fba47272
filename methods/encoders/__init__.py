"""Encoders: the networks that a pretraining trains and a downstream task builds on.

Each has ``features(x) -> maps, finest first``, ``channels`` of these maps, ``spatial_dims``, ``in_channels``, and
``strides``, of which input sizes must be multiples. State dicts of MONAI's networks carry MONAI's own keys.

MONAI takes seconds to import, more than torch, and every process of a run imports this package: here and
elsewhere, the functions that need MONAI import it.
"""

from methods.encoders.base import Encoder
from methods.encoders.conv_unets import PlainConvUNetEncoder, ResidualEncoderUNetEncoder
from methods.encoders.densenet import DenseNetEncoder
from methods.encoders.genesis_unet import GenesisUNetEncoder
from methods.encoders.pooled_unet import PooledUNetEncoder
from methods.encoders.pyramid_transformer import PyramidTransformerEncoder
from methods.encoders.resnet import ResNetEncoder
from methods.encoders.resnet3d import ResNet3DEncoder
from methods.encoders.slice_transformer import SliceTransformerEncoder
from methods.encoders.slices import SlicesEncoder
from methods.encoders.swin_unetr import SwinEncoder
from methods.encoders.unet import UNetEncoder
from methods.encoders.vit import ViTEncoder
from methods.encoders.vnet import VNetEncoder

__all__ = [
    "ENCODERS",
    "DenseNetEncoder",
    "Encoder",
    "GenesisUNetEncoder",
    "PlainConvUNetEncoder",
    "PooledUNetEncoder",
    "PyramidTransformerEncoder",
    "ResNet3DEncoder",
    "ResNetEncoder",
    "ResidualEncoderUNetEncoder",
    "SliceTransformerEncoder",
    "SlicesEncoder",
    "SwinEncoder",
    "UNetEncoder",
    "VNetEncoder",
    "ViTEncoder",
]

ENCODERS: dict[str, type[Encoder]] = {
    "swin_unetr": SwinEncoder,
    "unet": UNetEncoder,
    "pooled_unet": PooledUNetEncoder,
    "densenet": DenseNetEncoder,
    "resnet": ResNetEncoder,
    "resnet3d": ResNet3DEncoder,
    "plain_conv_unet": PlainConvUNetEncoder,
    "residual_encoder_unet": ResidualEncoderUNetEncoder,
    "genesis_unet": GenesisUNetEncoder,
    "slices": SlicesEncoder,
    "slice_transformer": SliceTransformerEncoder,
    "pyramid_transformer": PyramidTransformerEncoder,
    "vit": ViTEncoder,
    "vnet": VNetEncoder,
}
