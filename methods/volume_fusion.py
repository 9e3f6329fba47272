"""Volume fusion: a network tells for each voxel how much of a foreground crop was mixed into a background crop.

Paper:     Wang et al., "MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a Large-Scale
           Unannotated Dataset", arXiv 2306.16925, 2023.
Reference: HiLab-git/PyMIC @ 0a65b49, ``patch_mix``, and @ b11dd8c, ``VolumeFusion``; MIC-DKFZ/nnssl @ f07e31e follows
           the paper's text.
Variants:  each flag is a field of the config and can be set on its own.
                        paper                            released
           foreground   other: a crop of another         own: another crop of the same sample, as the newest
                        sample, here the next one of     transform of the release has it
                        the batch over all ranks
           The paper lets a block have the weight 0, too, which is no block; here, as in the release, blocks have
           weights from 1/K to 1. The released newest transform has two classes, and its weights are 1; K is the
           paper's here. Blocks lie inside the crop; in the release they may begin beyond its border.
           The paper's lengths of blocks are those of a crop of 64 x 128 x 128 voxels: 8 to 40 and 8 to 80; here 8
           voxels to 0.625 of a crop of any size.
           The network is the encoder that is given, with a U-Net's decoder. Only the encoder is exported.
Shapes:    B samples, K levels of fusion beside 0, M blocks, C channels, n spatial axes, *s their lengths.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Int64
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from data.exact import exact
from data.views.augmentation import Augmentation, augment, choose_one_of, cut, draw
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng, scale_words
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.downstream.constants import classes_loss_of_constant
from methods.downstream.targets import dice_ce_loss
from methods.encoders import Encoder
from methods.parts.box_maps import draw_boxes, fill_boxes
from methods.parts.precision import full_precision
from methods.parts.ranks import next_samples, number_of_ranks
from methods.parts.reconstruction import Reconstruction
from methods.parts.sizes import check_coarsest, check_stride, per_axis
from methods.parts.variants import completed_by

CROPS = {2: (128, 128), 3: (64, 128, 128)}
SHORTEST = 8
VARIANTS: dict[str, dict[str, Any]] = {"paper": {"foreground": "other"}, "released": {"foreground": "own"}}


def draw_levels(blocks: tuple[int, int], num_levels: int, rng: SampleRng) -> Int[np.ndarray, "b m"]:
    """Draw each block's level from 1 to K, and -1 for blocks beyond a sample's number of blocks."""
    fewest, most = blocks
    counts = fewest + rng.fold("count").integers(most - fewest + 1)
    levels = 1 + scale_words(rng.fold("levels").words(most), np.array(num_levels))
    return np.where(np.arange(most) < counts[:, None], levels, -1)


@full_precision()
def fuse(
    background: Float[Tensor, "b c *s"],
    foreground: Float[Tensor, "b c *s"],
    levels: Int64[Tensor, "b *s"],
    num_levels: int,
) -> Float[Tensor, "b c *s"]:
    """Return the background with each voxel's share of the foreground: its level over K."""
    share = levels[:, None].to(background) / num_levels
    return share * foreground + (1 - share) * background


class VolumeFusion(Method):
    """An encoder and a decoder of all of its maps, whose outputs are levels of fusion."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        crop_size    by default 128 x 128 pixels of images, and 64 x 128 x 128 voxels of volumes
        num_levels   the paper's K
        blocks       fewest and most blocks of a crop
        longest      of a block, as a share of the crop
        foreground   what is mixed in: a crop of the next sample of the batch, or of the sample itself
        """

        name: Literal["volume_fusion"] = "volume_fusion"
        variant: Literal["paper", "released"] = "paper"
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        num_levels: PositiveInt = 4
        blocks: tuple[PositiveInt, PositiveInt] = (10, 40)
        longest: float = Field(default=0.625, gt=0, le=1)
        foreground: Literal["other", "own"] = "other"
        augment: Augmentation = Augmentation(flip_axes=("D", "H", "W"), flip_prob=0.5)

        _completed = completed_by(VARIANTS)

        @model_validator(mode="after")
        def _in_order(self) -> "VolumeFusion.Config":
            if self.blocks[0] > self.blocks[1]:
                raise ValueError(f"blocks {self.blocks}: expected the fewest before the most; swap the two")
            return self

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        size = config.crop_size or CROPS[encoder.spatial_dims]
        self.size = per_axis(size, encoder.spatial_dims, "method.crop_size")
        check_stride(self.size, encoder.strides, "method.crop_size")
        check_coarsest(self.size, encoder.strides, "method.crop_size")
        self.longest = tuple(max(1, int(exact(config.longest) * length)) for length in self.size)
        self.shortest = tuple(min(SHORTEST, length) for length in self.longest)
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, config.num_levels + 1)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment two crops per sample, background and foreground, and draw the map of levels."""
        config, images, boxes = self.config, [], []
        chosen = choose_one_of(config.augment, 2, rng)
        for number, view in enumerate(("background", "foreground")):
            stream = rng.fold(view)
            boxes.append(uniform_boxes(batch.extents, self.size, stream.fold("box")))
            drawn = draw(config.augment, self.size, stream.fold("augment"), chosen[number])
            images.append(augment(cut(batch, boxes[-1]), drawn))
        levels = draw_levels(config.blocks, config.num_levels, rng.fold("levels"))
        places = draw_boxes(self.size, self.shortest, self.longest, config.blocks[1], 0, rng.fold("blocks"))
        maps = fill_boxes(self.size, places, levels, batch.voxels.device)
        return Views(tuple(images), tuple(boxes), {"levels": maps})

    def loss(self, views: Views) -> Losses:
        """Fuse the crops; compute the soft Dice loss over all levels and the cross-entropy, as of a segmentation."""
        background, foreground = views.images
        levels, num_levels = views.targets["levels"], self.config.num_levels
        if self.config.foreground == "other":
            if len(foreground) * number_of_ranks() < 2:
                raise ValueError(
                    "batch of 1 sample: it has no other sample to be fused with; raise budget.batch_size to 2, "
                    "or set method.foreground=own"
                )
            foreground = next_samples(foreground)
        logits = self.decoder(self.encoder.features(fuse(background, foreground, levels, num_levels)))
        dice, cross_entropy = dice_ce_loss(logits, levels, background=True)
        parts = {
            "dice_loss": dice.detach(),
            "cross_entropy": cross_entropy.detach(),
            "accuracy": (logits.detach().argmax(1) == levels).to(logits).mean(),
        }
        of_constant = classes_loss_of_constant(levels, num_levels + 1, True, (1.0, 1.0))
        return Losses(dice + cross_entropy, parts, of_constant)
