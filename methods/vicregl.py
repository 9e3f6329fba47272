"""VICRegL: VICReg of whole views, and of places of their maps that lie, or look, most alike.

Paper:     Bardes et al., "VICRegL: Self-Supervised Learning of Local Visual Features", NeurIPS 2022; a rival in
           Tables 1 and 3 of VoCo (seed 002).
Reference: facebookresearch/VICRegL @ 1345219.
Variants:  each flag is a field of the config and can be set on its own.
                             paper                            released
           terms             sum: variances and covariances   mean
                             of the two views are added
           feature_matches   20: the best pairs               all: each place has a partner
           back_matches      20: as many from the second      4
                             view to the first
           follow_moves      yes: flips change where a        no: places are those of the crops before flips
                             place lies
           pairs             both orders of the two views     last: the loss of the last order replaces that of
                                                              the first, and is halved
           alpha is the paper's for ConvNeXt, 0.75; for ResNet-50 it is 0.9. Matches are drawn without regard to
           order: the selected places are kept in raster order, as released. Small crops, for which the released code
           has four matches, take part in the loss of whole views alone.
Shapes:    B samples of a rank, N of all ranks, C channels, *s spatial axes, P places of a map, M matches, d
           dimensions.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from data.views.augmentation import Augmentation
from methods.base import Facts, Losses, Views
from methods.byol import AUGMENT
from methods.encoders import Encoder
from methods.parts.crop_moves import CropMove
from methods.parts.mlp import expander
from methods.parts.precision import at_least_float32, full_precision
from methods.parts.ranks import gathered
from methods.parts.variance_covariance import (
    HINGE_OF_CONSTANT,
    check_several,
    covariance_penalty,
    variance_hinge,
)
from methods.parts.variants import completed_by
from methods.two_views import TARGETS, TwoViewMethod, TwoViewsConfig, embed_together, mean_over_pairs

Terms = Float[Tensor, "3"]  # invariance, variance, covariance
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        **AUGMENT,
        "terms": "sum",
        "feature_matches": 20,
        "back_matches": 20,
        "follow_moves": True,
        "pairs": "both",
    },
    "released": {
        **AUGMENT,
        "terms": "mean",
        "feature_matches": "all",
        "back_matches": 4,
        "follow_moves": False,
        "pairs": "last",
    },
}


@full_precision()
def best_matches(distances: Float[Tensor, "b p q"], num: int) -> tuple[Int64[Tensor, "b m"], Int64[Tensor, "b m"]]:
    """Return the ``num`` places (m, at most p) nearest to one of the other map, in raster order, and the latter."""
    nearest, partners = distances.min(2)
    chosen = nearest.topk(min(num, nearest.shape[1]), dim=1, largest=False).indices.sort(1).values
    return chosen, partners.gather(1, chosen)


@full_precision()
def terms_of(first: Float[Tensor, "b *p d"], second: Float[Tensor, "b *p d"]) -> Terms:
    """Return VICReg's three terms of matched embeddings; variance and covariance over ranks, as means of both."""
    everyone = [gathered(first), gathered(second)]
    return torch.stack(
        [
            (first - second).square().mean(),
            torch.stack([variance_hinge(z) for z in everyone]).mean(),
            torch.stack([covariance_penalty(z) for z in everyone]).mean(),
        ]
    )


def picked(maps: Float[Tensor, "b p d"], places: Int64[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Return the embeddings of some places."""
    return maps.gather(1, places[:, :, None].expand(-1, -1, maps.shape[2]))


class VICRegL(TwoViewMethod):
    """An encoder, an expander of its averaged last map, and one of each place of this map."""

    averages: ClassVar[bool] = False

    class Config(TwoViewsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        projector_dim       width of the embeddings of whole views and of their hidden layers
        maps_dim            the same for places of maps
        alpha               the share of whole views in the loss; the rest is that of places
        lambda_invariance   the paper's lambda
        lambda_variance     the paper's mu
        lambda_covariance   the paper's nu
        terms               how the variances and covariances of two views are joined
        num_matches         of places by where they lie, from the first map to the second: the paper's gamma
        back_matches        the same from the second map to the first
        feature_matches     of places by what they look like, in each direction
        follow_moves        places follow flips, zooms and turns of their view
        pairs               orders of the two views that count
        """

        name: Literal["vicregl"] = "vicregl"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**AUGMENT["augment"])
        augment_other: Augmentation | None = Augmentation(**AUGMENT["augment_other"])
        projector_dim: PositiveInt = 8192
        maps_dim: PositiveInt = 512
        alpha: float = Field(default=0.75, ge=0, le=1)
        lambda_invariance: float = Field(default=25.0, ge=0)
        lambda_variance: float = Field(default=25.0, ge=0)
        lambda_covariance: float = Field(default=1.0, ge=0)
        terms: Literal["sum", "mean"] = "sum"
        num_matches: PositiveInt = 20
        back_matches: PositiveInt = 20
        feature_matches: PositiveInt | Literal["all"] = 20
        follow_moves: bool = True
        pairs: Literal["both", "last"] = "both"

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = expander(encoder.channels[-1], config.projector_dim, bias=True)
        self.maps_projector = expander(encoder.channels[-1], config.maps_dim, bias=True)

    def placed(self, first: CropMove, second: CropMove) -> dict[str, Float[np.ndarray, "b ..."]]:
        """Return where the places of the two last maps lie in the samples."""
        map_size = tuple(-(-side // stride) for side, stride in zip(first.size, self.encoder.strides, strict=True))
        moves = [first, second] if self.config.follow_moves else [first.as_cut(), second.as_cut()]
        return {"places": np.stack([each.in_samples(each.cells(map_size)) for each in moves], axis=1)}

    def loss(self, views: Views) -> Losses:
        """Compute eq. 4. Each view passes alone."""
        config, double = self.config, TARGETS if self.config.terms == "sum" else 1
        maps = [at_least_float32(self.encoder.features(image)[-1]).flatten(2) for image in views.images[:TARGETS]]
        z = [self.projector(one.mean(2)) for one in maps]
        if views.images[TARGETS:]:
            z += embed_together(self.encoder, self.projector, views.images[TARGETS:])
        check_several(len(gathered(z[0])))
        local = [self._by_place(one.transpose(1, 2)) for one in maps]
        weights = z[0].new_tensor(
            [config.lambda_invariance, config.lambda_variance * double, config.lambda_covariance * double]
        )
        whole, places = self._whole_terms(z), self._local_terms(local, views.targets["places"])
        loss = config.alpha * (weights * whole).sum() + (1 - config.alpha) * (weights * places).sum()
        names = ("invariance", "variance", "covariance")
        parts = dict(
            zip((*names, *(f"local_{name}" for name in names)), torch.cat([whole, places]).detach(), strict=True)
        )
        # Of equal embeddings, all but the variance is as it should be; places are matched in two ways.
        kinds = config.alpha + (1 - config.alpha) * 2 * self._share
        return Losses(loss, parts, weights[1] * HINGE_OF_CONSTANT * kinds)

    @property
    def _share(self) -> float:
        return 0.5 if self.config.pairs == "last" else 1.0

    def _by_place(self, maps: Float[Tensor, "b p c"]) -> Float[Tensor, "b p d"]:
        return self.maps_projector(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])

    def _whole_terms(self, z: list[Float[Tensor, "b d"]]) -> Terms:
        """Return the terms of whole views: VICReg's."""
        everyone = [gathered(one) for one in z]
        near = mean_over_pairs(lambda view, target: (z[view] - z[target]).square().mean(), len(z))
        spread = [
            torch.stack([function(one) for one in everyone]).mean()
            for function in (variance_hinge, covariance_penalty)
        ]
        return torch.stack([near, *spread])

    def _local_terms(self, maps: list[Float[Tensor, "b p d"]], places: Float[Tensor, "b 2 p n"]) -> Terms:
        """Return the sum of the terms by places and by features; each is the mean of both directions."""
        config, where = self.config, [own.to(maps[0]) for own in places.unbind(1)]
        features = maps[0].shape[1] if config.feature_matches == "all" else config.feature_matches

        def of_order(first: int, second: int) -> Terms:
            directions = ((first, second, config.num_matches), (second, first, config.back_matches))
            found: list[Terms] = []
            for own, other, num in directions:
                for distances, count in (
                    (torch.cdist(maps[own].detach(), maps[other].detach()), features),
                    (torch.cdist(where[own], where[other]), num),
                ):
                    chosen, partners = best_matches(distances, count)
                    found.append(terms_of(picked(maps[own], chosen), picked(maps[other], partners)))
            return torch.stack(found).sum(0) / 2

        if config.pairs == "last":
            return self._share * of_order(1, 0)
        return torch.stack([of_order(0, 1), of_order(1, 0)]).mean(0)
