"""VoCo: the similarities of a random crop to the crops of a fixed grid, the bases, predict its position.

Paper:     Wu, Zhuang and Chen, "VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical
           Image Analysis", CVPR 2024 (seed 002), section 3 and Table 9.
Reference: Luffy03/VoCo @ ba7b7bd is ``released``: a later method, with a teacher. The printed numbers most likely
           came from ``cvpr``, code that its author shared by a link (Luffy03/VoCo, issue 15).
Variants:  each flag is a field of the config and can be set on its own.
                           cvpr                      paper                      released
           prediction      split: positives and      entropy: eq. 3, the mean   weighted: positives weighted by
                           negatives apart           over all bases             their overlap, negatives apart
           rectify         negative similarities     eq. 1 has none             as cvpr
                           count as 0
           regularisation  squared, of what is       absolute: eq. 5            squared
                           positive
           one_sided       no                        no                         the gradient of a pair of bases
                                                                                reaches the first only
           features        last map                  last map                   the image and all maps but one,
                                                                                through Swin UNETR's skip blocks
           pool            before the projector      after it                   before it
           teacher_decay   no teacher                no teacher                 0.9, from random weights
           num_crops       4, as printed             4                          2
           augment         as printed                flips and quarter-turns    intensity shifts too
           The logarithms and the denominators hold the released 1e-6 in every variant: eq. 3 is infinite where a
           crop inside a base is orthogonal to it. Without ``rectify`` it is undefined for similarities below the
           label less 1; there the loss is that of 1e-6. The released network, Swin V2, is the encoder's matter.
Shapes:    B samples, R random crops and K bases of each, V = R + K views, C channels, *s spatial axes, d dimensions.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation, augment, choose_one_of, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Progress, Views
from methods.encoders import Encoder
from methods.parts.collapse import collapse_part
from methods.parts.constant_similarity import least_loss
from methods.parts.grid import check_tiles, overlap_shares, tiles, uniform_tiles
from methods.parts.mlp import plain_projector
from methods.parts.precision import at_least_float32, full_precision
from methods.parts.ranks import rows_of_all_ranks, share_over_ranks
from methods.parts.resized_crops import cut_resized
from methods.parts.schedule import value_at
from methods.parts.sizes import check_coarsest, check_stride, per_axis
from methods.parts.skip_blocks import SkipBlocks
from methods.parts.teacher import Decay, follow, frozen_copy, redraw
from methods.parts.variants import completed_by

FLOOR = 1e-6
Prediction = Literal["split", "weighted", "entropy"]
Regularisation = Literal["squared", "absolute"]

_PAPER_AUGMENT: dict[str, Any] = {
    "flip_axes": ("D", "H", "W"),
    "flip_prob": 0.2,
    "rotate_prob": 0.2,
    "shift_prob": 0.0,
}
_CVPR: dict[str, Any] = {
    "prediction": "split",
    "rectify": True,
    "regularisation": "squared",
    "one_sided": False,
    "features": "last",
    "pool": "before",
    "teacher_decay": None,
    "num_crops": 4,
    "augment": _PAPER_AUGMENT,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "cvpr": _CVPR,
    "paper": {**_CVPR, "prediction": "entropy", "rectify": False, "regularisation": "absolute", "pool": "after"},
    "released": {
        **_CVPR,
        "prediction": "weighted",
        "one_sided": True,
        "features": "levels",
        "teacher_decay": 0.9,
        "num_crops": 2,
        "augment": {**_PAPER_AUGMENT, "shift_prob": 0.1},
    },
}


@full_precision()
def similarities(p: Float[Tensor, "b r d"], q: Float[Tensor, "b k d"]) -> Float[Tensor, "b r k"]:
    """Return eq. 1: the cosine of each crop's embedding with each base's."""
    return F.cosine_similarity(p[:, :, None], q[:, None], dim=-1)


@full_precision()
def prediction_loss(
    logits: Float[Tensor, "b r k"], shares: Float[Tensor, "b r k"], kind: Prediction
) -> Float[Tensor, ""]:
    """Compare similarities with overlaps; a mean over samples, so that k ranks equal one.

    ``entropy`` is eq. 3. The other two apply it to the bases that a crop overlaps, unweighted or weighted by the
    overlap, and add the mean square of the similarities to the bases that the crop does not overlap.
    """
    closeness = 1 - (shares - logits).abs()
    entropy = -torch.log(closeness.clamp(min=0) + FLOOR)
    if kind == "entropy":
        return entropy.mean()
    positive = (shares > 0).to(logits)
    weights = shares if kind == "weighted" else positive
    return (_weighted_mean(entropy, weights) + _weighted_mean(logits.square(), 1 - positive)).mean()


@full_precision()
def regularisation_loss(q: Float[Tensor, "b k d"], kind: Regularisation, one_sided: bool) -> Float[Tensor, ""]:
    """Return the similarity of a sample's bases as a mean over pairs: eq. 5, or the squares of positive values."""
    first, second = torch.triu_indices(q.shape[1], q.shape[1], 1, device=q.device)
    others = q[:, second].detach() if one_sided else q[:, second]
    cosines = F.cosine_similarity(q[:, first], others, dim=-1)
    return (cosines.abs() if kind == "absolute" else F.relu(cosines).square()).mean()


def _weighted_mean(values: Float[Tensor, "b r k"], weights: Float[Tensor, "b r k"]) -> Float[Tensor, " b"]:
    return (values * weights).sum((1, 2)) / (weights.sum((1, 2)) + FLOOR)


class Embedding(nn.Module):
    """Network from an image and its maps to one embedding: the projector is a head, skip blocks are a decoder's."""

    def __init__(self, encoder: Encoder, features: str, pool: str, dim: int) -> None:
        super().__init__()
        self.skips = SkipBlocks(encoder) if features == "levels" else None
        self.projector = plain_projector(self.skips.out_channels if self.skips else encoder.channels[-1], dim)
        self.pool = pool

    def forward(self, images: Float[Tensor, "b c *s"], maps: list[Tensor]) -> Float[Tensor, "b d"]:
        """Pool over space before or after the projector; several maps are pooled one by one and concatenated."""
        if self.pool == "after":
            positions = at_least_float32(maps[-1]).flatten(2).transpose(1, 2)
            return self.projector(positions.flatten(0, 1)).unflatten(0, positions.shape[:2]).mean(1)
        used = self.skips(images, maps) if self.skips else maps[-1:]
        return self.projector(torch.cat([at_least_float32(level).flatten(2).mean(2) for level in used], dim=1))


class Teacher(nn.Module):
    """The EMA of encoder and head."""

    def __init__(self, encoder: Encoder, head: Embedding) -> None:
        super().__init__()
        self.encoder: Encoder = frozen_copy(encoder)
        self.head: Embedding = frozen_copy(head)


class VoCo(Method):
    """An encoder and a head, trained to predict which bases a crop overlaps, and to keep the bases apart."""

    averages: ClassVar[bool] = True

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        grid            bases along D, H and W; the paper's 4 x 4 x 1 is (1, 4, 4). An image takes the last two
        crop_size       voxels per axis that every crop is resized to, or one number for all axes
        lambda_reg      the paper's lambda
        teacher_decay   a number, or its schedule, such as {start: 0.996, end: 1}; see ``Ramp``
        teacher_start   random weights, as released, or a copy of the student
        """

        name: Literal["voco"] = "voco"
        variant: Literal["cvpr", "paper", "released"] = "cvpr"
        grid: tuple[PositiveInt, ...] = (1, 4, 4)
        crop_size: PositiveInt | tuple[PositiveInt, ...] = 64
        num_crops: PositiveInt = 4
        augment: Augmentation = Augmentation(**_PAPER_AUGMENT)
        lambda_reg: float = Field(default=1.0, ge=0)
        projector_dim: PositiveInt = 2048
        prediction: Prediction = "split"
        rectify: bool = True
        regularisation: Regularisation = "squared"
        one_sided: bool = False
        features: Literal["last", "levels"] = "last"
        pool: Literal["before", "after"] = "before"
        teacher_decay: Decay | None = None
        teacher_start: Literal["random", "copy"] = "random"

        _completed = completed_by(VARIANTS, default="cvpr")

        @model_validator(mode="after")
        def _agree(self) -> "VoCo.Config":
            if np.prod(self.grid) < 2:
                raise ValueError(
                    f"grid {self.grid}: a single base leaves nothing to predict; give two or more, such as (1, 4, 4)"
                )
            if self.features == "levels" and self.pool == "after":
                raise ValueError(
                    "features levels with pool after: maps of different sizes have no common voxels to project; "
                    "set pool=before or features=last"
                )
            return self

        def gridded(self, spatial_dims: int) -> tuple[int, ...]:
            """Return the bases per axis; raise ValueError where the grid has another number of axes."""
            extra, grid = self.grid[:-spatial_dims], self.grid[-spatial_dims:]
            if len(grid) != spatial_dims or any(number != 1 for number in extra):
                raise ValueError(
                    f"method.grid {self.grid} has {len(self.grid)} axes, the encoder has {spatial_dims}; "
                    "give one number per spatial axis (for images D can only be 1)"
                )
            return grid

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.grid = config.gridded(encoder.spatial_dims)
        self.size = per_axis(config.crop_size, encoder.spatial_dims, "method.crop_size")
        check_stride(self.size, encoder.strides, "method.crop_size")
        if config.features == "levels":
            check_coarsest(self.size, encoder.strides, "method.crop_size")
        self.encoder: Encoder = encoder
        self.head = Embedding(encoder, config.features, config.pool, config.projector_dim)
        self.teacher = Teacher(encoder, self.head) if config.teacher_decay is not None else None
        if self.teacher is not None and config.teacher_start == "random":
            redraw(self.teacher)
            self._move_teacher(0.0)  # the released code, too, moves the teacher before its first use

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the grid does not cut samples of this size into equal bases."""
        check_tiles(self.grid, extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut random crops and then the bases, and augment each independently.

        A crop has a base's size and may lie anywhere; the released code never draws the last position.
        """
        crops = uniform_tiles(batch.extents, self.grid, self.config.num_crops, rng.fold("crops"))
        bases = tiles(batch.extents, self.grid)
        boxes = np.concatenate([crops, bases], axis=1).swapaxes(0, 1)
        streams = SampleRng(np.concatenate([rng.fold(view).keys for view in range(len(boxes))]))
        chosen = choose_one_of(self.config.augment, len(boxes), rng).ravel()
        drawn = draw(self.config.augment, self.size, streams, chosen)
        images = augment(cut_resized(batch, boxes, self.size).flatten(0, 1), drawn)
        shares = torch.from_numpy(overlap_shares(crops, bases)).to(images)
        return Views(images.chunk(len(boxes)), tuple(boxes), {"shares": shares})

    def loss(self, views: Views) -> Losses:
        """Compute eq. 7. All views pass together, so that batch norm takes its statistics from crops and bases."""
        config, shares = self.config, views.targets["shares"]
        p, q = self._embed(self.encoder, self.head, views)
        if self.teacher is None:
            cosines = [similarities(p, q.detach())]
        else:
            with torch.no_grad():
                taught_p, taught_q = self._embed(self.teacher.encoder, self.teacher.head, views)
            cosines = [similarities(p, taught_q), similarities(taught_p, q)]
        logits = torch.stack([F.relu(part) if config.rectify else part for part in cosines]).mean(0)
        prediction = prediction_loss(logits, shares.to(logits), config.prediction)
        regularisation = regularisation_loss(q, config.regularisation, config.one_sided)
        parts = {
            "prediction": prediction.detach(),
            "regularisation": regularisation.detach(),
            **collapse_part(torch.cat([p, q], dim=1).flatten(0, 1)),
            **_health(torch.stack(cosines).mean(0).detach(), logits.detach(), shares),
        }
        of_constant = least_loss(prediction_loss, rows_of_all_ranks(shares).to(logits), config.prediction)
        return Losses(prediction + config.lambda_reg * regularisation, parts, of_constant)

    def after_step(self, progress: Progress) -> None:
        """Move the teacher, as the released code does before it uses the teacher in the next step."""
        self._move_teacher(progress.share)

    def _move_teacher(self, share: float) -> None:
        if self.teacher is not None:
            assert self.config.teacher_decay is not None
            decay = value_at(self.config.teacher_decay, share)
            follow(self.teacher.encoder, self.encoder, decay)
            follow(self.teacher.head, self.head, decay)

    def _embed(
        self, encoder: Encoder, head: Embedding, views: Views
    ) -> tuple[Float[Tensor, "b r d"], Float[Tensor, "b k d"]]:
        """Return the embeddings of crops and of bases."""
        images = torch.cat(views.images)
        z = head(images, encoder.features(images))
        by_sample = z.unflatten(0, (len(views.images), -1)).transpose(0, 1)
        num_crops = views.targets["shares"].shape[1]
        return by_sample[:, :num_crops], by_sample[:, num_crops:]


def _health(
    cosines: Float[Tensor, "b r k"], logits: Float[Tensor, "b r k"], shares: Float[Tensor, "b r k"]
) -> dict[str, Tensor]:
    """Return the share of crops that find the base that they overlap most, and of overlaps that the ReLU silences."""
    positive = shares > 0
    return {
        "position_accuracy": (cosines.argmax(-1) == shares.argmax(-1)).to(cosines).mean(),
        **share_over_ranks("dead_positives", ((logits == 0) & positive).sum(), positive.sum()),
    }
