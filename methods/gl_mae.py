"""GL-MAE: hidden patches of large and of small crops are predicted, and what a teacher says of whole large crops.

Paper:     Zhuang et al., "Advancing Volumetric Medical Image Segmentation via Global-Local Masked Autoencoders", IEEE
           TMI 2025 (arXiv 2306.08913); a rival in seed 002, Table 1.
Reference: JiaxinZhuang/GL-MAE @ 266d8f0 has the transformer and its decoder only, no pretraining. Its weights have
           the names of DINO's code (``student``, ``backbone``): consistency is DINO's here, too.
Variants:  none. What could not be read is chosen, each a field: two large crops of 50 to 100 % and four small ones of
           10 to 50 % of a volume, all resized to 96 voxels, the transformer's size; 75 % hidden; MAE's decoder and
           squared error without normalised patches, as other methods for CT; all three losses count alike; teacher,
           temperatures and centre as DINO's, with 4096 outputs, as scans are fewer than photographs.
           The teacher sees whole large crops, the student visible patches of every crop: each says something of its
           own, so that a large crop is compared with itself, too (global to global), and each small crop with all
           large ones (global to local).
Shapes:    B samples, A large crops, V crops, C channels, *s spatial axes, *g patches of a crop along each, N in all,
           K visible, p voxels of one, d dimensions, k outputs.
"""

from math import prod
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, Losses, Method, Progress, Views
from methods.encoders import Encoder
from methods.encoders.vit import transformer_of
from methods.mae import encode_visible
from methods.parts.cluster_health import code_entropy
from methods.parts.distillation import Codes, DistillationTeacher, Temperature, distillation_head, entropy_of_mean
from methods.parts.hidden_blocks import (
    block_error,
    blocks_of,
    count_hidden,
    draw_hidden,
    mean_of_visible,
    normalised,
    visible_places,
)
from methods.parts.multi_crop import AreaCrops, MultiCrop
from methods.parts.precision import at_least_float32, full_precision
from methods.parts.schedule import Ramp, value_at
from methods.parts.sizes import USUAL_SIDE
from methods.parts.teacher import Decay
from methods.parts.token_decoder import TokenDecoder
from methods.parts.variants import completed_by

_LARGE: dict[str, Any] = {"num": 2, "area": (0.5, 1.0)}
_SMALL: dict[str, Any] = {"num": 4, "area": (0.1, 0.5)}


@full_precision()
def consistency_loss(
    scores: Float[Tensor, "v b k"], codes: Float[Tensor, "a b k"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of each code with what each crop of its sample predicts."""
    predicted = (scores / temperature).log_softmax(-1)
    return -torch.einsum("abk,vbk->", codes, predicted) / (len(codes) * scores.shape[0] * scores.shape[1])


class GLMAE(Method):
    """An encoder ``vit`` that sees visible patches, a decoder of tokens, a head, and a teacher."""

    positives: ClassVar[bool] = True
    encoders: ClassVar[tuple[str, ...]] = ("vit",)

    class Config(TokenDecoder.Config):
        """Losses and their weights.

        large_crops           crops that the teacher sees whole, and the student in part
        small_crops           crops that the student sees in part
        mask_ratio            share of a crop's patches that is hidden from the student, rounded up
        normalise_patches     predict each patch at mean 0 and deviation 1
        lambda_large          weight of the large crops' error; that of the small crops counts once
        lambda_consistency    weight of the cross-entropy with the teacher's codes
        num_prototypes        outputs of the head
        teacher_temperature   the teacher's scores are divided by it
        teacher_decay         what the teacher keeps of itself at each step
        centre_decay          what the centre of the teacher's scores keeps
        """

        name: Literal["gl_mae"] = "gl_mae"
        large_crops: AreaCrops = AreaCrops(**_LARGE)
        small_crops: AreaCrops = AreaCrops(**_SMALL)
        augment: Augmentation = Augmentation(flip_axes=("D", "H", "W"), flip_prob=0.5)
        mask_ratio: float = Field(default=0.75, gt=0, lt=1)
        normalise_patches: bool = False
        lambda_large: float = Field(default=1.0, ge=0)
        lambda_consistency: float = Field(default=1.0, ge=0)
        hidden_dim: PositiveInt = 2048
        projector_dim: PositiveInt = 256
        num_prototypes: Annotated[int, Field(ge=2)] = 4096
        temperature: float = Field(default=0.1, gt=0)
        teacher_temperature: Temperature = 0.04
        teacher_decay: Decay = Ramp(start=0.996, end=1.0)
        centre_decay: float = Field(default=0.9, ge=0, lt=1)

        # Who gives one field of the crops keeps the others.
        _completed = completed_by({"paper": {"large_crops": _LARGE, "small_crops": _SMALL}})

        @model_validator(mode="after")
        def _has_both(self) -> "GLMAE.Config":
            for name, crops in (("large_crops", self.large_crops), ("small_crops", self.small_crops)):
                if crops.num == 0:
                    raise ValueError(f"{name}.num 0: both kinds of crops are needed; give 1 or more")
            return self

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, side = config, USUAL_SIDE[encoder.spatial_dims]
        large, small = (
            crops.model_copy(update={"size": crops.size or side})
            for crops in (config.large_crops, config.small_crops)
        )
        self.crops = MultiCrop(large, small, config.augment, encoder.spatial_dims)
        self.crops.check_encoder(encoder.strides)
        self.grids = [
            tuple(length // stride for length, stride in zip(size, encoder.strides, strict=True))
            for _, _, size in self.crops.kinds()
        ]
        self.num_hidden = [count_hidden(config.mask_ratio, grid) for grid in self.grids]
        self.encoder: Encoder = transformer_of(encoder)
        self.decoder = TokenDecoder(config, encoder.channels[-1], prod(encoder.strides) * encoder.in_channels)
        self.head = distillation_head(
            encoder.channels[-1], config.hidden_dim, config.projector_dim, config.num_prototypes
        )
        self.teacher = DistillationTeacher(encoder, self.head)
        self.codes = Codes(config.num_prototypes, config.teacher_temperature, config.centre_decay)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the large and the small crops, augment each, and draw which of their patches are hidden."""
        views = self.crops.views(batch, rng)
        for (name, crops, _), grid, count in zip(self.crops.kinds(), self.grids, self.num_hidden, strict=True):
            drawn = [
                torch.from_numpy(draw_hidden(grid, count, rng.fold(f"hidden {name} {number}")))
                for number in range(crops.num)
            ]
            views.targets[name] = torch.stack(drawn, dim=1).to(batch.voxels.device)
        return views

    def loss(self, views: Views) -> Losses:
        """Add the errors of hidden patches of both kinds of crops, and the cross-entropy with the teacher's codes."""
        config, num_large = self.config, self.config.large_crops.num
        kinds = (views.images[:num_large], views.images[num_large:])
        found = [
            self._reconstruct(kind, torch.cat(images), views.targets[name].transpose(0, 1).flatten(0, 1))
            for kind, (name, images) in enumerate(zip(("large_crops", "small_crops"), kinds, strict=True))
        ]
        (large, large_constant, large_features), (small, small_constant, small_features) = found
        features = torch.cat([large_features, small_features])
        codes = self.codes(self.teacher(kinds[0]))
        scores = self.head(features).unflatten(0, (len(views.images), -1))
        consistency = consistency_loss(scores, codes, config.temperature)
        total = small + config.lambda_large * large + config.lambda_consistency * consistency
        constant = (
            small_constant + config.lambda_large * large_constant + config.lambda_consistency * entropy_of_mean(codes)
        )
        parts = {
            "large_error": large.detach(),
            "small_error": small.detach(),
            "cross_entropy": consistency.detach(),
            "code_entropy": code_entropy(codes),
        }
        return Losses(total, parts, constant.detach())

    def after_step(self, progress: Progress) -> None:
        """Move the teacher, and the centre of its scores."""
        self.teacher.move(self.encoder, self.head, value_at(self.config.teacher_decay, progress.share))
        self.codes.move(progress)

    def _reconstruct(
        self, kind: int, crops: Float[Tensor, "vb c *s"], hidden: Bool[Tensor, "vb *g"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "vb d"]]:
        """Return the error of hidden patches, that of the mean of what is seen, and the mean visible token."""
        places = visible_places(hidden, self.num_hidden[kind])
        visible = encode_visible(transformer_of(self.encoder), crops, places)
        targets = blocks_of(crops, self.encoder.strides)
        targets = normalised(targets) if self.config.normalise_patches else targets
        error = block_error(self.decoder(visible, places, self.grids[kind]), targets, hidden, "squared")
        constant = block_error(mean_of_visible(targets, hidden), targets, hidden, "squared")
        return error, constant, at_least_float32(visible).mean(1)
