"""Segmentation networks: MONAI's own classes with an encoder put into them, and our own where MONAI has none.

Paper:     Hatamizadeh et al., "Swin UNETR", BrainLes 2021; Falk et al., "U-Net", Nature Methods 2019.
Reference: MONAI's ``SwinUNETR`` and ``BasicUNet``. Their networks are instances of them, so a fine-tuned state dict
           loads strictly into the same class in a script without this project.
"""

from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import nn

from methods.downstream.pooled_unet import PooledUNet
from methods.encoders import PooledUNetEncoder, SwinEncoder, UNetEncoder

SegmentationEncoder = SwinEncoder | UNetEncoder | PooledUNetEncoder
SWIN_UNETR_FACTOR = 12


def segmentation_network(encoder: SegmentationEncoder, num_classes: int) -> nn.Module:
    """Return a network from images to logits (B, num_classes, *s) that contains the encoder itself, not a copy."""
    if isinstance(encoder, SwinEncoder):
        return swin_unetr(encoder, num_classes)
    if isinstance(encoder, PooledUNetEncoder):
        return PooledUNet(encoder, num_classes)
    return basic_unet(encoder, num_classes)


def swin_unetr(encoder: SwinEncoder, num_classes: int) -> SwinUNETR:
    """Put a Swin encoder into MONAI's SwinUNETR; raise ValueError for a width that SwinUNETR does not take."""
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
    )
    network.swinViT = encoder
    return network


def basic_unet(encoder: UNetEncoder, num_classes: int) -> BasicUNet:
    """Put a U-Net encoder's levels into MONAI's BasicUNet."""
    config = encoder.config
    network = BasicUNet(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=num_classes,
        features=config.features,
    )
    for name, level in encoder.named_children():
        setattr(network, name, level)
    return network
