"""PCRL: a view is restored as it is told to be moved, alone and mixed with another view, whose key it also finds.

Paper:     Zhou et al., "Preservational Learning Improves Self-Supervised Medical Image Models by Reconstructing
           Diverse Contexts", ICCV 2021; PCRL in Table 6 of JSSL (seed 000), PCRLv1 in the tables of VoCo (seed 002).
Reference: Luchixiang/PCRL @ 197bf91, ``pytorch/pcrl_3d.py``.
Variants:  none: of the paper, its abstract alone was at hand, and the settings are those of the released code.
           There, what is restored of a moved view keeps its distortions, while mixtures are restored without; so
           here. The release draws flips of the views after it has kept what mixtures are compared with, so that the
           two do not match; here both are moved by ``augment``. Its contrast is noise-contrastive estimation, and
           here cross-entropy, as in C2L. Shares are drawn for each sample, not for a batch, and a sample's partner is
           the next one of the batch, over all ranks: so neither chunks nor ranks change anything. Crops have one of
           four sizes there, all resized to 64 x 64 x 32 voxels; here ``crops`` has one size.
           The network is the encoder that is given, with a U-Net's decoder. Only the encoder is exported.
Shapes:    B samples of a rank, C channels, *s spatial axes, n their number, M moves: n flips and 4 turns, K keys of
           earlier steps, d dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation, augment, draw
from data.views.batch import Batch
from data.views.intervals import Probability
from data.views.rng import SampleRng
from data.views.transforms import Affine, Blur
from methods.base import Facts, Losses, Method, Progress, Views
from methods.c2l import mixed
from methods.crops import Crops
from methods.encoders import Encoder
from methods.models_genesis import flip, restoration_error
from methods.parts.constant_voxel import mean_voxel
from methods.parts.contrast import contrast_loss, found_part, queue_logits
from methods.parts.distortions import DistortionConfig, distorted
from methods.parts.key_queue import key_queue, loss_of_constant
from methods.parts.mlp import contrast_projector
from methods.parts.momentum_network import MomentumNetwork
from methods.parts.precision import Head, at_least_float32
from methods.parts.ranks import number_of_ranks
from methods.parts.reconstruction import Reconstruction
from methods.parts.sizes import check_coarsest
from methods.parts.teacher import Decay
from methods.swin_pretext import NUM_TURNS, quarter_turn

TARGETS = 2
_AUGMENT: dict[str, Any] = {"flip_axes": ("W",), "flip_prob": 0.5, "transforms": (Affine(), Blur())}


@dataclass(frozen=True)
class PassedView:
    """What a network makes of a view: its maps, finest first, and its embedding."""

    maps: list[Tensor]
    embedding: Float[Tensor, "b d"]


def between(own: Sequence[Tensor], other: Sequence[Tensor], shares: Float[Tensor, " b"]) -> list[Tensor]:
    """Return a share of each map of one network plus the rest of the other's."""
    return [_shared(at_least_float32(a), at_least_float32(b), shares) for a, b in zip(own, other, strict=True)]


def _shared(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"], shares: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
    share = shares.to(a).view(-1, *[1] * (a.ndim - 1))
    return share * a + (1 - share) * b


def draw_moves(size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b m"]:
    """Draw which axes are flipped and, one-hot, by how many right angles a view turns in the H-W plane.

    Where H and W differ, a view turns by none or by two.
    """
    n = len(size)
    flips = np.stack([rng.fold(f"flip {axis}").chance(0.5) for axis in range(n)], axis=1)
    turns = rng.fold("turns").integers(NUM_TURNS)
    turns = turns if size[-1] == size[-2] else 2 * (turns % 2)
    return np.concatenate([flips, np.eye(NUM_TURNS)[turns]], axis=1)


def moved(images: Float[Tensor, "b c *s"], moves: Float[np.ndarray, "b m"]) -> Float[Tensor, "b c *s"]:
    """Flip each image, and then turn it."""
    n = images.ndim - 2
    return quarter_turn(flip(images, moves[:, :n] > 0), moves[:, n:].argmax(1), (-2, -1))


class PCRL(Method):
    """An encoder, its projector and decoder, a network of moves, a moving average, and a queue of its keys."""

    positives: ClassVar[bool] = True

    class Config(DistortionConfig):
        """The first view is the query, the second the key.

        augment         moves a view before it is distorted
        hidden_dim      of the network that turns moves into weights of channels
        queue_length    keys of earlier steps, over all ranks
        least_share     of the view, or sample, that a mixture is named by; the share is drawn from there to 1
        teacher_decay   a number, or its schedule; see ``Ramp``
        """

        name: Literal["pcrl"] = "pcrl"
        crops: Crops = Crops(iou=(0.25, 1.0))
        augment: Augmentation = Augmentation(**_AUGMENT)
        curve_prob: Probability = 0.0
        temperature: float = Field(default=0.2, gt=0)
        hidden_dim: PositiveInt = 256
        projector_dim: PositiveInt = 128
        queue_length: PositiveInt = 16384
        least_share: float = Field(default=0.5, ge=0.5, le=1)
        teacher_decay: Decay = 0.999

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, dims = config, encoder.spatial_dims
        config.crops.check_encoder(dims, encoder.strides)
        check_coarsest(config.crops.sized(dims), encoder.strides, "method.crops.size")
        self.encoder: Encoder = encoder
        width, dim = encoder.channels[-1], config.projector_dim
        self.projector = contrast_projector(width, dim, dim, norm=False)
        self.decoder = Reconstruction(encoder, encoder.in_channels)
        self.attention = Head(
            nn.Linear(dims + NUM_TURNS, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, width),
            nn.Sigmoid(),
        )
        self.teacher = MomentumNetwork(encoder, self.projector, config.teacher_decay)
        self.queue = key_queue(config.queue_length, dim)
        self._keys: list[Tensor] = []

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size hold no two crops whose IoU lies in the interval."""
        self.config.crops.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Return both views distorted, these moved, and both undistorted; and draw moves and shares."""
        config = self.config
        boxes = config.crops.draw(batch.extents, rng.fold("crops"))
        size = config.crops.sized(batch.spatial_dims)
        whole = [
            augment(config.crops.cut(batch, box), draw(config.augment, size, rng.fold(view)))
            for view, box in enumerate(boxes)
        ]
        seen = [distorted(image, config, rng.fold(f"distorted {view}")) for view, image in enumerate(whole)]
        moves = [draw_moves(size, rng.fold(f"moves {view}")) for view in range(TARGETS)]
        targets = [moved(image, move) for image, move in zip(seen, moves, strict=True)]
        shares = rng.fold("shares").uniform(3, low=config.least_share, high=1.0)
        told = {"moves": np.stack(moves, axis=1), "shares": shares}
        return Views(
            (*seen, *targets, *whole),
            (*boxes, *boxes, *boxes),
            {name: torch.from_numpy(value).to(seen[0]) for name, value in told.items()},
        )

    def loss(self, views: Views) -> Losses:
        """Add the mean of three contrasts, as in C2L, and the mean of four errors."""
        if len(views.images[0]) * number_of_ranks() < 2:
            raise ValueError(
                "batch of 1 sample: it has no other sample to be mixed with; raise budget.batch_size to 2"
            )
        first, second, first_moved, second_moved, first_whole, second_whole = views.images
        hybrid, mixed_hybrid, share = views.targets["shares"].unbind(1)
        own, other = self._passed(first), self._taught(second)
        own_mixed, other_mixed = self._passed(mixed(first, share)), self._taught(mixed(second, share))
        first_whole, second_whole = mixed(first_whole, share), mixed(second_whole, share)
        weighted = [
            self._weighted(each.maps, move) for each, move in zip((own, other), self._moves(views), strict=True)
        ]
        restored = [
            (weighted[0], first_moved),
            (between(weighted[0], weighted[1], hybrid), _shared(first_moved, second_moved, hybrid)),
            (own_mixed.maps, first_whole),
            (
                between(own_mixed.maps, other_mixed.maps, mixed_hybrid),
                _shared(first_whole, second_whole, mixed_hybrid),
            ),
        ]
        errors = [restoration_error(at_least_float32(self.decoder(maps)).sigmoid(), to) for maps, to in restored]
        constants = [restoration_error(mean_voxel(to).expand_as(to), to) for _, to in restored]
        contrast, parts = self._contrast(own, other, own_mixed, other_mixed, share)
        error = torch.stack(errors).mean()
        constant = torch.stack(constants).mean() + loss_of_constant(self.queue, self.config.temperature)
        parts |= {"restoration_error": error.detach(), "contrast_loss": contrast.detach()}
        return Losses(contrast + error, parts, constant)

    def after_step(self, progress: Progress) -> None:
        """Move the average, and add the step's keys to the queue, the plain ones last."""
        self.teacher.follow(self.encoder, self.projector, progress.share)
        for keys in reversed(self._keys):
            self.queue.push(keys[None])

    def _contrast(
        self, own: PassedView, other: PassedView, own_mixed: PassedView, other_mixed: PassedView, share: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Contrast plain views, mixtures, and mixtures with mixed keys; keep the keys."""
        # As released, the third kind of key is a mixture of embeddings before they have length 1.
        keys = [other.embedding, other_mixed.embedding, mixed(other.embedding, share)]
        self._keys = [F.normalize(key, dim=1) for key in keys]
        queries = [own.embedding, own_mixed.embedding, own_mixed.embedding]
        logits = [
            queue_logits(F.normalize(q, dim=1), key, self.queue.rows[0], self.config.temperature)
            for q, key in zip(queries, self._keys, strict=True)
        ]
        first = torch.zeros(len(share), dtype=torch.int64, device=share.device)
        parts = {
            **found_part(logits[0], first),
            "positive_cosine": F.cosine_similarity(own.embedding.detach(), other.embedding).mean(),
        }
        return torch.stack([contrast_loss(each, first) for each in logits]).mean(), parts

    def _passed(self, images: Float[Tensor, "b c *s"]) -> PassedView:
        maps = self.encoder.features(images)
        return PassedView(maps, self.projector(_mean(maps)))

    @torch.no_grad()
    def _taught(self, images: Float[Tensor, "b c *s"]) -> PassedView:
        maps = self.teacher.encoder.features(images)
        return PassedView(maps, self.teacher.projector(_mean(maps)))

    def _moves(self, views: Views) -> list[Float[Tensor, "b m"]]:
        return list(views.targets["moves"].to(views.images[0]).unbind(1))

    def _weighted(self, maps: Sequence[Tensor], moves: Float[Tensor, "b m"]) -> list[Tensor]:
        """Weight the channels of the last map by what the moves make of them."""
        weights, last = self.attention(moves), at_least_float32(maps[-1])
        return [*maps[:-1], last * weights.view(*weights.shape, *[1] * (last.ndim - 2))]


def _mean(maps: Sequence[Tensor]) -> Float[Tensor, "b d"]:
    return at_least_float32(maps[-1]).flatten(2).mean(2)
