"""SimSiam: two views of a sample predict each other's embedding, with the gradient stopped on one side.

Paper:     the thesis on IoU-based positives (seed 001), sections 3, 4.1, 4.2 and 4.5; the method is Chen and He,
           "Exploring Simple Siamese Representation Learning", CVPR 2021.
Reference: dittohed/exploring-ssl-for-ct @ 3d345a6; its heads are lightly 1.4.13's.
Variants:  each is a field of ``augment`` and can be set on its own.
           flip_axes     paper: the X axis, which it says spans back to front (H here); released: both image axes
           shift_prob    paper: no shift of intensity in pretraining; released: 0.75
           noise_sigma   paper: 0.01; released: drawn from [0, 0.01]
Shapes:    B samples, C channels, *s spatial axes, d dimensions of projector and predictor.
"""

from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation, augment, choose_one_of, cut, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, ParamGroup, Views, split_decay
from methods.crops import Crops
from methods.encoders import Encoder
from methods.parts.collapse import collapse_part
from methods.parts.flat_map import mean_features
from methods.parts.mlp import predictor, projector
from methods.parts.precision import full_precision
from methods.parts.variants import completed_by

_PAPER: dict[str, Any] = {
    "zoom_prob": 0.75,
    "flip_axes": ("H",),
    "flip_prob": 0.5,
    "rotate_prob": 0.5,
    "scale_prob": 0.75,
    "shift_prob": 0.0,
    "smooth_prob": 0.25,
    "noise_sigma": (0.01, 0.01),
    "noise_prob": 0.25,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"augment": _PAPER},
    "released": {
        "augment": {**_PAPER, "flip_axes": ("H", "W"), "shift_prob": 0.75, "noise_sigma": (0.0, 0.01)},
    },
}


@full_precision()
def simsiam_loss(
    p1: Float[Tensor, "b d"], p2: Float[Tensor, "b d"], z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """Return eq. 4.1: half the negative cosine of p1 and z2 plus half that of p2 and z1, with z as constants."""
    first = F.cosine_similarity(p1, z2.detach()).mean()
    second = F.cosine_similarity(p2, z1.detach()).mean()
    return -0.5 * (first + second)


class SimSiam(Method):
    """An encoder, whose last map is averaged over space, a projector and a predictor."""

    positives: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    class Config(FrozenConfig):
        """``variant`` fills in the fields of ``augment`` that are not given; the completed config is kept."""

        name: Literal["simsiam"] = "simsiam"
        variant: Literal["paper", "released"] = "paper"
        crops: Crops = Crops()
        augment: Augmentation = Augmentation(**_PAPER)
        projector_dim: PositiveInt = 2048
        predictor_dim: PositiveInt = 512

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        config.crops.check_encoder(encoder.spatial_dims, encoder.strides)
        self.config = config
        self.encoder: Encoder = encoder
        self.projector = projector(encoder.channels[-1], config.projector_dim)
        self.predictor = predictor(config.projector_dim, config.predictor_dim)

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this size hold no two crops whose IoU lies in the interval."""
        self.config.crops.check_extent(extent)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut two boxes per sample and augment each independently."""
        boxes = self.config.crops.draw(batch.extents, rng.fold("crops"))
        size = self.config.crops.sized(batch.spatial_dims)
        chosen = choose_one_of(self.config.augment, len(boxes), rng)
        images = [
            augment(cut(batch, box), draw(self.config.augment, size, rng.fold(view), chosen[view]))
            for view, box in enumerate(boxes)
        ]
        return Views(tuple(images), boxes)

    def loss(self, views: Views) -> Losses:
        """Compute eq. 4.1. Each view passes alone, so that batch norm takes its statistics from one view."""
        (z1, p1), (z2, p2) = (self._embed(image) for image in views.images)
        parts = {
            **collapse_part(p1),
            "positive_cosine": F.cosine_similarity(z1.detach(), z2.detach()).mean(),
        }
        # Collapsed outputs are parallel: a constant reaches the least loss there is.
        return Losses(simsiam_loss(p1, p2, z1, z2), parts, z1.new_tensor(-1.0))

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters; the predictor's keep a constant learning rate (section 4.5)."""
        budget = [*self.encoder.parameters(), *self.projector.parameters()]
        return [
            *split_decay(p for p in budget if p.requires_grad),
            *split_decay(self.predictor.parameters(), schedule="constant"),
        ]

    def _embed(self, image: Float[Tensor, "b c *s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Return the embedding z and the prediction p."""
        z = self.projector(mean_features(self.encoder, image))
        return z, self.predictor(z)
