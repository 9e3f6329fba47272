"""Class tokens: what UniMiSS and USST take of volumes and of slices, through one transformer and one head.

Paper:     Xie et al., "UniMiSS", ECCV 2022.
Reference: YtongXie/UniMiSS-code @ 68be0a4, ``UniMiSS/main.py`` and ``data_loader3D.py``.
Shapes:    B samples, V views, C channels, D slices, *s spatial axes, K outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.views.augmentation import Augmentation
from data.views.transforms import Blur, Gamma
from methods.encoders.base import Encoder
from methods.encoders.pyramid_transformer import PyramidTransformerEncoder, switchable_transformer
from methods.encoders.slices import flat_slices
from methods.parts.multi_crop import AreaCrops
from methods.parts.precision import Head, at_least_float32

VOLUME_SIZE = (16, 96, 96)
LARGE: dict[str, Any] = {"num": 2, "area": (0.14, 1.0)}
AUGMENT: dict[str, Any] = {
    "flip_axes": ("D", "H", "W"),
    "flip_prob": 0.5,
    "scale": (-0.25, 0.25),
    "scale_prob": 0.8,
    "shift": (-0.4, 0.4),
    "shift_prob": 0.8,
    "noise_sigma": (0.0, 0.3),
    "noise_prob": 0.1,
    "transforms": (Blur(sigma=(0.1, 2.0), isotropic=True, prob=0.5), Gamma(log_gamma=(-0.36, 0.41), prob=0.8)),
}
SMALL: dict[str, Any] = {"num": 0, "area": (0.05, 0.14)}
DEFAULTS = {"large_crops": LARGE, "small_crops": SMALL, "augment": AUGMENT}
LARGE_CROPS, AUGMENTATION = AreaCrops(**LARGE), Augmentation(**AUGMENT)


def with_size(crops: AreaCrops, spatial_dims: int) -> AreaCrops:
    """Return crops of volumes with the paper's size where a config gives none."""
    return crops.model_copy(update={"size": VOLUME_SIZE}) if crops.size is None and spatial_dims == 3 else crops


def learning_both(encoder: Encoder, method: str) -> PyramidTransformerEncoder:
    """Let an encoder of volumes learn from their slices; raise ValueError where it has no embeddings for slices."""
    network = switchable_transformer(encoder)
    if network.spatial_dims == 3:
        if not network.config.switchable:
            raise ValueError(
                f"encoder.switchable {network.config.switchable}: {method} passes slices of volumes through the "
                "embeddings of images; set encoder.switchable=true"
            )
        network.learn_images()
    return network


def class_tokens(encoder: Encoder, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d"]:
    """Return the class tokens of images, at least in float32."""
    return at_least_float32(encoder.features(images, switchable_transformer(encoder).class_tokens)[0])


def token_scores(encoder: Encoder, head: Head, views: Sequence[Float[Tensor, "b c ..."]]) -> Float[Tensor, "v b k"]:
    """Return what a head makes of the class token of each view."""
    return torch.stack([head(class_tokens(encoder, view)) for view in views])


def slice_scores(encoder: Encoder, head: Head, views: Sequence[Float[Tensor, "b c d h w"]]) -> Float[Tensor, "v b k"]:
    """Return the mean over its slices of what a head makes of the class token of each slice of a view.

    The head's last layer is linear, without a bias: it takes the mean of its inputs instead, which is the same.
    """
    vectors = [head[:-1](class_tokens(encoder, flat_slices(view))).unflatten(0, (len(view), -1)) for view in views]
    return head[-1](torch.stack([one.mean(1) for one in vectors]))
