"""ViTEncoder: a vision transformer on the patches of an image, in 2D and 3D.

Paper:     Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; for volumes as Hatamizadeh et al., "UNETR",
           WACV 2022, section 3.1: patches of 16 voxels a side, 12 blocks of width 768.
Reference: MONAI's ``ViT`` without a class token, of whose parts it is made: the state dict has the same keys, so that
           weights load strictly, both ways.
Variants:  positions   learnt, as in both papers; or sines and cosines, which do not learn, as in MAE
           Positions belong to images of ``image_size``. For images of another size they are interpolated linearly.
Shapes:    B images, C channels, *s spatial axes, *g patches along each, N patches in all, d dimensions.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder
from methods.parts.positions import resized_positions, sin_cos_positions
from methods.parts.sizes import USUAL_SIDE, check_stride, per_axis

NUM_MAPS = 4


class ViTEncoder(Encoder):
    """Four feature maps of one size: after the blocks 4, 7 and 10 of 12, and the last one, normalised."""

    class Config(FrozenConfig):
        """Defaults are UNETR's.

        image_size   voxels per axis for which the positions are, or one number for all axes; by default 224 pixels or
                     96 voxels
        patch_size   voxels per axis of a patch
        hidden_size  width of a token
        mlp_dim      hidden width of the two layers of each block
        num_layers   blocks
        positions    learnt, or fixed sines and cosines
        qkv_bias     queries, keys and values have a bias
        """

        name: Literal["vit"] = "vit"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        image_size: PositiveInt | tuple[PositiveInt, ...] | None = None
        patch_size: PositiveInt = 16
        hidden_size: PositiveInt = 768
        mlp_dim: PositiveInt = 3072
        num_layers: int = Field(default=12, ge=NUM_MAPS)
        num_heads: PositiveInt = 12
        positions: Literal["learnt", "sin_cos"] = "learnt"
        qkv_bias: bool = False

        @property
        def size(self) -> tuple[int, ...]:
            """The size of the images for which the positions are."""
            return per_axis(self.image_size or USUAL_SIDE[self.spatial_dims], self.spatial_dims, "image_size")

        @model_validator(mode="after")
        def _fits(self) -> "ViTEncoder.Config":
            check_stride(self.size, (self.patch_size,) * self.spatial_dims, "image_size")
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}; change one of them"
                )
            return self

    def __init__(self, config: Config) -> None:
        from monai.networks.nets.vit import ViT

        super().__init__()
        dims = config.spatial_dims
        network = ViT(**monai_arguments(config))
        self.patch_embedding, self.blocks, self.norm = network.patch_embedding, network.blocks, network.norm
        for block in self.blocks:
            as_buffers(block.get_submodule("norm_cross_attn"))  # MONAI's blocks hold it without any use
        self.grid = tuple(length // config.patch_size for length in config.size)
        if config.positions == "sin_cos":
            as_buffers(self.patch_embedding)
            self.patch_embedding.position_embeddings.copy_(sin_cos_positions(self.grid, config.hidden_size))
        self.config = config
        self.spatial_dims = dims
        self.in_channels = config.in_channels
        self.channels = (config.hidden_size,) * NUM_MAPS
        self.stride = config.patch_size

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """How many times coarser each map is than the one before: all are as coarse as the patches."""
        return (self.strides, *[(1,) * self.spatial_dims] * (NUM_MAPS - 1))

    def embed(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b n d"]:
        """Return the patches as tokens, the last axis fastest, with their positions."""
        patches = self.patch_embedding.patch_embeddings(x)
        positions = resized_positions(self.patch_embedding.position_embeddings, self.grid, tuple(patches.shape[2:]))
        return patches.flatten(2).transpose(1, 2) + positions

    def attend(self, tokens: Float[Tensor, "b n d"]) -> list[Tensor]:
        """Return the tokens after each of the blocks that end a map, the last ones normalised; any tokens will do."""
        found: list[Tensor] = []
        for first, last in pairwise(self._ends):
            for block in self.blocks[first:last]:
                tokens = block(tokens)
            found.append(tokens)
        return [*found[:-1], self.norm(found[-1])]

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the four maps, in the order of the blocks."""
        grid = [length // self.stride for length in x.shape[2:]]
        return [tokens.transpose(1, 2).unflatten(2, grid) for tokens in self.attend(self.embed(x))]

    def levels(self) -> list[nn.Module]:
        """Return the patch embedding with its positions, and the blocks of each map."""
        groups = [[*self.blocks[first:last]] for first, last in pairwise(self._ends)]
        return [self.patch_embedding, *(nn.Sequential(*group) for group in (*groups[:-1], [*groups[-1], self.norm]))]

    @property
    def _ends(self) -> tuple[int, ...]:
        """Where the blocks of one map end and those of the next begin: 0, 4, 7, 10 and 12 of 12."""
        count = self.config.num_layers
        return (0, *(number * count // NUM_MAPS + 1 for number in range(1, NUM_MAPS)), count)


@torch.no_grad()
def as_buffers(module: nn.Module) -> None:
    """Keep a module's own parameters under their keys as what does not learn."""
    for name, parameter in [*module.named_parameters(recurse=False)]:
        delattr(module, name)
        module.register_buffer(name, parameter.detach())


def transformer_of(encoder: Encoder) -> ViTEncoder:
    """Return the encoder of a method whose ``encoders`` names none but this one."""
    assert isinstance(encoder, ViTEncoder), f"{type(encoder).__name__} has no tokens of patches"
    return encoder


def visible_tokens(tokens: Float[Tensor, "b n d"], kept: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Return the kept tokens of each image, in the order of ``kept``."""
    return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


def monai_arguments(config: ViTEncoder.Config) -> dict[str, Any]:
    """Return the arguments of MONAI's ``ViT`` that has the encoder's keys and shapes, and no others."""
    return {
        "in_channels": config.in_channels,
        "img_size": config.size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "mlp_dim": config.mlp_dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "spatial_dims": config.spatial_dims,
        "qkv_bias": config.qkv_bias,
    }
