"""Self-distillation: what DINO, UniMiSS and USST share: crops, a student, a teacher, a head and codes.

Paper:     Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
Reference: facebookresearch/dino @ 7c446df, ``main_dino.py``.
Shapes:    B samples, C channels, *s spatial axes.
"""

from math import ceil
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, Method, ParamGroup, Progress, Views, split_decay
from methods.clustering import CropsConfig
from methods.encoders import Encoder
from methods.parts.distillation import Codes, DistillationTeacher, Temperature, distillation_head
from methods.parts.multi_crop import MultiCrop
from methods.parts.schedule import Ramp, value_at
from methods.parts.teacher import Decay


class DistillationConfig(CropsConfig):
    """Defaults are DINO's as released.

    num_prototypes        outputs of the head
    frozen_epochs         first passes over the samples in which the prototypes stay as they were drawn
    teacher_temperature   what the teacher's centred scores are divided by before they become codes
    teacher_decay         what the teacher keeps of itself at each step
    centre_decay          what the centre of the teacher's outputs keeps
    """

    projector_dim: PositiveInt = 256
    num_prototypes: Annotated[int, Field(ge=2)] = 65536
    temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: Temperature = 0.04
    teacher_decay: Decay = Ramp(start=0.996, end=1.0)
    centre_decay: float = Field(default=0.9, ge=0, lt=1)
    frozen_epochs: NonNegativeInt = 1


class SelfDistillation(Method):
    """An encoder and a head; a teacher has both, too, and its scores become codes."""

    positives: ClassVar[bool] = True

    def __init__(self, config: DistillationConfig, encoder: Encoder, facts: Facts) -> None:
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
