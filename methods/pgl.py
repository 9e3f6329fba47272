"""PGL: a network predicts, at each place of a view's map, what its moving average makes of it in another view.

Paper:     Xie et al., "PGL: Prior-Guided Local Self-Supervised Learning for 3D Medical Image Segmentation", 2020; a
           rival in Table 6 of JSSL (seed 000).
Reference: none was released.
Variants:  none. The paper's text was not at hand beyond its abstract: it aligns the maps of the region that both
           views show by the spatial transforms that made the views, and minimises the differences of voxels. What
           this leaves open is chosen as in BYOL, which it builds on: heads, which are 1 x 1 x 1 convolutions here,
           the decay of the average, the distance and the sum of both directions. The other view's map is read
           linearly at the centres of one's own cells, where these lie inside the other view. Two crops overlap by an
           IoU of 0.1 or more, so that there is such a region. Small crops would mostly have none, and are not taken.
Shapes:    B samples, C channels, *s spatial axes, P places of a map, n axes, d dimensions.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt, field_validator
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.transforms import Blur, Gamma
from methods.base import Facts, Losses, Progress, Views
from methods.crops import Crops
from methods.encoders import Encoder
from methods.parts.collapse import collapse_part
from methods.parts.crop_moves import CropMove
from methods.parts.mlp import hidden_projector
from methods.parts.momentum_network import MomentumNetwork
from methods.parts.precision import at_least_float32, full_precision
from methods.parts.ranks import number_of_ranks, total_over_ranks
from methods.parts.schedule import Ramp
from methods.parts.teacher import Decay
from methods.two_views import TARGETS, PairConfig, TwoViewMethod


@full_precision()
def read_at(maps: Float[Tensor, "b p d"], map_size: tuple[int, ...], places: Float[Tensor, "b q n"]) -> Tensor:
    """Read maps linearly at places in grid_sample's coordinates, last axis first (b q d)."""
    grid = places.to(maps).view(len(places), *[1] * (places.shape[2] - 1), *places.shape[1:])
    grids = maps.transpose(1, 2).unflatten(2, map_size)
    read = F.grid_sample(grids, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read.flatten(2).transpose(1, 2)


@full_precision()
def local_loss(
    p: Float[Tensor, "b p d"], targets: Float[Tensor, "b p d"], seen: Bool[Tensor, "b p"]
) -> Float[Tensor, ""]:
    """Return the mean squared distance, of length 1, at the places that the other view shows too, over all ranks.

    Each rank returns its sum over the mean number of such places of a rank.
    """
    distances = 2 - 2 * F.cosine_similarity(p, targets.detach(), dim=2)
    count = total_over_ranks(seen.sum()).clamp(min=1)
    return (distances * seen).sum() / count * number_of_ranks()


class PGL(TwoViewMethod):
    """An encoder, a projector and a predictor of each place of its last map, and the moving average of the former."""

    averages: ClassVar[bool] = False

    class Config(PairConfig):
        """The settings of BYOL, for places.

        hidden_dim      of projector and predictor
        teacher_decay   a number, or its schedule; see ``Ramp``
        """

        name: Literal["pgl"] = "pgl"
        crops: Crops = Crops(iou=(0.1, 1.0))
        augment: Augmentation = Augmentation(
            zoom_prob=0.5,
            flip_axes=("D", "H", "W"),
            flip_prob=0.5,
            scale=(-0.25, 0.25),
            scale_prob=0.5,
            noise_sigma=(0.0, 0.1),
            noise_prob=0.25,
            transforms=(Gamma(prob=0.3), Blur(sigma=(0.5, 1.0), isotropic=True, prob=0.2)),
        )
        hidden_dim: PositiveInt = 4096
        projector_dim: PositiveInt = 256
        teacher_decay: Decay = Ramp(start=0.996, end=1.0)

        @field_validator("crops")
        @classmethod
        def _overlap(cls, crops: Crops) -> Crops:
            if crops.area is None and crops.iou[0] == 0:
                raise ValueError(
                    f"iou {list(crops.iou)}: two crops may not overlap, and then nothing is compared; "
                    "expected a lower end above 0, such as [0.1, 1]"
                )
            return crops

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        dim = config.projector_dim
        self.projector = hidden_projector(encoder.channels[-1], config.hidden_dim, dim, last_bias=False)
        self.predictor = hidden_projector(dim, config.hidden_dim, dim, last_bias=False)
        self.teacher = MomentumNetwork(encoder, self.projector, config.teacher_decay)
        size = config.crops.sized(encoder.spatial_dims)
        self.map_size = tuple(-(-side // stride) for side, stride in zip(size, encoder.strides, strict=True))

    def placed(self, first: CropMove, second: CropMove) -> dict[str, Float[np.ndarray, "b ..."]]:
        """Return where the cells of each view's map lie in the other view, from -1 to 1, last axis first."""
        found = [
            2 * (other.in_views(own.in_samples(own.cells(self.map_size))) + 0.5) / own.size - 1
            for own, other in ((first, second), (second, first))
        ]
        return {"places": np.stack(found, axis=1)[..., ::-1].copy()}

    def loss(self, views: Views) -> Losses:
        """Compare the places of each view that the other one shows, in both directions."""
        z = [self._by_place(self.encoder, self.projector, image) for image in views.images]
        p = [self.predictor(one.flatten(0, 1)).unflatten(0, one.shape[:2]) for one in z]
        with torch.no_grad():
            taught = [self._by_place(self.teacher.encoder, self.teacher.projector, image) for image in views.images]
        losses: list[Tensor] = []
        for view in range(TARGETS):
            places = views.targets["places"][:, view]
            seen = (places.abs() <= 1).all(2)
            losses.append(local_loss(p[view], read_at(taught[1 - view], self.map_size, places), seen))
        loss = torch.stack(losses).sum()
        parts = {**collapse_part(p[0].flatten(0, 1)), "positive_cosine": 1 - losses[0].detach() / 2}
        # Collapsed outputs are parallel: a constant reaches the least loss there is.
        return Losses(loss, parts, loss.new_tensor(0.0))

    def after_step(self, progress: Progress) -> None:
        """Move the average."""
        self.teacher.follow(self.encoder, self.projector, progress.share)

    def _by_place(self, encoder: Encoder, head: torch.nn.Module, image: Tensor) -> Float[Tensor, "b p d"]:
        """Return what a head makes of each place of the last map, in raster order."""
        places = at_least_float32(encoder.features(image)[-1]).flatten(2).transpose(1, 2)
        return head(places.flatten(0, 1)).unflatten(0, places.shape[:2])
