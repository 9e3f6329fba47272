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
           The weight decay that rises from 0.04 to 0.4 is the optimiser's matter (``final_weight_decay``).
Shapes:    B samples, A large crops, V crops, C channels, *s spatial axes, d dimensions, K prototypes.
"""

from typing import Any, ClassVar, Literal

from data.views.augmentation import Augmentation
from data.views.transforms import DINO as DINO_TRANSFORMS
from methods.base import Losses, Views
from methods.parts.cluster_health import code_parts
from methods.parts.distillation import Temperature, entropy_of_mean
from methods.parts.multi_crop import AreaCrops, crop_features
from methods.parts.ranks import number_of_ranks
from methods.parts.schedule import Ramp
from methods.parts.swapped_codes import swapped_loss
from methods.parts.variants import completed_by
from methods.self_distillation import DistillationConfig, SelfDistillation

_LARGE: dict[str, Any] = {"num": 2, "area": (0.4, 1.0)}
_SMALL: dict[str, Any] = {"num": 8, "area": (0.05, 0.4)}
_AUGMENT: dict[str, Any] = {"flip_axes": ("W",), "flip_prob": 0.5, "transforms": DINO_TRANSFORMS}
_CROPS = {"large_crops": _LARGE, "small_crops": _SMALL, "augment": _AUGMENT}
_WARMED: dict[str, Any] = {"start": 0.04, "end": 0.07, "over": 0.1, "shape": "linear"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**_CROPS, "teacher_temperature": _WARMED},
    "released": {**_CROPS, "teacher_temperature": 0.04},
}


class DINO(SelfDistillation):
    """An encoder, whose last map is averaged over space, and a head; a teacher has both, too."""

    averages: ClassVar[bool] = True

    class Config(DistillationConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept."""

        name: Literal["dino"] = "dino"
        variant: Literal["paper", "released"] = "paper"
        large_crops: AreaCrops = AreaCrops(**_LARGE)
        small_crops: AreaCrops = AreaCrops(**_SMALL)
        augment: Augmentation = Augmentation(**_AUGMENT)
        teacher_temperature: Temperature = Ramp(**_WARMED)

        _completed = completed_by(VARIANTS)

    def loss(self, views: Views) -> Losses:
        """Compute the mean cross-entropy of a large crop's code with what each other crop predicts."""
        num_large = self.config.large_crops.num
        scores = self.head(crop_features(self.encoder, views.images)).unflatten(0, (len(views.images), -1))
        codes = self.codes(self.teacher(views.images[:num_large]))
        parts = code_parts(codes, num_large * codes.shape[1] * number_of_ranks())
        total = swapped_loss(scores, codes, self.config.temperature, "mean")
        return Losses(total, parts, entropy_of_mean(codes))
