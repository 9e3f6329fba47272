"""MAE: a transformer sees the visible patches of a crop only, and a small decoder predicts the hidden ones.

Paper:     He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022; for volumes as MAE3D in VoCo's
           comparison (seed 002, Tables 1 to 5), which is Chen et al., "Masked Image Modeling Advances 3D Medical
           Image Analysis", WACV 2023.
Reference: facebookresearch/mae @ efb2a80; chenz53/MIM-Med3D @ 75b0d9f, ``vitmae_base_m0.75.yaml``, is ``volumes``.
Variants:  each flag is a field of the config and can be set on its own.
                              paper                           volumes
           normalise_patches  yes: a patch's own mean and     no
                              deviation, its better results
           distance           squared                         absolute
           decoder_heads      16                              8
           Here there is no class token: the loss does not touch it. Decoders have fixed positions; that of MIM-Med3D
           learns them. Crops keep the scale of the scan; MAE resizes 20 to 100 % of a photograph to one size.
           Both codes round the number of hidden patches, up and down; here it is rounded up.
Shapes:    B samples, C channels, *s spatial axes, *g patches along each, N in all, K visible, p voxels of one.
"""

from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from data.views.augmentation import Augmentation, augment, cut, draw
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, Losses, Method, Views
from methods.encoders import Encoder
from methods.encoders.vit import ViTEncoder, transformer_of, visible_tokens
from methods.parts.chunks import in_chunks
from methods.parts.hidden_blocks import (
    Distance,
    block_error,
    blocks_of,
    count_hidden,
    draw_hidden,
    mean_of_visible,
    normalised,
    visible_places,
)
from methods.parts.sizes import USUAL_SIDE, check_stride, per_axis
from methods.parts.token_decoder import TokenDecoder
from methods.parts.variants import completed_by

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"normalise_patches": True, "distance": "squared", "decoder_heads": 16},
    "volumes": {"normalise_patches": False, "distance": "absolute", "decoder_heads": 8},
}


def encode_visible(
    encoder: ViTEncoder, images: Float[Tensor, "b c *s"], places: Int64[Tensor, "b k"]
) -> Float[Tensor, "b k d"]:
    """Return the last tokens of the visible patches, which attend to one another only; in the encoder's chunks."""
    visible = visible_tokens(encoder.embed(images), places)
    return in_chunks(encoder, lambda tokens: encoder.attend(tokens)[-1], visible, encoder.num_chunks)


class MAE(Method):
    """An encoder ``vit`` that sees visible patches, and a decoder of tokens."""

    encoders: ClassVar[tuple[str, ...]] = ("vit",)

    class Config(TokenDecoder.Config):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        crop_size          voxels per axis of a crop at a random place, or one number for all axes; by default 224
                           pixels or 96 voxels
        mask_ratio         share of a crop's patches that is hidden, rounded up to whole patches
        normalise_patches  predict each patch at mean 0 and deviation 1
        distance           how a voxel's error is measured
        """

        name: Literal["mae"] = "mae"
        variant: Literal["paper", "volumes"] = "paper"
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        mask_ratio: float = Field(default=0.75, gt=0, lt=1)
        normalise_patches: bool = True
        distance: Distance = "squared"
        augment: Augmentation = Augmentation(flip_axes=("W",), flip_prob=0.5)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = per_axis(
            config.crop_size or USUAL_SIDE[encoder.spatial_dims], encoder.spatial_dims, "method.crop_size"
        )
        check_stride(self.size, encoder.strides, "method.crop_size")
        self.grid = tuple(length // stride for length, stride in zip(self.size, encoder.strides, strict=True))
        self.num_hidden = count_hidden(config.mask_ratio, self.grid)
        self.encoder: Encoder = transformer_of(encoder)
        self.decoder = TokenDecoder(config, encoder.channels[-1], prod(encoder.strides) * encoder.in_channels)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut one crop per sample, and draw which of its patches are hidden."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        crops = augment(cut(batch, boxes), draw(self.config.augment, self.size, rng.fold("augment")))
        hidden = draw_hidden(self.grid, self.num_hidden, rng.fold("hidden"))
        return Views((crops,), (boxes,), {"hidden": torch.from_numpy(hidden).to(crops.device)})

    def loss(self, views: Views) -> Losses:
        """Compute the error of hidden patches, and that of predicting the mean of what is seen."""
        (crops,), hidden = views.images, views.targets["hidden"]
        targets = blocks_of(crops, self.encoder.strides)
        targets = normalised(targets) if self.config.normalise_patches else targets
        error = block_error(self._predict(crops, hidden), targets, hidden, self.config.distance)
        mean = mean_of_visible(targets, hidden)
        return Losses(error, of_constant=block_error(mean, targets, hidden, self.config.distance).detach())

    def _predict(self, crops: Float[Tensor, "b c *s"], hidden: Bool[Tensor, "b *g"]) -> Float[Tensor, "b n p"]:
        places = visible_places(hidden, self.num_hidden)
        return self.decoder(encode_visible(transformer_of(self.encoder), crops, places), places, self.grid)
