"""Position label: from each voxel of an encoder's last map, a network tells which place of the crop it stands for.

Paper:     Zhang and Gong, "Positional Label for Self-Supervised Vision Transformer", AAAI 2023: the absolute label;
           PositionLabel in the tables of VoCo (seed 002).
Reference: zhangzhemin/PositionalLabel @ 7467e1e, its Swin-T.
Variants:  there are none. The paper trains the labels beside classes of photographs; VoCo, which lists the method for
           volumes, does not say how it ran it. Here the labels are the only task.
           As in the paper, only half of the channels tell the place, through two layers with a GELU between, and a
           linear classifier. They are every second one, not the first ones, since the last layer of a DenseNet has
           its channels at the end. The released Swin leaves out its last merging of patches, for 14 x 14 places; here
           places are those of the encoder's last map, and ``crop_size`` says how many there are.
           Encoders that pad with 0 can tell places near the border without looking at what is shown; the
           transformers of the paper, without positional encoding, cannot.
Shapes:    B samples, K places, C channels, *s spatial axes, *m those of the last map.
"""

from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from data.views.augmentation import Augmentation, augment, cut, draw
from data.views.batch import Batch
from data.views.boxes import check_fits, uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Views
from methods.encoders import Encoder
from methods.parts.classification import classification_losses
from methods.parts.precision import Head, at_least_float32
from methods.parts.sizes import check_coarsest, check_stride, per_axis

CROPS = {2: (224, 224), 3: (96, 96, 96)}


def position_head(channels: int, num_places: int) -> Head:
    """Return the two layers of the released code, the second half as wide, and the classifier."""
    narrow = max(1, channels // 2)
    return Head(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, narrow), nn.Linear(narrow, num_places))


class PositionLabel(Method):
    """An encoder, and a classifier of each voxel of its last map."""

    class Config(FrozenConfig):
        """The crop, and what of a voxel's channels the classifier sees.

        crop_size   by default 224 x 224 pixels of images, and 96 x 96 x 96 voxels of volumes, at a random place
        half        only every second channel tells the place
        """

        name: Literal["position_label"] = "position_label"
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        half: bool = True
        augment: Augmentation = Augmentation()

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        size = config.crop_size or CROPS[encoder.spatial_dims]
        self.size = per_axis(size, encoder.spatial_dims, "method.crop_size")
        check_stride(self.size, encoder.strides, "method.crop_size")
        check_coarsest(self.size, encoder.strides, "method.crop_size")
        self.num_places = prod(length // stride for length, stride in zip(self.size, encoder.strides, strict=True))
        if self.num_places < 2:
            raise ValueError(
                f"method.crop_size {self.size}: the last map is a single voxel, whose place is no question; "
                f"raise method.crop_size to {2 * encoder.stride}"
            )
        self.encoder: Encoder = encoder
        self.step = 2 if config.half else 1
        self.head = position_head(-(-encoder.channels[-1] // self.step), self.num_places)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the crop does not fit into samples of this size."""
        check_fits(self.size, extent, "method.crop_size")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment one crop per sample."""
        boxes = uniform_boxes(batch.extents, self.size, rng.fold("box"))
        images = augment(cut(batch, boxes), draw(self.config.augment, self.size, rng.fold("augment")))
        return Views((images,), (boxes,))

    def loss(self, views: Views) -> Losses:
        """Compute the cross-entropy over all places of all crops."""
        logits = self.head(self._positions(views.images[0])).flatten(0, 1)
        places = torch.arange(self.num_places, device=logits.device).repeat(len(views.images[0]))
        return classification_losses(logits, places)

    def _positions(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k d"]:
        """Return what the classifier sees of each voxel of the last map, the last axis fastest."""
        return at_least_float32(self.encoder.features(images)[-1]).flatten(2)[:, :: self.step].transpose(1, 2)
