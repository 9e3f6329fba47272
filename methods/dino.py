"""DINO: a student predicts, from every crop of a sample, what its own moving average says of the large crops.

Paper:     Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021; a rival of JSSL in
           seed 000, Table 6.
Reference: facebookresearch/dino @ 7c446df, ``main_dino.py``.
Variants:  each flag is a field of the config and can be set on its own.
                                paper                                     released
           teacher_temperature  0.04 to 0.07 over the first 30 of 300     0.04, the script's default
                                epochs
           The last map of any encoder is averaged; there is no class token. Sizes of crops are those of
           ``parts/multi_crop.py``. As released, the first large crop is always blurred, the second in 10 % of cases
           and solarised in 20 %, a small one blurred in 50 %; here any crop is blurred in 50 %, and none solarised.
           The weight decay that rises from 0.04 to 0.4 is the optimiser's matter, and stays constant here.
Shapes:    B samples, A large crops, V crops, C channels, *s spatial axes, d dimensions, K prototypes.
"""

from math import ceil
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import DINO as DINO_TRANSFORMS
from methods.base import Facts, Losses, Method, ParamGroup, Progress, Views, split_decay
from methods.clustering import CropsConfig
from methods.encoders import Encoder
from methods.parts.cluster_health import code_parts
from methods.parts.distillation import Codes, DistillationTeacher, Temperature, distillation_head, entropy_of_mean
from methods.parts.multi_crop import AreaCrops, MultiCrop, crop_features
from methods.parts.ranks import number_of_ranks
from methods.parts.schedule import Ramp, value_at
from methods.parts.swapped_codes import swapped_loss
from methods.parts.teacher import Decay
from methods.parts.variants import completed_by

_LARGE: dict[str, Any] = {"num": 2, "area": (0.4, 1.0)}
_SMALL: dict[str, Any] = {"num": 8, "area": (0.05, 0.4)}
_AUGMENT: dict[str, Any] = {"flip_axes": ("W",), "flip_prob": 0.5, "transforms": DINO_TRANSFORMS}
_CROPS = {"large_crops": _LARGE, "small_crops": _SMALL, "augment": _AUGMENT}
_WARMED: dict[str, Any] = {"start": 0.04, "end": 0.07, "over": 0.1, "shape": "linear"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**_CROPS, "teacher_temperature": _WARMED},
    "released": {**_CROPS, "teacher_temperature": 0.04},
}


class DINO(Method):
    """An encoder, whose last map is averaged over space, and a head; a teacher has both, too."""

    positives: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    class Config(CropsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        num_prototypes        outputs of the head
        frozen_epochs         first passes over the samples in which the prototypes stay as they were drawn
        teacher_decay         what the teacher keeps of itself at each step
        centre_decay          what the centre of the teacher's outputs keeps
        """

        name: Literal["dino"] = "dino"
        variant: Literal["paper", "released"] = "paper"
        large_crops: AreaCrops = AreaCrops(**_LARGE)
        small_crops: AreaCrops = AreaCrops(**_SMALL)
        augment: Augmentation = Augmentation(**_AUGMENT)
        projector_dim: PositiveInt = 256
        num_prototypes: Annotated[int, Field(ge=2)] = 65536
        temperature: float = Field(default=0.1, gt=0)
        teacher_temperature: Temperature = Ramp(**_WARMED)
        teacher_decay: Decay = Ramp(start=0.996, end=1.0)
        centre_decay: float = Field(default=0.9, ge=0, lt=1)
        frozen_epochs: NonNegativeInt = 1

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.crops = MultiCrop(config.large_crops, config.small_crops, config.augment, encoder.spatial_dims)
        self.crops.check_encoder(encoder.strides)
        self.encoder: Encoder = encoder
        self.head = distillation_head(
            encoder.channels[-1], config.hidden_dim, config.projector_dim, config.num_prototypes
        )
        self.teacher = DistillationTeacher(encoder, self.head)
        self.codes = Codes(config.num_prototypes, config.teacher_temperature, config.centre_decay)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the large and the small crops, and augment each on its own."""
        return self.crops.views(batch, rng)

    def loss(self, views: Views) -> Losses:
        """Compute the mean cross-entropy of a large crop's code with what each other crop predicts."""
        num_large = self.config.large_crops.num
        scores = self.head(crop_features(self.encoder, views.images)).unflatten(0, (len(views.images), -1))
        codes = self.codes(self.teacher(views.images[:num_large]))
        parts = code_parts(codes, num_large * codes.shape[1] * number_of_ranks())
        total = swapped_loss(scores, codes, self.config.temperature, "mean")
        return Losses(total, parts, entropy_of_mean(codes))

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters; the prototypes learn after ``frozen_epochs``."""
        *hidden, prototypes = self.head
        learning = [*self.encoder.parameters(), *nn.ModuleList(hidden).parameters()]
        return [
            *split_decay(p for p in learning if p.requires_grad),
            ParamGroup([*prototypes.parameters()], starts_at=min(1.0, self._frozen_steps / self.facts.steps)),
        ]

    def doubts(self) -> tuple[str, ...]:
        """Doubt a budget in which the prototypes never learn."""
        if self._frozen_steps < self.facts.steps:
            return ()
        return (
            f"method.frozen_epochs {self.config.frozen_epochs}: the prototypes learn after step "
            f"{ceil(self._frozen_steps)}, and the budget has {self.facts.steps} steps; lower method.frozen_epochs "
            "or raise the budget",
        )

    @property
    def _frozen_steps(self) -> float:
        return self.config.frozen_epochs * self.facts.num_samples / self.facts.batch_size

    def after_step(self, progress: Progress) -> None:
        """Move the teacher, and the centre of its outputs."""
        decay = value_at(self.config.teacher_decay, progress.share)
        self.teacher.move(self.encoder, self.head, decay)
        self.codes.move(progress)
