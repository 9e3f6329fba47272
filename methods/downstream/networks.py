"""Segmentation networks: MONAI's own classes with our encoders inside, and our own networks where MONAI has none.

Paper:     Hatamizadeh et al., "Swin UNETR", BrainLes 2021; Falk et al., "U-Net", Nature Methods 2019.
Reference: MONAI's ``SwinUNETR`` and ``BasicUNet``. Their networks are instances of them, so a fine-tuned state dict
           loads strictly into the same class in a script without this project. So do those of ``UNETR``
           and ``VNet``.
"""

from math import prod
from typing import TYPE_CHECKING, Literal

from torch import nn

from methods.downstream.fcn import FCN
from methods.downstream.pyramid_unet import PyramidUNet
from methods.downstream.unet import UNet
from methods.downstream.unetr import UNETR
from methods.downstream.vnet import VNet
from methods.encoders import (
    DenseNetEncoder,
    GenesisUNetEncoder,
    PlainConvUNetEncoder,
    PooledUNetEncoder,
    PyramidTransformerEncoder,
    ResidualEncoderUNetEncoder,
    ResNet3DEncoder,
    ResNetEncoder,
    SlicesEncoder,
    SliceTransformerEncoder,
    SwinEncoder,
    UNetEncoder,
    ViTEncoder,
    VNetEncoder,
)
from methods.encoders.unet import norm_layer
from methods.parts.precision import keep_in_float32

if TYPE_CHECKING:
    from monai.networks.nets.basic_unet import BasicUNet
    from monai.networks.nets.swin_unetr import SwinUNETR

SegmentationEncoder = (
    SwinEncoder
    | UNetEncoder
    | PooledUNetEncoder
    | DenseNetEncoder
    | ResNetEncoder
    | ResNet3DEncoder
    | GenesisUNetEncoder
    | PlainConvUNetEncoder
    | ResidualEncoderUNetEncoder
    | PyramidTransformerEncoder
    | SlicesEncoder
    | SliceTransformerEncoder
    | ViTEncoder
    | VNetEncoder
)
Decoder = Literal["unet", "fcn", "pyramid"]
SWIN_UNETR_FACTOR = 12


def segmentation_network(encoder: SegmentationEncoder, num_classes: int, decoder: Decoder = "unet") -> nn.Module:
    """Return a network from images to logits (B, num_classes, *s) that contains the encoder itself, not a copy."""
    if decoder == "fcn":
        return FCN(encoder, num_classes)
    if decoder == "pyramid":
        return PyramidUNet(encoder, num_classes)
    if isinstance(encoder, SwinEncoder):
        return swin_unetr(encoder, num_classes)
    if isinstance(encoder, PooledUNetEncoder):
        return pooled_unet(encoder, num_classes)
    if isinstance(encoder, DenseNetEncoder):
        return dense_unet(encoder, num_classes)
    if isinstance(encoder, ResNetEncoder):
        return residual_unet(encoder, num_classes)
    if isinstance(encoder, ResNet3DEncoder):
        return strided_unet(encoder, num_classes)
    if isinstance(encoder, ViTEncoder):
        return UNETR(encoder, num_classes)
    if isinstance(encoder, VNetEncoder):
        return VNet(encoder, num_classes)
    if isinstance(encoder, GenesisUNetEncoder):
        return UNet(encoder, len(encoder.channels), encoder.channels[-2::-1], dropout=0.0, num_classes=num_classes)
    if isinstance(encoder, PlainConvUNetEncoder | ResidualEncoderUNetEncoder | PyramidTransformerEncoder):
        return conv_unet(encoder, num_classes)
    if isinstance(encoder, SlicesEncoder | SliceTransformerEncoder):
        return slices_unet(encoder, num_classes)
    return basic_unet(encoder, num_classes)


def swin_unetr(encoder: SwinEncoder, num_classes: int) -> "SwinUNETR":
    """Put a Swin encoder into MONAI's SwinUNETR; raise ValueError for a width that SwinUNETR does not take."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    config = encoder.config
    if config.feature_size % SWIN_UNETR_FACTOR:
        raise ValueError(
            f"encoder.feature_size {config.feature_size}: Swin UNETR takes multiples of {SWIN_UNETR_FACTOR} only; "
            f"set encoder.feature_size to {-(-config.feature_size // SWIN_UNETR_FACTOR) * SWIN_UNETR_FACTOR}"
        )
    network = SwinUNETR(
        in_channels=config.in_channels,
        out_channels=num_classes,
        feature_size=config.feature_size,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        dropout_path_rate=config.drop_path,
        use_checkpoint=config.checkpoint_activations,
        spatial_dims=config.spatial_dims,
        use_v2=config.v2,
    )
    network.add_module("swinViT", encoder)
    keep_in_float32(network.out)
    return network


def basic_unet(encoder: UNetEncoder, num_classes: int) -> "BasicUNet":
    """Put a U-Net encoder's levels into MONAI's BasicUNet."""
    from monai.networks.nets.basic_unet import BasicUNet

    config = encoder.config
    network = BasicUNet(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=num_classes,
        features=config.features,
        norm=norm_layer(config.norm),
    )
    for name, level in encoder.named_children():
        setattr(network, name, level)
    keep_in_float32(network.final_conv)
    return network


def pooled_unet(encoder: PooledUNetEncoder, num_classes: int) -> UNet:
    """Add a decoder with the encoder's widths; the encoder's last, pooled map is for pretraining and is left out."""
    widths = encoder.config.features
    return UNet(encoder, len(widths), widths[-2::-1], encoder.config.dropout, num_classes)


def dense_unet(encoder: DenseNetEncoder, num_classes: int) -> UNet:
    """Add a decoder to a DenseNet; its widths halve from a quarter of the coarsest map's, 256 to 16 for DenseNet-121.

    A DenseNet's finest map has half the image's size, so the last block sees only the upsampled map.
    """
    widths = tuple(max(1, encoder.channels[-1] // 4 // 2**level) for level in range(len(encoder.channels)))
    return UNet(encoder, len(encoder.channels), widths, encoder.config.dropout, num_classes)


def residual_unet(encoder: ResNetEncoder, num_classes: int) -> UNet:
    """Add a decoder to a ResNet; its widths halve from four times the first convolution's, 256 to 16 by default.

    A ResNet's finest map has half the image's size, so the last block sees only the upsampled map.
    """
    widths = tuple(max(1, encoder.config.init_features * 4 // 2**level) for level in range(len(encoder.channels)))
    return UNet(encoder, len(encoder.channels), widths, dropout=0.0, num_classes=num_classes)


def strided_unet(encoder: ResNet3DEncoder, num_classes: int) -> UNet:
    """Add a decoder as ``residual_unet`` does, whose steps up are the encoder's steps down.

    Where the finest map has the image's size, the decoder ends there.
    """
    beyond = 0 if prod(encoder.steps[0]) == 1 else 1
    steps = encoder.steps[:0:-1] + encoder.steps[:beyond]
    widths = tuple(max(1, encoder.config.init_features * 4 // 2**level) for level in range(len(steps)))
    return UNet(encoder, len(encoder.channels), widths, dropout=0.0, num_classes=num_classes, steps=steps)


def conv_unet(
    encoder: PlainConvUNetEncoder | ResidualEncoderUNetEncoder | PyramidTransformerEncoder, num_classes: int
) -> UNet:
    """Add a decoder with the widths of the encoder's maps, whose steps up are the encoder's steps down.

    nnU-Net's own decoder begins at random too where it takes pretrained weights. UniMiSS' own is ``PyramidUNet``.
    """
    *skips, _ = encoder.channels
    beyond = 0 if prod(encoder.steps[0]) == 1 else 1
    widths = (*reversed(skips), *[max(1, skips[0] // 2)] * beyond)
    steps = encoder.steps[:0:-1] + encoder.steps[:beyond]
    return UNet(encoder, len(encoder.channels), widths, dropout=0.0, num_classes=num_classes, steps=steps)


def slices_unet(encoder: SlicesEncoder | SliceTransformerEncoder, num_classes: int) -> UNet:
    """Add a 3D decoder as wide as the maps, and half as wide as the finest beyond it."""
    *skips, _ = encoder.channels
    beyond = encoder.stride.bit_length() - 1 - len(skips)
    widths = (*reversed(skips), *[max(1, skips[0] // 2)] * beyond)
    return UNet(encoder, len(encoder.channels), widths, dropout=0.0, num_classes=num_classes)
