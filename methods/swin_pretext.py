"""Swin pretext: turned crops with cut-outs are restored, their turns are told, and two versions are told from others.

Paper:     Tang et al., "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022;
           "Swin-UNETR pretrained" and "SwinViT3D" in the tables of VoCo and JSSL (seeds 002 and 000).
Reference: Project-MONAI/research-contributions @ 38d76f2, ``SwinUNETR/Pretrain``.
Variants:  each flag is a field of the config and can be set on its own.
                      paper                             released
           plane      axial: turns about the z-axis     coronal: of depth and width
           tokens     mean: the heads see the last map  corner: the first voxel of the last map tells the turn, and
                      averaged over space               the second is contrasted
           The paper names neither crops per scan nor what the heads see; ``num_crops`` is the released one.
           Up to 30 % of a crop become noise, and up to 30 % voxels of another crop, as released. The other crop is
           here the next one of the same scan; in the release it may be any of the rank's batch, or the crop itself.
           The released decoder interpolates between layers with instance norm. Here it is the one that other methods
           have, without skips: transposed convolutions, as the paper says, and batch norm.
           Versions are contrasted over all ranks; in the release, on each rank by itself.
Shapes:    B samples, P crops of each, N = B P, C channels, *s spatial axes, d dimensions, M cut-outs.
"""

from math import log
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.box_maps import covered, draw_clipped_boxes
from methods.parts.classification import classification_losses
from methods.parts.constant_voxel import median_voxel
from methods.parts.precision import LinearHead, at_least_float32, full_precision
from methods.parts.ranks import gathered, number_of_ranks, own_places
from methods.parts.reconstruction import Reconstruction
from methods.parts.sizes import check_stride
from methods.parts.variants import completed_by

MOST = 256  # cut-outs of one kind
LENGTHS = (0.05, 0.25)  # of a cut-out, as shares of the crop
NUM_TURNS = 4
PLANES = {"axial": (-2, -1), "coronal": (-3, -1)}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"plane": "axial", "tokens": "mean"},
    "released": {"plane": "coronal", "tokens": "corner"},
}


@full_precision()
def restoration_error(restored: Float[Tensor, "n c *s"], whole: Float[Tensor, "n c *s"]) -> Float[Tensor, ""]:
    """Return the mean absolute error over all voxels."""
    return F.l1_loss(restored, whole)


@full_precision()
def version_contrast(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, ""]:
    """Return how hard it is to find a crop's other version among all other versions of all crops of all ranks."""
    own = F.normalize(torch.stack([first, second]), dim=2)
    everyone = gathered(own.transpose(0, 1).contiguous())
    places, total = own_places(first), len(everyone)
    logits = own.flatten(0, 1) @ everyone.transpose(0, 1).flatten(0, 1).T / temperature
    itself = torch.cat([places, places + total])
    logits = logits.masked_fill(F.one_hot(itself, 2 * total).bool(), -torch.inf)
    return F.cross_entropy(logits, torch.cat([places + total, places]))


def draw_cut_outs(
    size: tuple[int, ...], most: float, rng: SampleRng
) -> tuple[Int[np.ndarray, "b m 2 n"], Int[np.ndarray, " b"]]:
    """Draw boxes, and how many of them it takes until they hold a share of the crop, drawn from 0 to ``most``.

    Voxels in several boxes count several times, as released.
    """
    shortest, longest = (tuple(int(share * length) for length in size) for share in LENGTHS)
    boxes = draw_clipped_boxes(size, shortest, longest, MOST, rng.fold("boxes"))
    wanted = rng.fold("share").uniform(low=0, high=most) * np.prod(size)
    held = (boxes[:, :, 1] - boxes[:, :, 0]).prod(axis=2).cumsum(axis=1)
    return boxes, (held < wanted[:, None]).sum(axis=1) + (wanted > 0)


def normal_noise(images: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
    """Draw normal noise for each voxel, scaled so that a sample's lies in [0, 1]."""
    noise = rng.normal_voxels(images.shape[1:], images.device)
    flat = noise.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low)).view_as(noise).to(images)


def quarter_turn(
    images: Float[Tensor, "b c *s"], turns: Int[np.ndarray, " b"], plane: tuple[int, int]
) -> Float[Tensor, "b c *s"]:
    """Turn each image by a number of right angles in a plane; a quarter-turn needs two axes of one length."""
    turned = images.clone()
    for number in range(1, NUM_TURNS):
        index = torch.from_numpy(np.flatnonzero(turns == number)).to(images.device)
        if len(index):
            turned[index] = torch.rot90(images[index], number, plane)
    return turned


def tokens_of(
    positions: Float[Tensor, "n d v"], tokens: Literal["mean", "corner"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Return what each head sees of the last map; a map of a single voxel shows both heads the same."""
    if tokens == "mean":
        return positions.mean(2), positions.mean(2)
    return positions[:, :, 0], positions[:, :, min(1, positions.shape[2] - 1)]


class SwinPretext(Method):
    """An encoder, a decoder of its last map, and two linear heads."""

    positives: ClassVar[bool] = True

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        side        voxels per axis of a crop, a cube or a square, at a random place
        num_crops   of each sample, two or more
        noise       largest share of a crop that becomes noise
        exchanged   largest share of a crop that becomes another crop's
        plane       of the turns of volumes: of height and width, or of depth and width
        tokens      what of the last map the heads see
        """

        name: Literal["swin_pretext"] = "swin_pretext"
        variant: Literal["paper", "released"] = "paper"
        side: PositiveInt = 96
        num_crops: int = Field(default=2, ge=2)
        noise: float = Field(default=0.3, ge=0, lt=1)
        exchanged: float = Field(default=0.3, ge=0, lt=1)
        plane: Literal["axial", "coronal"] = "axial"
        tokens: Literal["mean", "corner"] = "mean"
        projector_dim: PositiveInt = 512
        temperature: float = Field(default=0.5, gt=0)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = (config.side,) * encoder.spatial_dims
        check_stride(self.size, encoder.strides, "method.side")
        self.plane = PLANES["axial" if encoder.spatial_dims == 2 else config.plane]
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels, skips=False)
        self.turn_head = LinearHead(encoder.channels[-1], NUM_TURNS)
        self.contrast_head = LinearHead(encoder.channels[-1], config.projector_dim)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.side")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Return both turned versions of each crop with cut-outs, crop by crop, and then the same without."""
        config = self.config
        boxes = [uniform_boxes(batch.extents, self.size, rng.fold(f"crop {i}")) for i in range(config.num_crops)]
        crops = [cut(batch, box) for box in boxes]
        streams = [[rng.fold(f"version {i} {j}") for j in range(2)] for i in range(config.num_crops)]
        turns = [[stream.fold("turn").integers(NUM_TURNS) for stream in pair] for pair in streams]
        whole = [
            [quarter_turn(crop, turn, self.plane) for turn in pair] for crop, pair in zip(crops, turns, strict=True)
        ]
        seen = [
            self._cut_out(whole[i][j], whole[(i + 1) % config.num_crops][j], streams[i][j])
            for i in range(config.num_crops)
            for j in range(2)
        ]
        labels = torch.from_numpy(np.stack([turn for pair in turns for turn in pair], axis=1))
        twice = [box for box in boxes for _ in range(2)]
        restored = [version for pair in whole for version in pair]
        return Views((*seen, *restored), (*twice, *twice), {"turns": labels.to(batch.voxels.device)})

    def loss(self, views: Views) -> Losses:
        """Compute the sum of the three losses. All versions pass together and share their batch statistics."""
        seen, whole = torch.cat(views.images).chunk(2)
        last = self.encoder.features(seen)
        error = restoration_error(at_least_float32(self.decoder(last)), whole)
        positions = at_least_float32(last[-1]).flatten(2)
        told, contrasted = tokens_of(positions, self.config.tokens)
        turned = classification_losses(self.turn_head(told), views.targets["turns"].T.flatten())
        # Versions stand crop by crop: (P, 2, B) rows.
        first, second = self.contrast_head(contrasted).unflatten(0, (self.config.num_crops, 2, -1)).unbind(1)
        contrast = version_contrast(first.flatten(0, 1), second.flatten(0, 1), self.config.temperature)
        assert turned.of_constant is not None
        constant = restoration_error(median_voxel(whole).expand_as(whole), whole)
        others = 2 * self.config.num_crops * len(views.images[0]) * number_of_ranks() - 1
        parts = {
            "restoration_error": error.detach(),
            "cross_entropy": turned.total.detach(),
            "contrast_loss": contrast.detach(),
            **turned.parts,
        }
        return Losses(error + turned.total + contrast, parts, constant + turned.of_constant + log(others))

    def _cut_out(
        self, image: Float[Tensor, "b c *s"], other: Float[Tensor, "b c *s"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Replace some boxes by noise, and then others by what another crop has there."""
        for name, most, source in (
            ("noise", self.config.noise, normal_noise(image, rng.fold("noise voxels"))),
            ("exchanged", self.config.exchanged, other),
        ):
            image = torch.where(self._covered(most, rng.fold(name), image.device), source, image)
        return image

    def _covered(self, most: float, rng: SampleRng, device: torch.device) -> Bool[Tensor, "b 1 *s"]:
        boxes, counts = draw_cut_outs(self.size, most, rng)
        return covered(self.size, boxes, counts, device)
