"""Jigsaw clustering: patches of different samples form montages; a network tells places, and which belong together.

Paper:     Chen, Liu and Jia, "Jigsaw Clustering for Unsupervised Visual Representation Learning", CVPR 2021; it is
           Jigsaw in the tables of VoCo (seed 002).
Reference: dvlab-research/JigsawClustering @ 5d64a43.
Variants:  there are none: constants are the released ones. The patches of all samples of the batch, over all ranks,
           are shuffled into as many montages; a montage may hold several patches of a sample, as released. The order
           is that of numbers drawn for each patch, so that it does not depend on the number of ranks.
           As released, a patch is cut out of its quarter of the sample (an eighth of a volume), enlarged by 0.3 of
           the sample along each axis, and shows a share of its area; and a last map that cannot be shared out evenly
           among the patches is first resized.
Shapes:    B samples of a rank, N of all ranks, K patches of each, C channels, n spatial axes, *s their lengths, d
           dimensions.
"""

from math import log
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Int64
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation, augment, choose_one_of, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms.blur import Blur
from data.views.transforms.colour import ColourJitter, Grey
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses
from methods.parts.multi_crop import AreaCrops, AreaShares
from methods.parts.precision import Head, LinearHead, at_least_float32, full_precision
from methods.parts.ranks import gathered, own_places, rows_of_all_ranks
from methods.parts.sampled_crops import sample_crops
from methods.parts.sizes import check_stride, per_axis

SIZES = {2: 112, 3: 48}
AUGMENT = Augmentation(
    flip_axes=("W",),
    flip_prob=0.5,
    transforms=(
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8),
        Grey(prob=0.2),
        Blur(sigma=(0.1, 2.0), isotropic=True, prob=0.5),
    ),
)


def regions(extents: Int[np.ndarray, "b n"], cells: int, overlap: float) -> Int[np.ndarray, "b k 2 n"]:
    """Return the cells of samples, the last axis fastest, each enlarged by a share of the sample on all sides."""
    index = np.indices((cells,) * extents.shape[1]).reshape(extents.shape[1], -1).T
    low = np.floor((index / cells - overlap).clip(0, 1) * extents[:, None]).astype(np.int64)
    high = np.ceil(((index + 1) / cells + overlap).clip(0, 1) * extents[:, None]).astype(np.int64)
    return np.stack([low, high], axis=2)


def montage(patches: Float[Tensor, "b k c *s"], cells: int) -> Float[Tensor, "b c *w"]:
    """Put each sample's K patches into a grid, the last axis fastest."""
    lengths = {"p": cells, "q": cells}
    if patches.ndim == 5:
        return rearrange(patches, "b (p q) c h w -> b c (p h) (q w)", **lengths)
    return rearrange(patches, "b (o p q) c d h w -> b c (o d) (p h) (q w)", o=cells, **lengths)


def apart(last: Float[Tensor, "b d *m"], cells: int) -> Float[Tensor, "bk d"]:
    """Return each patch's mean over its part of the last map, montage by montage."""
    even = tuple(-(-length // cells) * cells for length in last.shape[2:])
    if even != tuple(last.shape[2:]):
        last = F.interpolate(last, even, mode="bilinear" if last.ndim == 4 else "trilinear", align_corners=False)
    pool = F.adaptive_avg_pool2d if last.ndim == 4 else F.adaptive_avg_pool3d
    return pool(last, cells).flatten(2).transpose(1, 2).flatten(0, 1)


@full_precision()
def cluster_loss(
    own: Float[Tensor, "b d"],
    everyone: Float[Tensor, "n d"],
    itself: Int64[Tensor, " b"],
    samples: Int64[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return how hard it is to find the other patches of a patch's sample among all others; embeddings have length 1.

    ``itself`` says where each of one's own patches stands among all, and ``samples`` whose each is.
    """
    logits = own @ everyone.T / temperature
    oneself = F.one_hot(itself, len(everyone)).bool()
    likelihood = logits - logits.masked_fill(oneself, -torch.inf).logsumexp(1, keepdim=True)
    same = (samples[itself][:, None] == samples) & ~oneself
    return -((likelihood * same).sum(1) / same.sum(1)).mean()


class JigsawClustering(Method):
    """An encoder of montages, a projector, and a linear classifier of places."""

    class Config(FrozenConfig):
        """The patches, and the constants of the losses.

        cells     along each axis of a sample, and of a montage
        size      of a patch as the encoder sees it; by default 112 pixels, or 48 voxels, along each axis
        overlap   share of the sample by which a cell is enlarged on all sides
        area      share of an enlarged cell that a patch shows
        """

        name: Literal["jigsaw_clustering"] = "jigsaw_clustering"
        cells: int = Field(default=2, ge=2)
        size: PositiveInt | tuple[PositiveInt, ...] | None = None
        overlap: float = Field(default=0.3, ge=0, lt=1)
        area: AreaShares = (0.2, 1.0)
        augment: Augmentation = AUGMENT
        projector_dim: PositiveInt = 128
        temperature: float = Field(default=0.07, gt=0)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.num_patches = config.cells**encoder.spatial_dims
        size = config.size or SIZES[encoder.spatial_dims]
        self.size = per_axis(size, encoder.spatial_dims, "method.size")
        check_stride(tuple(config.cells * length for length in self.size), encoder.strides, "method.size x cells")
        self.encoder: Encoder = encoder
        width = encoder.channels[-1]
        self.projector = Head(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.projector_dim))
        self.place_head = LinearHead(width, self.num_patches)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment all patches of each sample, and draw the numbers that will shuffle them."""
        config, images, boxes = self.config, [], []
        crops = AreaCrops(num=1, area=config.area)
        chosen = choose_one_of(config.augment, self.num_patches, rng)
        cells = regions(batch.extents, config.cells, config.overlap)
        for number in range(self.num_patches):
            stream, (low, high) = rng.fold(number), cells[:, number].swapaxes(0, 1)
            box = low[:, None] + crops.draw(high - low, self.size, stream.fold("box"))
            drawn = draw(config.augment, self.size, stream.fold("augment"), chosen[number])
            images.append(augment(sample_crops(batch, box[None], self.size)[0], drawn))
            boxes.append(box)
        order = torch.from_numpy(rng.fold("order").uniform(self.num_patches)).to(batch.voxels.device)
        return Views(tuple(images), tuple(boxes), {"order": order})

    def loss(self, views: Views) -> Losses:
        """Compute both losses of this rank's montages; the embeddings of all ranks are compared."""
        config, count = self.config, self.num_patches
        patches = rows_of_all_ranks(torch.stack(views.images, dim=1)).flatten(0, 1)
        order = rows_of_all_ranks(views.targets["order"]).flatten().argsort()
        own = order.view(-1, count)[own_places(views.images[0])]
        last = self.encoder.features(montage(patches[own], config.cells))[-1]
        features = apart(at_least_float32(last), config.cells)
        z = _unit(self.projector(features))
        everyone = gathered(z)
        clustered = cluster_loss(z, everyone, own_places(z), order // count, config.temperature)
        placed = classification_losses(self.place_head(features), own.flatten() % count)
        assert placed.of_constant is not None
        parts = {"cluster_loss": clustered.detach(), "cross_entropy": placed.total.detach(), **placed.parts}
        return Losses(clustered + placed.total, parts, placed.of_constant + log(len(everyone) - 1))


@full_precision()
def _unit(z: Any) -> Float[Tensor, "b d"]:
    return F.normalize(z, dim=1)
