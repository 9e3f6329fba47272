"""Transforms: named changes of views beside those of ``Augmentation``, which every method takes from its config.

``JSSL`` are the seven of which the released code of JSSL (seed 000) gives each view exactly one, and the two views of
a sample two different ones: torchio's at their defaults. Their facts are those of TorchIO-project/torchio @ 172e0ac
(0.18.92), the version of JSSL's time. ``SWAV`` is the colour distortion of SwAV's and SimCLR's views, ``MOCO`` that
of MoCo v2's. ``BYOL_FIRST`` and ``BYOL_SECOND`` are BYOL's, one for each view; MoCo v3, Barlow Twins and VICReg took
them over.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from data.views.transforms.affine import Affine
from data.views.transforms.anisotropy import Anisotropy
from data.views.transforms.bias_field import BiasField
from data.views.transforms.blur import Blur
from data.views.transforms.colour import ColourJitter, Grey
from data.views.transforms.flip import Flip
from data.views.transforms.gamma import Gamma
from data.views.transforms.noise import Noise
from data.views.transforms.solarise import Solarise


def _from_name(transform: Any) -> Any:
    """Let ``flip`` stand for ``{name: flip}``."""
    return {"name": transform} if isinstance(transform, str) else transform


_Names = Literal[
    "flip", "affine", "anisotropy", "noise", "blur", "bias_field", "gamma", "colour_jitter", "grey",
    "solarise",
]  # fmt: skip
_ByName = Annotated[
    Flip | Affine | Anisotropy | Noise | Blur | BiasField | Gamma | ColourJitter | Grey | Solarise,
    Field(discriminator="name"),
]
AnyTransform = Annotated[_ByName, BeforeValidator(_from_name, json_schema_input_type=_Names | _ByName)]
JSSL = (Flip(), Affine(), Anisotropy(), Noise(), Blur(), BiasField(), Gamma())
# Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
DINO = (
    ColourJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, prob=0.8),
    Grey(prob=0.2),
    Blur(sigma=(0.1, 2.0), isotropic=True, prob=0.5),
)
SWAV = (ColourJitter(prob=0.8), Grey(prob=0.2), Blur(sigma=(0.1, 2.0), isotropic=True, prob=0.5))
MOCO = (
    ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8),
    Grey(prob=0.2),
    Blur(sigma=(0.1, 2.0), isotropic=True, prob=0.5),
)
_BYOL_COLOUR = (ColourJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, prob=0.8), Grey(prob=0.2))
BYOL_FIRST = (*_BYOL_COLOUR, Blur(sigma=(0.1, 2.0), isotropic=True))
BYOL_SECOND = (*_BYOL_COLOUR, Blur(sigma=(0.1, 2.0), isotropic=True, prob=0.1), Solarise(prob=0.2))
