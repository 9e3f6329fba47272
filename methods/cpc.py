"""CPC: a network predicts the codes of patches from the patches above them, and distinguishes them from others.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), section 3.1; after
           van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; the printed numbers came from it.
Variants:  each flag is a field of the config or of ``patches`` and can be set on its own.
                             paper                               released (in 3D)
           loss              infonce: eq. 1, against all other   binary: one positive and one negative, each the mean
                             patches of the sample               over all rows that are predicted
           patches.overlap   0.5: "overlapping", no share given  0
           skip_rows         1: the row below shares voxels      0
                             with the context
           patches.gap       1                                   0: at jitter 4, one pair of neighbours in 25 touches
           The paper predicts from l = 0 on, which is a patch inside the context: here, the first predicted patch is
           always disjoint from the context. In 2D the released code has overlap 0.5, skip_rows 1 and border zero.
           The negative of ``binary`` is another column of the same sample. The released code draws it from the whole
           batch, which is the same only for its batch of one volume.
           The grid lies inside the random crop; the released code pads the crop and each patch with black to their
           old sizes, and a black border tells where a patch lies. Here patches are resized.
Shapes:    B samples, K patches of each, Q columns of the grid (its lines along the first axis), T patches in a
           context, R predicted rows, C channels, *s spatial axes of a patch, d dimensions of a code.
"""

from math import log
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.flat_map import flat_dim, flat_features
from methods.parts.patches import Patches
from methods.parts.precision import LinearHead, full_precision
from methods.parts.pyramid import Border, Pyramid
from methods.parts.variants import completed_by

_GRID: dict[str, Any] = {"grid": 4, "jitter": 4, "span": 0.95}
_PAPER: dict[str, Any] = {"loss": "infonce", "skip_rows": 1, "patches": {**_GRID, "overlap": 0.5, "gap": 1}}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "released": {"loss": "binary", "skip_rows": 0, "patches": {**_GRID, "overlap": 0.0, "gap": 0}},
}


@full_precision()
def infonce_loss(
    predicted: Float[Tensor, "b q r d"], codes: Float[Tensor, "b k d"], positives: Int[Tensor, "q r"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return eq. 1 with every other patch of the sample as a negative, and the share of positives found."""
    logits = torch.einsum("bqrd,bkd->bqrk", predicted, codes).flatten(0, 2)
    labels = positives.flatten().repeat(len(codes))
    return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).to(logits).mean()


@full_precision()
def binary_loss(
    predicted: Float[Tensor, "b q r d"], positive: Float[Tensor, "b q r d"], negative: Float[Tensor, "b q r d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the binary cross-entropy of each column's positive and negative, and the share classified correctly."""
    near, far = ((predicted * codes).mean((2, 3)) for codes in (positive, negative))
    right = torch.stack([near.detach() > 0, far.detach() <= 0]).to(near).mean()
    return (F.softplus(-near) + F.softplus(far)).mean() / 2, right


class CPC(Method):
    """An encoder of single patches, a code for each, a GRU over a context, and a predictor for each row below."""

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        flip_prob     probability, for each patch, of mirroring it along the first axis
        levels        rows of the context above its own patch; None: all there are, at least one
        skip_rows     rows between the context and the first predicted row
        border        what a context holds beyond the grid: the grid's mirror image, or codes of 0
        projector_dim, context_dim   dimensions of a code, and of a context
        """

        name: Literal["cpc"] = "cpc"
        variant: Literal["paper", "released"] = "paper"
        patches: Patches = Patches(**_PAPER["patches"])
        flip_prob: float = Field(default=0.5, ge=0, le=1)
        levels: PositiveInt | None = None
        skip_rows: int = Field(default=1, ge=0)
        border: Border = "mirror"
        loss: Literal["infonce", "binary"] = "infonce"
        projector_dim: PositiveInt = 1024
        context_dim: PositiveInt = 256

        _completed = completed_by(VARIANTS)

    contexts: Tensor
    rows: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.size = config.patches.sized(encoder)
        grid = config.patches.gridded(encoder.spatial_dims)
        pyramid = Pyramid(grid, config.levels, config.skip_rows, config.border)
        pyramid.check(config.patches.overlap)
        self.register_buffer("contexts", torch.from_numpy(pyramid.contexts()), persistent=False)
        self.register_buffer("rows", torch.from_numpy(pyramid.predicted()), persistent=False)
        self.encoder: Encoder = encoder
        self.projector = LinearHead(flat_dim(encoder, self.size), config.projector_dim)
        self.context = nn.GRU(config.projector_dim, config.context_dim, batch_first=True)
        self.predictors = nn.ModuleList(
            LinearHead(config.context_dim, config.projector_dim) for _ in range(self.rows.shape[1])
        )

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size are too small for the grid."""
        self.config.patches.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut all patches, mirror some, and draw another column for each column's negative."""
        boxes = self.config.patches.draw(batch.extents, rng.fold("boxes"))
        images = self.config.patches.cut(batch, boxes, self.size)
        flips = torch.from_numpy(rng.fold("flip").uniform(boxes.shape[1]) < self.config.flip_prob).to(images.device)
        images = torch.where(flips.T[(..., *[None] * (images.ndim - 2))], images.flip(3), images)
        negatives = torch.from_numpy(draw_others(len(self.rows), rng.fold("negatives"))).to(images.device)
        return Views(tuple(images), tuple(boxes.swapaxes(0, 1)), {"negatives": negatives})

    def loss(self, views: Views) -> Losses:
        """Compute the loss. Every patch is encoded once, however many contexts hold it."""
        codes = self.projector(flat_features(self.encoder, torch.cat(views.images)))
        codes = rearrange(codes, "(k b) d -> b k d", k=len(views.images))
        predicted = self._predict(codes)
        if self.config.loss == "infonce":
            total, found = infonce_loss(predicted, codes, self.rows)
        else:
            samples = torch.arange(len(codes), device=codes.device)[:, None, None]
            negative = codes[samples, self.rows[views.targets["negatives"]]]
            total, found = binary_loss(predicted, codes[:, self.rows], negative)
        candidates = codes.shape[1] if self.config.loss == "infonce" else 2
        return Losses(total, {"accuracy": found}, total.new_tensor(log(candidates)))

    @full_precision()
    def _predict(self, codes: Float[Tensor, "b k d"]) -> Float[Tensor, "b q r d"]:
        """Return each column's predictions of the codes below its context; entry K of a context is a code of 0."""
        padded = F.pad(codes, (0, 0, 0, 1))
        seen = padded[:, self.contexts].flatten(0, 1)
        _, last = self.context(seen)
        predicted = torch.stack([predict(last[0]) for predict in self.predictors], dim=1)
        return predicted.unflatten(0, (len(codes), -1))


def draw_others(count: int, rng: SampleRng) -> Int[np.ndarray, "b q"]:
    """Draw another column for each column, uniformly."""
    steps = 1 + (rng.uniform(count) * (count - 1)).astype(np.int64)
    return (np.arange(count) + steps) % count
