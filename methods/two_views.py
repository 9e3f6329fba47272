"""Two views: what methods share that compare two views of a sample, and small crops of it with both.

Shapes:    B samples, V views: two, then the small crops; C channels, *s spatial axes, d dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.additions import ADDED
from data.views.augmentation import Augmentation, augment, choose_one_of, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import FrozenConfig, Method, Views
from methods.crops import Crops
from methods.encoders import Encoder
from methods.parts.crop_moves import CropMove
from methods.parts.flat_map import mean_features
from methods.parts.multi_crop import MultiCrop, SmallCrops

TARGETS = 2  # the views that others are compared with


class PairConfig(FrozenConfig):
    """Two views of each sample.

    crops           where the two are cut
    augment         what the first, and small crops if there are any, go through
    augment_other   what the second goes through; none: the same as the first
    """

    crops: Crops = Crops()
    augment: Augmentation = Augmentation()
    augment_other: Annotated[Augmentation | None, ADDED] = None


class TwoViewsConfig(PairConfig):
    """Two views of each sample, and small crops beside them.

    small_crops   further crops, each compared with both views (multi-crop); by default there are none
    """

    small_crops: Annotated[SmallCrops, ADDED] = SmallCrops()


class TwoViewMethod(Method):
    """An encoder that sees two views of each sample, whose last map is averaged over space, and small crops."""

    positives: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    def __init__(self, config: PairConfig, encoder: Encoder) -> None:
        super().__init__()
        config.crops.check_encoder(encoder.spatial_dims, encoder.strides)
        small = config.small_crops if isinstance(config, TwoViewsConfig) else SmallCrops()
        self.small = MultiCrop(SmallCrops(), small, config.augment, encoder.spatial_dims)
        self.small.check_encoder(encoder.strides)
        self.settings = config
        self.encoder: Encoder = encoder

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size hold no two crops whose IoU lies in the interval."""
        self.settings.crops.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the two views and the small crops, and augment each on its own."""
        config = self.settings
        boxes = config.crops.draw(batch.extents, rng.fold("crops"))
        size = config.crops.sized(batch.spatial_dims)
        drawn = [
            draw(how, size, rng.fold(view), choose_one_of(how, TARGETS, rng)[view])
            for view, how in enumerate(self.augments)
        ]
        images = [augment(config.crops.cut(batch, box), own) for box, own in zip(boxes, drawn, strict=True)]
        moves = [CropMove.of(box, own, size) for box, own in zip(boxes, drawn, strict=True)]
        targets = {name: torch.from_numpy(value).to(images[0]) for name, value in self.placed(*moves).items()}
        if not self.small.small.num:
            return Views(tuple(images), boxes, targets)
        small = self.small.views(batch, rng.fold("small crops"))
        return Views((*images, *small.images), (*boxes, *small.boxes), targets)

    def placed(self, first: CropMove, second: CropMove) -> dict[str, Float[np.ndarray, "b ..."]]:
        """Return what the loss has to know of where the two views lie in their samples; by default nothing."""
        return {}

    @property
    def augments(self) -> tuple[Augmentation, Augmentation]:
        """What the two views go through."""
        return self.settings.augment, self.settings.augment_other or self.settings.augment


def embed(
    encoder: Encoder, head: nn.Module, images: Sequence[Float[Tensor, "b c ..."]], together: bool = False
) -> list[Float[Tensor, "b d"]]:
    """Return what the head makes of each view's features.

    Batch norm takes its statistics from what passes together: each of the two views alone, or the two together, and
    the small crops together.
    """
    two, small = list(images[:TARGETS]), list(images[TARGETS:])
    groups = [two] if together else [[image] for image in two]
    return [output for group in [*groups, small] if group for output in embed_together(encoder, head, group)]


def embed_together(
    encoder: Encoder, head: nn.Module, images: Sequence[Float[Tensor, "b c *s"]]
) -> list[Float[Tensor, "b d"]]:
    """Return what the head makes of the features of views of one size, which pass together."""
    return list(head(mean_features(encoder, torch.cat(list(images)))).chunk(len(images)))


def mean_over_pairs(loss: Callable[[int, int], Tensor], num_views: int) -> Tensor:
    """Return the mean of ``loss(view, target)``: each of the two views is the target of all other views."""
    pairs = [(view, target) for target in range(TARGETS) for view in range(num_views) if view != target]
    return torch.stack([loss(view, target) for view, target in pairs]).mean()
