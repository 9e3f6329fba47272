"""SVDNetDetection: a 3D network learns to find objects in photographs, whose colours it sees as neighbouring slices.

Paper:     Zhang et al., SVD-Net (seed 003), sections III-B and IV-A, Figure 2: a 3D encoder sees the colours as
           slices, group transforms make planes of its maps, and a 2D detector finds boxes.
Reference: urmagicsmine/MP3D @ 4ab3ea1. The settings of this pretraining are not released; those that the paper does
           not print are the detector's.
Shapes:    B photographs of H x W pixels.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from data.views.augmentation import Augmentation
from methods.detection.key_slices import KeySlices
from methods.downstream.detection import Detection
from methods.encoders import Encoder
from methods.parts.variable_dimension import COLOURS, slices_of_colours


class SVDNetDetection(Detection):
    """A detector of objects in photographs, whose 3D encoder keeps the depth of three slices."""

    encoders: ClassVar[tuple[str, ...]] = ("resnet3d",)

    class Config(Detection.Config):
        """The fields of ``detection`` but ``slices``, since the colours are the slices.

        Defaults are the paper's: five scales, mirror images, and group norm.
        """

        name: Literal["svdnet_detection"] = "svdnet_detection"  # pyright: ignore[reportIncompatibleVariableOverride]
        size: PositiveInt | tuple[PositiveInt, ...] = 640
        scales: tuple[PositiveInt, ...] | None = (384, 448, 512, 576, 640)
        augment: Augmentation = Augmentation(flip_axes=("W",), flip_prob=0.5)
        norm: Literal["none", "group"] = "group"

    @classmethod
    def takes(cls, encoder: Encoder) -> tuple[int, int]:
        """Return the dimensions and channels of colour photographs."""
        return 2, COLOURS

    def seen(self, encoder: Encoder) -> tuple[KeySlices, int | None]:
        """Return that photographs are seen whole, each as three slices."""
        if encoder.in_channels != 1:
            raise ValueError(
                f"encoder.in_channels {encoder.in_channels}: the colours of a photograph are the slices of a volume "
                "of 1 channel; set encoder.in_channels to 1"
            )
        if self.config.slices is not None:
            raise ValueError(
                f"method.slices {self.config.slices}: a photograph has {COLOURS} slices, its colours; leave slices "
                "out"
            )
        return KeySlices(None), COLOURS

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples are no images."""
        if len(extent) != 2:
            raise ValueError(f"samples of size {extent} have {len(extent)} axes, photographs have 2; choose others")

    def prepared(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 3 h w"]:
        """Turn colours into slices, in the order red, green and blue."""
        return slices_of_colours(images)
