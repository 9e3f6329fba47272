"""PyramidTransformerEncoder: a transformer whose maps halve from stage to stage, for images, volumes, or both.

Paper:     Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV
           2022: the encoder of MiT. The pyramid transformer U-Net (PTU) of its first version, "Unified 2D and 3D
           Pre-training for Medical Image Classification and Segmentation", 2021, is of the same kind.
Reference: YtongXie/UniMiSS-code @ 68be0a4, ``UniMiSS/models/MiT_encoder.py``. ``encoder_small`` has 17,321,312
           parameters for images of three channels, 24,644,064 for volumes and 28,523,888 for both; ``encoder_tiny``
           has depths of 1. Its weights load by ``start: {layout: unimiss}``.
Variants:  none. For inputs of another size positions are interpolated linearly. The released code stretches them by a
           tenth of a place too much, those of images by cubic splines, and reads those of a deeper volume in a wrong
           order. It passes a rate of 0.1 for stochastic depth, which nothing reads: there is none here. Its stages
           that decode are not pretrained here: they are ``decoder: pyramid`` of a segmentation.
Shapes:    B images, C channels, *s spatial axes, d dimensions.
"""

from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder
from methods.parts.pyramid_blocks import KINDS, Norm, OverlapEmbedding, PyramidStage, draw_weights, kind_of
from methods.parts.sizes import USUAL_SIDE, check_stride, per_axis

Four = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
NUM_STAGES = 4
STEM_STRIDES = {2: (2, 2), 3: (1, 2, 2)}
STRIDES = {dims: tuple(step * 2**NUM_STAGES for step in steps) for dims, steps in STEM_STRIDES.items()}


class PyramidTransformerEncoder(Encoder):
    """Five maps, at strides 2, 4, 8, 16 and 32, and half of that along the depth; a class token beside them."""

    class Config(FrozenConfig):
        """Defaults are those of MiT-small.

        switchable    hold the embeddings of images and those of volumes, whatever ``spatial_dims``. The weights of
                      2D and 3D encoders then have the same names and shapes: one can begin where the other ended.
                      What is for the other dimension alone does not learn, unless a method asks for it
        image_size    pixels per axis for which the positions of images are, or one number for both
        volume_size   voxels per axis for which the positions of volumes are
        stem_dim      channels of the first map
        stage_dims    channels of the other maps
        depths        blocks of each stage
        num_heads     of each stage
        reductions    how many times coarser along each axis keys and values are, in each stage
        norm          of the embeddings; instance norm takes no map of a single voxel
        """

        name: Literal["pyramid_transformer"] = "pyramid_transformer"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        switchable: bool = True
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = USUAL_SIDE[2]
        volume_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (16, 96, 96)
        stem_dim: PositiveInt = 32
        stage_dims: Four = (48, 128, 256, 512)
        depths: Four = (2, 3, 4, 3)
        num_heads: Four = (1, 2, 4, 8)
        reductions: Four = (6, 4, 2, 1)
        norm: Norm = "instance"

        @property
        def sizes(self) -> dict[int, tuple[int, ...]]:
            """The size of images, of volumes, or of both, for which there are embeddings, images first."""
            sizes = {2: per_axis(self.image_size, 2, "image_size"), 3: self.volume_size}
            return {dims: size for dims, size in sizes.items() if self.switchable or dims == self.spatial_dims}

        @model_validator(mode="after")
        def _fits(self) -> "PyramidTransformerEncoder.Config":
            for dims, size in self.sizes.items():
                check_stride(size, STRIDES[dims], {2: "image_size", 3: "volume_size"}[dims])
            for stage, (dim, heads, reduction) in enumerate(
                zip(self.stage_dims, self.num_heads, self.reductions, strict=True)
            ):
                if dim % heads:
                    raise ValueError(
                        f"num_heads[{stage}] {heads} does not divide stage_dims[{stage}] {dim}; change one"
                    )
                if reduction > (most := 2 ** (NUM_STAGES - 1 - stage)):
                    raise ValueError(
                        f"reductions[{stage}] {reduction}: the stage's map of the smallest image has {most} places "
                        f"along an axis; expected {most} or less"
                    )
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        dims = config.spatial_dims
        self.stem = nn.ModuleDict(
            {
                KINDS[n]: OverlapEmbedding(n, config.in_channels, config.stem_dim, 7, STEM_STRIDES[n], config.norm)
                for n in config.sizes
            }
        )
        widths = pairwise((config.stem_dim, *config.stage_dims))
        self.stages = nn.ModuleList(
            PyramidStage(
                before,
                own,
                config.depths[stage],
                config.num_heads[stage],
                config.reductions[stage],
                {n: stage_grid(size, stage) for n, size in config.sizes.items()},
                config.norm,
                first=stage == 0,
            )
            for stage, (before, own) in enumerate(widths)
        )
        draw_weights(self)
        self.config = config
        self.spatial_dims = dims
        self.in_channels = config.in_channels
        self.channels = (config.stem_dim, *config.stage_dims)
        self.stride = max(STRIDES[dims])
        for parameter in self.unreached():
            parameter.requires_grad_(False)

    @property
    def strides(self) -> tuple[int, ...]:
        """The numbers of which input sizes must be multiples: 32, and 16 along the depth."""
        return STRIDES[self.spatial_dims]

    def unreached(self) -> list[nn.Parameter]:
        """Return what is for images of other dimensions alone."""
        return [p for name, p in self.named_parameters() if not _belongs(name, self.spatial_dims)]

    def learn_images(self) -> None:
        """Let what is for images alone learn beside what is for volumes."""
        self.requires_grad_(True)

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the five maps, finest first, of images or of volumes, whichever these are."""
        return self._pass(x)[0]

    def class_tokens(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the last stage's class token (b d), alone in a list, for ``features`` to compute in chunks."""
        return [self._pass(x)[1].squeeze(1)]

    def levels(self) -> list[nn.Module]:
        """Return the first embedding, and the four stages."""
        return [self.stem, *self.stages]

    def _pass(self, x: Float[Tensor, "b c *s"]) -> tuple[list[Tensor], Float[Tensor, "b 1 d"]]:
        """Return all maps and the last class token."""
        found, token = [self.stem[kind_of(x)](x)], None
        for stage in self.stages:
            places, token = stage(found[-1], token)
            found.append(places)
        assert token is not None
        return found, token


def stage_grid(size: tuple[int, ...], stage: int) -> tuple[int, ...]:
    """Return the size of a stage's map of an image or volume."""
    strides = (step * 2 ** (stage + 1) for step in STEM_STRIDES[len(size)])
    return tuple(length // stride for length, stride in zip(size, strides, strict=True))


def _belongs(name: str, dims: int) -> bool:
    """Tell whether a parameter is for images of so many dimensions, or for all."""
    other = next(kind for number, kind in KINDS.items() if number != dims)
    return other not in name.split(".")


def switchable_transformer(encoder: Encoder) -> PyramidTransformerEncoder:
    """Return the encoder of a method whose ``encoders`` names none but this one."""
    assert isinstance(encoder, PyramidTransformerEncoder), f"{type(encoder).__name__} has no switchable embeddings"
    return encoder
