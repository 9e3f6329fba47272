"""Universal Model: crops of several scales are restored and their scale is told, by features that hide the modality.

Paper:     Zhang et al., "Universal Model for 3D Medical Image Analysis", 2020 (arXiv 2010.06107); a rival in the
           tables of JSSL (seed 000).
Reference: none was released but the weights.
Variants:  none. Of the paper, its abstract alone was at hand: one self-supervised scheme on several data sets, an
           adversarial module for features that do not depend on the modality, and a classifier of scales. What this
           leaves open is chosen, each a field: distortions and their restoration as in Models Genesis; crops of
           a half, three quarters and the whole of ``crop_size``, resized to it; linear heads on the averaged last
           map; weights of 0.01 of both, TransVW's for its classifier beside the same error; and, as adversary, a
           reversed gradient (Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015),
           so that one optimiser trains all. A sample's class is its modality, or its data set: one for each sample.
           The network is the encoder that is given, with a U-Net's decoder. Only the encoder is exported.
Shapes:    B samples, C channels, *s spatial axes, d features.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from data.labels import CLASSES, Labels
from data.views.batch import Batch
from data.views.boxes import boxes_at, check_fits
from data.views.rng import SampleRng, scale_words
from methods.base import Facts, Losses, Method, Views
from methods.encoders import Encoder
from methods.models_genesis import CROPS, restoration_error
from methods.parts.class_numbers import check_single, class_shares, held, single
from methods.parts.classification import classification_losses
from methods.parts.constant_voxel import mean_voxel
from methods.parts.distortions import DistortionConfig, distorted
from methods.parts.precision import LinearHead, at_least_float32
from methods.parts.reconstruction import Reconstruction
from methods.parts.sampled_crops import sample_crops
from methods.parts.sizes import check_coarsest, check_stride, per_axis

NAME = "universal_model"


class _Reversal(torch.autograd.Function):
    """Return what is given; the gradient comes back with its sign changed."""

    @staticmethod
    def forward(ctx: object, given: Tensor) -> Tensor:
        return given.view_as(given)

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


def reversed_gradient(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Return features through which gradients come back with their sign changed."""
    found = _Reversal.apply(features)
    assert isinstance(found, Tensor)
    return found


class UniversalModel(Method):
    """An encoder, a decoder of all of its maps, a head that tells scales and one that tells modalities."""

    needs: ClassVar[Labels | None] = CLASSES

    class Config(DistortionConfig):
        """Crops, and the weights of the losses beside that of what is restored, which is 1.

        crop_size         by default 64 x 64 pixels of images, and 32 x 64 x 64 voxels of volumes
        zooms             what a crop measures, as shares of ``crop_size``; each is equally likely
        lambda_scale      weight of the cross-entropy of scales
        lambda_modality   weight of the cross-entropy of modalities
        """

        name: Literal["universal_model"] = NAME
        crop_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        zooms: Annotated[tuple[float, ...], Field(min_length=2)] = (0.5, 0.75, 1.0)
        lambda_scale: float = Field(default=0.01, ge=0)
        lambda_modality: float = Field(default=0.01, ge=0)

        @field_validator("zooms")
        @classmethod
        def _in_order(cls, zooms: tuple[float, ...]) -> tuple[float, ...]:
            if list(zooms) != sorted(set(zooms)) or zooms[0] <= 0:
                raise ValueError(f"zooms {list(zooms)}: expected positive numbers, each larger than the one before")
            return zooms

    numbers: Tensor
    frequencies: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        if len(facts.names) < 2:
            raise ValueError(
                f"{NAME}: the shards name {len(facts.names)} classes, expected at least 2, one for each modality; "
                "ingest with classes (`raydiology shards show` lists them)"
            )
        self.config, dims = config, encoder.spatial_dims
        self.size = per_axis(config.crop_size or CROPS[dims], dims, "method.crop_size")
        check_stride(self.size, encoder.strides, "method.crop_size")
        check_coarsest(self.size, encoder.strides, "method.crop_size")
        self.shown = np.rint(np.outer(config.zooms, self.size)).astype(np.int64).clip(1)
        self.encoder: Encoder = encoder
        self.decoder = Reconstruction(encoder, encoder.in_channels)
        self.scale_head = LinearHead(encoder.channels[-1], len(config.zooms))
        self.modality_head = LinearHead(encoder.channels[-1], len(facts.names))
        self.register_buffer("numbers", torch.tensor(sorted(facts.names), dtype=torch.int64), persistent=False)
        self.register_buffer("frequencies", torch.full((len(facts.names),), 1 / len(facts.names)), persistent=False)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where the largest crop does not fit into samples of this size."""
        check_fits(tuple(self.shown[-1].tolist()), extent, "method.crop_size")

    def see_classes(self, trained_on: Int[np.ndarray, "n m"], judged_on: Int[np.ndarray, "k l"]) -> None:
        """Remember how often each modality comes; raise ValueError where a sample does not have exactly one."""
        numbers = self.numbers.tolist()
        check_single(trained_on, numbers, NAME)
        self.frequencies.copy_(torch.from_numpy(class_shares(trained_on, numbers)))

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut a crop of one scale out of each sample and resize it; return it distorted, and as it was."""
        scales = rng.fold("scale").integers(len(self.shown))
        sides = self.shown[scales]
        low = scale_words(rng.fold("place").words(sides.shape[1]), batch.extents - sides + 1)
        boxes = boxes_at(low, self.size)
        boxes[:, 1] = low + sides
        whole = sample_crops(batch, boxes[None], self.size)[0]
        seen = distorted(whole, self.config, rng.fold("distortion"))
        modalities = single(held(batch, self.numbers, NAME), batch, NAME)
        targets = {"modalities": modalities.to(whole.device), "scales": torch.from_numpy(scales).to(whole.device)}
        return Views((seen, whole), (boxes, boxes), targets)

    def loss(self, views: Views) -> Losses:
        """Add the error, and both weighted cross-entropies; the encoder raises that of modalities."""
        config, (seen, whole) = self.config, views.images
        maps = self.encoder.features(seen)
        error = restoration_error(at_least_float32(self.decoder(maps)).sigmoid(), whole)
        features = at_least_float32(maps[-1]).flatten(2).mean(2)
        scale = classification_losses(self.scale_head(features), views.targets["scales"])
        hidden = self.modality_head(reversed_gradient(features))
        modality = classification_losses(hidden, views.targets["modalities"], shares=self.frequencies)
        assert scale.of_constant is not None
        assert modality.of_constant is not None
        constant = (
            restoration_error(mean_voxel(whole).expand_as(whole), whole)
            + config.lambda_scale * scale.of_constant
            + config.lambda_modality * modality.of_constant
        )
        parts = {
            "restoration_error": error.detach(),
            "scale_accuracy": scale.parts["accuracy"],
            "discrimination_loss": modality.total.detach(),
        }
        total = error + config.lambda_scale * scale.total + config.lambda_modality * modality.total
        return Losses(total, parts, constant.detach())
