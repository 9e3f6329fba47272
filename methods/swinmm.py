"""SwinMM: turned crops with hidden blocks are restored from two views, which are to agree, told apart and contrasted.

Paper:     Wang et al., "SwinMM: Masked Multi-view with Swin Transformers for 3D Medical Image Segmentation", MICCAI
           2023; a rival in the tables of VoCo (seed 002).
Reference: UCSC-VLAA/SwinMM @ dbc6fc5, ``Pretrain/``.
Variants:  there are none: of the paper only the abstract could be read, and everything is as released, with the
           flags of its ``run.sh``. Of each crop there are two versions, each with its own turn and hidden blocks, and
           each is seen in two views: as it is, and with its first axis swapped for another, so that slices are
           coronal or sagittal. All four are restored; turns are told, and versions contrasted, in the first view
           alone; and the two restorations of the first version, not of the second, are to agree. All losses count
           alike.
           Axes are by their order, as released: turns are in the plane of the last two, which there is sagittal and
           here axial. An image has two axes, and one swap. ``mask_ratio`` is what is hidden; there, what is seen.
           In the release all samples of a rank share their hidden blocks and their swaps; here each has its own, so
           that its views depend on no other. Versions are contrasted over all ranks; there, on each by itself. The
           decoder is that of ``swin_pretext``. The agreement of versions that are turned back, off by default in the
           release, is not built. Only the encoder is exported: the paper's fine-tuning also joins views by
           cross-attention.
Shapes:    B samples, P crops of each, 2 versions of a crop, N = 2 P B, C channels, *s spatial axes, *g blocks of a
           crop along each, d dimensions.
"""

from math import log
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses
from methods.parts.hidden_blocks import (
    block_error,
    blocks_along,
    blocks_of,
    count_hidden,
    draw_hidden,
    enlarge,
    mean_of_visible,
    normalised,
)
from methods.parts.precision import LinearHead, at_least_float32
from methods.parts.ranks import number_of_ranks
from methods.parts.reconstruction import Reconstruction
from methods.parts.sizes import check_stride
from methods.swin_pretext import NUM_TURNS, PLANES, quarter_turn, tokens_of, version_contrast

# The pairs of axes, one of which a swap exchanges: the first with each of the others.
SWAPS = {2: ((-2, -1),), 3: ((-3, -2), (-3, -1))}


def swap_axes(images: Float[Tensor, "n c *s"], swaps: Int[Tensor, " n"]) -> Float[Tensor, "n c *s"]:
    """Exchange two axes of each image, whose sides have one length; doing so twice changes nothing."""
    swapped = images
    for number, axes in enumerate(SWAPS[images.ndim - 2]):
        chosen = (swaps == number).view(-1, *[1] * (images.ndim - 1))
        swapped = torch.where(chosen, images.transpose(*axes), swapped)
    return swapped


class SwinMM(Method):
    """An encoder, a decoder of its last map, and two linear heads."""

    positives: ClassVar[bool] = True

    class Config(FrozenConfig):
        """Crops, what is hidden of them, and what the heads see.

        side                voxels of a crop along each axis
        num_crops           crops of each sample at random places
        mask_ratio          share of a version's blocks that is hidden, rounded up to whole blocks
        block               voxels of a block along each axis
        normalise           restore each channel of each version at mean 0 and deviation 1
        tokens              what the heads see: the last map averaged, or its first and its second voxel
        """

        name: Literal["swinmm"] = "swinmm"
        side: PositiveInt = 64
        num_crops: PositiveInt = 2
        mask_ratio: float = Field(default=0.5, gt=0, lt=1)
        block: PositiveInt = 16
        normalise: bool = True
        tokens: Literal["mean", "corner"] = "corner"
        projector_dim: PositiveInt = 512
        temperature: float = Field(default=0.5, gt=0)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, dims = config, encoder.spatial_dims
        self.size, self.block = (config.side,) * dims, (config.block,) * dims
        check_stride(self.size, encoder.strides, "method.side")
        self.blocks = blocks_along(self.size, self.block, "method.side")
        self.num_hidden = count_hidden(config.mask_ratio, self.blocks)
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels, skips=False)
        self.turn_head = LinearHead(encoder.channels[-1], NUM_TURNS)
        self.contrast_head = LinearHead(encoder.channels[-1], config.projector_dim)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.side")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Return both turned versions of each crop, crop by crop: with hidden blocks, these swapped, and whole."""
        device, dims = batch.voxels.device, batch.spatial_dims
        boxes, whole, turns, swaps, hidden = [], [], [], [], []
        for crop in range(self.config.num_crops):
            box = uniform_boxes(batch.extents, self.size, rng.fold(f"crop {crop}"))
            image = cut(batch, box)
            for version in range(2):
                stream = rng.fold(f"version {crop} {version}")
                boxes.append(box)
                turns.append(stream.fold("turn").integers(NUM_TURNS))
                swaps.append(stream.fold("swap").integers(len(SWAPS[dims])))
                hidden.append(draw_hidden(self.blocks, self.num_hidden, stream.fold("hidden")))
                whole.append(quarter_turn(image, turns[-1], PLANES["axial"]))
        drawn = {"turns": turns, "swaps": swaps, "hidden": hidden}
        targets = {name: torch.from_numpy(np.stack(each, axis=1)).to(device) for name, each in drawn.items()}
        covers = [enlarge(each, self.block) for each in targets["hidden"].unbind(1)]
        seen = [image.masked_fill(cover, 0) for image, cover in zip(whole, covers, strict=True)]
        swapped = [swap_axes(image, own) for image, own in zip(seen, targets["swaps"].unbind(1), strict=True)]
        return Views((*seen, *swapped, *whole), tuple(boxes * 3), targets)

    def loss(self, views: Views) -> Losses:
        """Add all losses. Both views of all versions pass together and share their batch statistics."""
        config, count = self.config, 2 * self.config.num_crops
        seen, whole = torch.cat(views.images[: 2 * count]), torch.cat(views.images[2 * count :])
        # Versions stand crop by crop: (P, 2, B) rows.
        turns, swaps, hidden = (
            views.targets[name].transpose(0, 1).flatten(0, 1) for name in ("turns", "swaps", "hidden")
        )
        last = self.encoder.features(seen)
        plain, swapped = at_least_float32(self.decoder(last)).chunk(2)
        restored = [blocks_of(images, self.block) for images in (plain, swap_axes(swapped, swaps))]
        targets = blocks_of(normalised(whole.flatten(2)).view_as(whole) if config.normalise else whole, self.block)
        errors = [block_error(own, targets, hidden, "squared") for own in restored]
        first, first_hidden = self._first_versions(*restored), self._first_versions(hidden)[0]
        mutual = block_error(first[0], first[1], first_hidden, "squared")
        positions = at_least_float32(last[-1]).chunk(2)[0].flatten(2)
        told, contrasted = tokens_of(positions, config.tokens)
        turned = classification_losses(self.turn_head(told), turns)
        versions = self.contrast_head(contrasted).unflatten(0, (config.num_crops, 2, -1)).unbind(1)
        contrast = version_contrast(versions[0].flatten(0, 1), versions[1].flatten(0, 1), config.temperature)
        assert turned.of_constant is not None
        unseen = block_error(mean_of_visible(targets, hidden), targets, hidden, "squared").detach()
        others = count * len(views.images[0]) * number_of_ranks() - 1
        parts = {
            "restoration_error": errors[0].detach(),
            "swapped_error": errors[1].detach(),
            "mutual_loss": mutual.detach(),
            "cross_entropy": turned.total.detach(),
            "contrast_loss": contrast.detach(),
            **turned.parts,
        }
        total = errors[0] + errors[1] + mutual + turned.total + contrast
        return Losses(total, parts, 2 * unseen + turned.of_constant + log(others))

    def _first_versions(self, *each: Tensor) -> list[Tensor]:
        """Return the rows of each crop's first version."""
        return [rows.unflatten(0, (self.config.num_crops, 2, -1))[:, 0].flatten(0, 1) for rows in each]
