"""SVDNet: a 3D network learns to classify photographs, whose colours it sees as neighbouring slices.

Paper:     Zhang et al., "Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised 3D
           Pre-training" (SVD-Net, seed 003), sections III-A, III-B and IV-A.
Reference: urmagicsmine/CSPR @ 390a413, ``resnet18_3d_BN_b32x8_coslr_labelsmoothing_channelshuffle.py``.
Variants:  each flag is a field of the config and can be set on its own.
                    paper                                      released
           order    printed: red, green, blue                  random: drawn for each view
           crop     resized: whole photographs of              area: 8 to 100 % of a photograph, made as large as
                    ``resize_to``, then cut anywhere           a view
           The checkpoint that all transfers begin with is of the released variant.
           Left out: the released code standardises photographs by the mean and deviation of ImageNet. Here
           intensities stay in [0, 1], as downstream tasks see them; the first norm takes up the difference.
Shapes:    B photographs, K classes.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, PositiveInt
from torch import Tensor

from data.labels import CLASSES
from data.views.augmentation import Augmentation, augment, draw
from data.views.batch import Batch
from data.views.intervals import Factors
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.class_numbers import check_single, class_shares, held, single
from methods.parts.classification import classification_losses
from methods.parts.fitting import Fitting
from methods.parts.flat_map import mean_features
from methods.parts.multi_crop import AreaCrops, AreaShares
from methods.parts.precision import LinearHead
from methods.parts.sampled_crops import sample_crops
from methods.parts.variable_dimension import COLOURS, draw_order, slices_of_colours
from methods.parts.variants import completed_by

PLANE = 2  # the axes of a photograph
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"order": "printed", "crop": "resized"},
    "released": {"order": "random", "crop": "area"},
}


class SVDNet(Method):
    """A 3D encoder that keeps the depth of three slices, and a linear classifier on its averaged last map."""

    averages = True
    needs = CLASSES
    encoders: ClassVar[tuple[str, ...]] = ("resnet3d",)

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        size              pixels per side of a view
        resize_to         pixels per side of a whole photograph before a view is cut out (``crop: resized``)
        area, aspect      the share of a photograph that a view shows, and its width to height (``crop: area``)
        augment           by default views are mirrored, as released
        label_smoothing   the probability that is spread evenly over all classes
        """

        name: Literal["svdnet"] = "svdnet"
        variant: Literal["paper", "released"] = "paper"
        size: PositiveInt = 224
        resize_to: PositiveInt = 256
        crop: Literal["resized", "area"] = "resized"
        area: AreaShares = (0.08, 1.0)
        aspect: Factors = (3 / 4, 4 / 3)
        order: Literal["printed", "random"] = "printed"
        augment: Augmentation = Augmentation(flip_axes=("W",), flip_prob=0.5)
        label_smoothing: float = Field(default=0.1, ge=0, lt=1)

        _completed = completed_by(VARIANTS)

    numbers: Tensor
    frequencies: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        if encoder.in_channels != 1:
            raise ValueError(
                f"encoder.in_channels {encoder.in_channels}: the colours of a photograph are the slices of a volume "
                "of 1 channel; set encoder.in_channels to 1"
            )
        if len(facts.names) < 2:
            raise ValueError(
                f"svdnet: the shards name {len(facts.names)} classes, expected at least 2; ingest with classes "
                "(`raydiology shards show` lists them)"
            )
        self.config = config
        self.encoder: Encoder = encoder
        self.size = (config.size,) * PLANE
        whole = config.crop == "resized"
        self.fitting = Fitting.of(config.size, config.resize_to, PLANE, "method") if whole else None
        self.crops = AreaCrops(num=1, area=config.area, size=config.size, aspect=config.aspect)
        self.head = LinearHead(encoder.channels[-1], len(facts.names))
        self.register_buffer("numbers", torch.tensor(sorted(facts.names), dtype=torch.int64), persistent=False)
        self.register_buffer("frequencies", torch.full((len(facts.names),), 1 / len(facts.names)), persistent=False)

    @classmethod
    def takes(cls, encoder: Encoder) -> tuple[int, int]:
        """Return the dimensions and channels of colour photographs."""
        return PLANE, COLOURS

    def see_classes(self, trained_on: Int[np.ndarray, "n m"], judged_on: Int[np.ndarray, "k l"]) -> None:
        """Remember how often each class comes; raise ValueError where a photograph does not have exactly one."""
        numbers = self.numbers.tolist()
        check_single(trained_on, numbers, "svdnet")
        self.frequencies.copy_(torch.from_numpy(class_shares(trained_on, numbers)))

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut a view out of each photograph; ``targets["classes"]`` is (B,), indices of classes."""
        if self.fitting is None:
            boxes = self.crops.draw(batch.extents, self.size, rng.fold("box"))
            images = sample_crops(batch, boxes[None], self.size)[0]
        else:
            images, boxes = self.fitting.apply(batch, rng.fold("window"))
        images = augment(images, draw(self.config.augment, self.size, rng.fold("augment")))
        order = draw_order(rng.fold("order")) if self.config.order == "random" else None
        classes = single(held(batch, self.numbers, "svdnet"), batch, "svdnet")
        return Views((slices_of_colours(images, order),), (boxes,), {"classes": classes})

    def loss(self, views: Views) -> Losses:
        """Compute the cross-entropy with smoothed labels."""
        logits = self.head(mean_features(self.encoder, views.images[0]))
        return classification_losses(logits, views.targets["classes"], self.config.label_smoothing, self.frequencies)
