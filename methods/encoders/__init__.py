"""Encoders: what a pretraining trains and a downstream task builds on.

Each has ``features(x) -> maps, finest first``, ``channels`` of these maps, ``spatial_dims``, ``in_channels``, and
``stride``, which input sizes must be a multiple of. State dicts carry MONAI's own keys.
"""

from methods.encoders.base import Encoder
from methods.encoders.swin_unetr import SwinEncoder
from methods.encoders.unet import UNetEncoder

__all__ = ["ENCODERS", "Encoder", "SwinEncoder", "UNetEncoder"]

ENCODERS = {"swin_unetr": SwinEncoder, "unet": UNetEncoder}
