"""JSSL, stage 2: a transformer over the slices of a volume predicts the embeddings of slices that it cannot see.

Paper:     Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive
           Clustering", AAAI 2023 (seed 000), "Masked Feature Embedding Prediction", eq. 13 to 15.
Reference: duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive @ 2cc652e, ``mask_swav_3D.py``.
           The printed numbers probably came from it.
Variants:  each flag is a field of the config and can be set on its own.
                       paper                                released
           num_views   1: a transformation s                2, with the same slices masked; their errors add up
           positions   masked: a sum over masked slices     all: a mean over all slices
           distance    norm: of a slice's error             squared: mean over features, divided by the whole number
                                                            of slices below mask_ratio of them
           token_std   0.02: "a learnable parameter"; as    1
                       in BERT, which the paper follows
           As released, the encoder of slices and the projection are not trained, so that what is to be predicted
           stays: a projection that learns would make all tokens alike. Both mask ceil(mask_ratio D) slices.
Shapes:    B volumes, V views, D slices, F features of a token.
"""

from collections.abc import Iterator
from math import ceil, floor
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from data.exact import exact
from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import JSSL
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.encoders.slice_transformer import relating_slices
from methods.parts.precision import LinearHead, full_precision
from methods.parts.sizes import per_axis
from methods.parts.variants import completed_by
from methods.parts.whole_views import WholeViews

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"num_views": 1, "positions": "masked", "distance": "norm", "token_std": 0.02},
    "released": {"num_views": 2, "positions": "all", "distance": "squared", "token_std": 1.0},
}


@full_precision()
def masked_error(
    predicted: Float[Tensor, "v b d f"],
    tokens: Float[Tensor, "v b d f"],
    counted: Bool[Tensor, "b d"],
    distance: Literal["norm", "squared"],
) -> Float[Tensor, ""]:
    """Return eq. 15 over the counted slices, of which all volumes must have equally many; views add up.

    A mean over volumes. ``norm`` is summed over slices, ``squared`` averaged over slices and features.
    """
    difference = predicted - tokens
    if distance == "norm":
        return (difference.norm(dim=-1) * counted).sum() / len(counted)
    return (difference.square().mean(-1) * counted).sum() / counted.sum()


class JSSLMask(Method):
    """An encoder ``slice_transformer``, a learnt token in place of masked slices, and a linear decoder."""

    encoders: ClassVar[tuple[str, ...]] = ("slice_transformer",)

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        size         voxels per axis of a view, to which volumes are cut or padded
        mask_ratio   the share of a volume's slices that is masked, rounded up
        """

        name: Literal["jssl_mask"] = "jssl_mask"
        variant: Literal["paper", "released"] = "paper"
        size: PositiveInt | tuple[PositiveInt, ...] = (64, 128, 128)
        augment: Augmentation = Augmentation(one_of=JSSL)
        mask_ratio: float = Field(default=0.1, gt=0, lt=1)
        num_views: PositiveInt = 1
        positions: Literal["masked", "all"] = "masked"
        distance: Literal["norm", "squared"] = "norm"
        token_std: float = Field(default=0.02, ge=0)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        size = per_axis(config.size, encoder.spatial_dims, "method.size")
        transformer = relating_slices(encoder)
        transformer.check_size(size, "method.size")
        transformer.freeze_slices()
        transformer.projection.requires_grad_(False)
        self.encoder: Encoder = transformer
        self.whole = WholeViews(size, config.augment, config.num_views)
        self.num_masked = ceil(exact(config.mask_ratio) * size[0])
        if self.num_masked == size[0]:
            raise ValueError(
                f"method.mask_ratio {config.mask_ratio:g} masks all {size[0]} slices of a volume; lower it"
            )
        dim = encoder.channels[-1]
        self.token = nn.Parameter(torch.randn(dim) * config.token_std)
        self.decoder = LinearHead(dim, dim)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Fit and augment the volumes; draw the slices that are masked in all views of a volume."""
        views = self.whole.views(batch, rng)
        ranks = rng.fold("masked").uniform(self.whole.size[0]).argsort(axis=1).argsort(axis=1)
        views.targets["masked"] = torch.from_numpy(ranks < self.num_masked).to(batch.voxels.device)
        return views

    def loss(self, views: Views) -> Losses:
        """Compute eq. 15, and for comparison the error of predicting the mean of the slices that are seen."""
        masked, transformer = views.targets["masked"], relating_slices(self.encoder)
        tokens = transformer.project(torch.cat(views.images)).detach().unflatten(0, (len(views.images), -1))
        hidden = masked[None, :, :, None]
        seen = torch.where(hidden, self.token.to(tokens), tokens)
        predicted = self.decoder(transformer.attend(seen.flatten(0, 1))).view_as(tokens)
        mean = (tokens * ~hidden).sum(2, keepdim=True) / (~hidden).sum(2, keepdim=True)
        mean_error = self._error(mean.expand_as(tokens), tokens, masked).detach()
        return Losses(self._error(predicted, tokens, masked), {"mean_error": mean_error}, mean_error)

    def trained_in_chunks(self) -> Iterator[nn.Module]:
        """Yield the modules of the encoder without those of its slices, which are not trained."""
        frozen = {*relating_slices(self.encoder).slices.modules()}
        return (module for module in self.encoder.modules() if module not in frozen)

    def _error(
        self, predicted: Float[Tensor, "v b d f"], tokens: Float[Tensor, "v b d f"], masked: Bool[Tensor, "b d"]
    ) -> Float[Tensor, ""]:
        counted = masked if self.config.positions == "masked" else torch.ones_like(masked)
        error = masked_error(predicted, tokens, counted, self.config.distance)
        if self.config.distance == "norm":
            return error
        return error / max(1, floor(exact(self.config.mask_ratio) * self.whole.size[0]))
