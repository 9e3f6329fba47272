"""TransVW: crops at one place of similar samples are a visual word, which is told and restored from distorted crops.

Paper:     Haghighi et al., "Transferable Visual Words: Exploiting the Semantics of Anatomical Patterns for
           Self-Supervised Learning", IEEE TMI 2021; after "Learning Semantics-Enriched Representation via
           Self-Discovery, Self-Classification, and Self-Restoration" (Semantic Genesis), MICCAI 2020; a rival in the
           tables of VoCo and JSSL (seeds 002 and 000).
Reference: fhaghighi/TransVW @ bd4f3e3, ``self_discovery`` and ``pytorch``.
Variants:  none; the words are discovered while the network trains, where the release has three programs.
           There, an auto-encoder of whole samples is trained first. For each word a sample is drawn, and a place in
           it; the samples whose features are nearest to its own are the word's instances, and a second network is
           trained on their crops at that place.
           Here, every sample is cut at the place of a word that is drawn for it, and only the word's instances tell
           it; others are restored alone. Until ``discover_after`` epochs, when nothing is known of samples, all are
           instances, and the same network also restores whole samples from its last map, as the auto-encoder.
           Their features are then those of the epoch's steps. Instances stay as they are after that.
           A place is a share of how far a crop can move, the same in each run. Crops have one size, not three. A
           crop is distorted in exactly one of four ways, as released; elastic deformation is left out.
           The network is the encoder that is given, with a U-Net's decoder. Only the encoder is exported.
Shapes:    B samples of a rank, N samples of the training, n of them on this rank, W words, C channels, *s spatial
           axes, m their number, d features.
"""

from functools import partial
from math import log
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import boxes_at, check_fits
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Progress, Views
from methods.encoders import Encoder
from methods.models_genesis import CROPS, restoration_error
from methods.parts.constant_voxel import mean_voxel
from methods.parts.distortions import WAYS, change_some, distorted_by
from methods.parts.fitting import Fitting
from methods.parts.kmeans import random_rows
from methods.parts.precision import Head, LinearHead, at_least_float32, full_precision
from methods.parts.ranks import largest_over_ranks, number_of_ranks, share_of, share_over_ranks, total_over_ranks
from methods.parts.reconstruction import Reconstruction
from methods.parts.row_bank import keep, look_up
from methods.parts.sizes import check_coarsest, check_stride, per_axis

ROUNDS = 50  # of the bisection that finds how far the instances of a word lie from it


@full_precision()
def word_loss(
    logits: Float[Tensor, "b w"], words: Int64[Tensor, " b"], instances: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the instances of all ranks; a rank has its sum over a rank's mean count."""
    entropies = F.cross_entropy(logits, words, reduction="none")
    count = total_over_ranks(instances.sum()).clamp(min=1)
    return (entropies * instances).sum() / count * number_of_ranks()


@torch.no_grad()
def nearest_rows(
    points: Float[Tensor, "n d"], references: Float[Tensor, "w d"], num: int, device: torch.device
) -> Bool[Tensor, "n w"]:
    """Tell which rows are among the ``num`` of all ranks that are nearest to each reference; rows of zeros never are.

    A row that is as far away as the last of them is among them, too.
    """
    known = points.any(1).to(device)
    distances = torch.cdist(points.double(), references.double().to(points.device)).to(device)
    distances = distances.masked_fill(~known[:, None], torch.inf)
    wanted = total_over_ranks(known.sum()).clamp(max=num)
    finite = distances.masked_fill(~known[:, None], 0.0)
    high = largest_over_ranks(finite.amax(0) if len(finite) else references.new_zeros(len(references)).to(distances))
    low = torch.full_like(high, -1.0)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        enough = total_over_ranks((distances <= middle).sum(0)) >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (distances <= high).to(points.device)


class TransVW(Method):
    """An encoder, a decoder, a head that tells words, and a bank of all samples' features."""

    members: Tensor
    bank: Tensor
    seed: Tensor
    discovered: Tensor

    class Config(FrozenConfig):
        """Words, and the weights of the losses.

        crop_size         by default 64 x 64 pixels of images, and 32 x 64 x 64 voxels of volumes
        whole_size        to which whole samples are resized, of which features are taken; by default the crop's
        num_words         visual words
        num_instances     samples of each word, the nearest to the one that it began with
        discover_after    epochs until words have instances
        num_windows       how many windows are shuffled
        hidden_dim        channels of the head
        lambda_restore    weight of the errors of what is restored
        lambda_classify   weight of the cross-entropy
        """

        name: Literal["transvw"] = "transvw"
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        whole_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        num_words: int = Field(default=44, ge=2)
        num_instances: PositiveInt = 200
        discover_after: PositiveInt = 1
        num_windows: int = Field(default=10_000, ge=1)
        hidden_dim: PositiveInt = 1024
        lambda_restore: float = Field(default=1.0, ge=0)
        lambda_classify: float = Field(default=0.01, ge=0)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, self.facts, dims = config, facts, encoder.spatial_dims
        self.size = per_axis(config.crop_size or CROPS[dims], dims, "method.crop_size")
        whole = per_axis(config.whole_size or self.size, dims, "method.whole_size")
        for field, size in (("method.crop_size", self.size), ("method.whole_size", whole)):
            check_stride(size, encoder.strides, field)
            check_coarsest(size, encoder.strides, field)
        self.whole = Fitting(whole, whole)
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels)
        kinds: Any = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        wide = config.hidden_dim
        self.hidden = Head(kinds[0](encoder.channels[-1], wide, 3, padding=1, bias=False), kinds[1](wide), nn.ReLU())
        self.head = LinearHead(wide, config.num_words)
        self.places = np.random.default_rng(0).random((config.num_words, dims))
        self.share = share_of(facts.num_samples)
        num_rows = self.share.stop - self.share.start
        # numpy's arrays of zeros take no memory before they are written to, torch's do.
        self.register_share("bank", torch.from_numpy(np.zeros((num_rows, encoder.channels[-1]), np.float32)))
        self.register_share("members", torch.ones(num_rows, config.num_words, dtype=torch.int8))
        self.register_buffer("seed", torch.randint(2**31, (1,)))  # all ranks draw the same references
        self.register_buffer("discovered", torch.zeros((), dtype=torch.int64))
        self._seen: tuple[Tensor, Tensor] | None = None

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def doubts(self) -> tuple[str, ...]:
        """Doubt words that all samples are instances of."""
        found, wanted = self.facts.num_samples, self.config.num_instances
        if found > wanted:
            return ()
        return (
            f"method.num_instances {wanted}: there are {found} samples, so that each is an instance of every word, "
            f"and a word is a place alone; set it to {max(1, found // 2)} or fewer",
        )

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut each sample at a word's place; return the crop distorted, as it was, and the whole sample resized."""
        words = rng.fold("word").integers(self.config.num_words)
        room = batch.extents - np.array(self.size) + 1
        boxes = boxes_at(np.floor(self.places[words] * room).astype(np.int64), self.size)
        crops, (whole, shown) = cut(batch, boxes), self.whole.apply(batch, None)
        images = (self._distorted(crops, rng), crops, whole)
        return Views(images, (boxes, boxes, shown), {"words": torch.from_numpy(words).to(crops.device)})

    def loss(self, views: Views) -> Losses:
        """Add the weighted losses, and until words are discovered the error of restored whole samples."""
        config, (seen, crops, whole), words = self.config, views.images, views.targets["words"]
        maps = self.encoder.features(seen)
        errors = [restoration_error(at_least_float32(self.decoder(maps)).sigmoid(), crops)]
        constants = [restoration_error(mean_voxel(crops).expand_as(crops), crops)]
        self._seen = None
        # A dry run, whose tensors have no values, wants to know what the dearer steps take.
        if self.discovered.is_meta or not int(self.discovered):
            *finer, last = self.encoder.features(whole)
            restored = self.decoder([*(torch.zeros(each.shape, device=each.device) for each in finer), last])
            errors.append(restoration_error(at_least_float32(restored).sigmoid(), whole))
            constants.append(restoration_error(mean_voxel(whole).expand_as(whole), whole))
            if views.rows is not None:
                self._seen = (views.rows, at_least_float32(last.detach()).flatten(2).mean(2))
        logits = self.head(self.hidden(maps[-1]).flatten(2).mean(2))
        instances = self._instances(views.rows, words)
        cross_entropy = word_loss(logits, words, instances)
        total = config.lambda_restore * torch.stack(errors).sum() + config.lambda_classify * cross_entropy
        right = (logits.detach().argmax(1) == words) & instances
        parts = {
            "restoration_error": errors[0].detach(),
            "cross_entropy": cross_entropy.detach(),
            **share_over_ranks("accuracy", right.sum(), instances.sum()),
        }
        # All words are drawn equally often, and have as many instances.
        told = log(config.num_words) * (total_over_ranks(instances.sum()) > 0)
        constant = config.lambda_restore * torch.stack(constants).sum() + config.lambda_classify * told
        return Losses(total, parts, constant.detach())

    def after_step(self, progress: Progress) -> None:
        """Keep the features of the step's whole samples, until words are discovered."""
        if self._seen is not None:
            keep(self.bank, self.share, *self._seen)

    @torch.no_grad()
    def after_epoch(self, progress: Progress) -> None:
        """Discover the words once: draw a sample for each, and find those that are nearest to it."""
        if int(self.discovered) or progress.epoch < self.config.discover_after:
            return
        device, num_words = self.discovered.device, self.config.num_words
        references = random_rows(self.bank, self.share, self.facts.num_samples, num_words, int(self.seed), device)
        self.members.copy_(nearest_rows(self.bank, references, self.config.num_instances, device))
        self.discovered.fill_(1)

    def _instances(self, rows: Int64[Tensor, " b"] | None, words: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Tell which samples are instances of their words."""
        if rows is None:
            return torch.ones_like(words, dtype=torch.bool)
        return look_up(self.members, self.share, rows).gather(1, words[:, None])[:, 0] > 0

    def _distorted(self, crops: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
        """Distort each crop in exactly one way."""
        images, chosen = crops, rng.fold("way").integers(len(WAYS))
        for number, way in enumerate(WAYS):
            change = partial(distorted_by, way, self.config.num_windows)
            images = change_some(images, chosen == number, change, rng.fold(way))
        return images
