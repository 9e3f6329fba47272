"""Pyramid blocks: what one stage of a pyramid transformer is made of, for images, for volumes, or for both.

Paper:     Wang et al., "Pyramid Vision Transformer", ICCV 2021, section 3.3; for images and volumes alike as Xie et
           al., "UniMiSS", ECCV 2022, has it: only embeddings, positions and the convolutions that make keys coarser
           know how many dimensions there are.
Reference: YtongXie/UniMiSS-code @ 68be0a4, ``UniMiSS/models/MiT_encoder.py``.
Shapes:    B images, C channels, *s spatial axes, *g places of a stage's map, N of them, with a class token where
           there is one, d dimensions.
"""

from collections import OrderedDict
from collections.abc import Iterable
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.parts.positions import resized_positions

Norm = Literal["instance", "batch"]
# How a state dict names what belongs to images or to volumes.
KINDS = {2: "2D", 3: "3D"}
DEVIATION, SLOPE, EPSILON = 0.02, 0.01, 1e-6
MLP_RATIO = 4


def kind_of(images: Float[Tensor, "b c *s"]) -> str:
    """Return whether these are images or volumes."""
    return KINDS[images.ndim - 2]


class OverlapEmbedding(nn.Module):
    """A convolution, a norm and leaky ReLU: patches that overlap, embedded."""

    def __init__(
        self, dims: int, in_channels: int, dim: int, side: int, stride: int | tuple[int, ...], norm: Norm
    ) -> None:
        super().__init__()
        convolution: Any = (nn.Conv2d, nn.Conv3d)[dims - 2]
        normal: Any = {
            "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
            "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
        }[norm][dims - 2]
        self.conv = convolution(in_channels, dim, side, stride, padding=side // 2, bias=False)
        self.norm = normal(dim, affine=True)

    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d *g"]:
        """Return the embedded patches."""
        return F.leaky_relu(self.norm(self.conv(images)), SLOPE)


class CoarseAttention(nn.Module):
    """Attention of all tokens to those of a map made ``reduction`` times coarser along each axis, and to others.

    What is left of a map beyond a multiple of ``reduction`` is not attended to.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int, held: Iterable[int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.reduce = nn.ModuleDict()
        if reduction > 1:
            for dims in held:
                self.reduce[KINDS[dims]] = (nn.Conv2d, nn.Conv3d)[dims - 2](dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, ...]) -> Float[Tensor, "b n d"]:
        """Attend; the last tokens are a map of the size ``grid``, one before them is the class token."""
        seen = tokens
        if self.reduce:
            others, places = tokens.split([tokens.shape[1] - prod(grid), prod(grid)], dim=1)
            coarse = self.reduce[KINDS[len(grid)]](places.transpose(1, 2).unflatten(2, grid))
            seen = self.norm(torch.cat([others, coarse.flatten(2).transpose(1, 2).to(tokens.dtype)], dim=1))
        key, value = self.kv(seen).chunk(2, dim=2)
        found = F.scaled_dot_product_attention(
            self._by_head(self.q(tokens)), self._by_head(key), self._by_head(value)
        )
        return self.proj(found.transpose(1, 2).flatten(2))

    def _by_head(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n e"]:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class PyramidBlock(nn.Module):
    """Attention and two layers, each on normalised tokens and added to its input."""

    def __init__(self, dim: int, num_heads: int, reduction: int, held: Iterable[int]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPSILON), nn.LayerNorm(dim, eps=EPSILON)
        self.attn = CoarseAttention(dim, num_heads, reduction, held)
        hidden = MLP_RATIO * dim
        layers = OrderedDict[str, nn.Module](fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim))
        self.mlp = nn.Sequential(layers)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, ...]) -> Float[Tensor, "b n d"]:
        """Return the tokens of the next block."""
        tokens = tokens + self.attn(self.norm1(tokens), grid)
        return tokens + self.mlp(self.norm2(tokens))


class PyramidStage(nn.Module):
    """A map of half the size, with positions and a class token, through some blocks.

    grids    by the number of dimensions, the size of the map for which the positions are
    first    whether there is no class token of a stage before, so that this one has one of its own
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        depth: int,
        num_heads: int,
        reduction: int,
        grids: dict[int, tuple[int, ...]],
        norm: Norm,
        first: bool,
    ) -> None:
        super().__init__()
        self.grids = {KINDS[dims]: grid for dims, grid in grids.items()}
        self.embed = nn.ModuleDict(
            {KINDS[dims]: OverlapEmbedding(dims, in_channels, dim, side=3, stride=2, norm=norm) for dims in grids}
        )
        self.positions = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(1, 1 + prod(grid), dim)) for kind, grid in self.grids.items()}
        )
        self.token = nn.Parameter(torch.zeros(1, 1, dim)) if first else nn.Linear(in_channels, dim)
        self.blocks = nn.ModuleList(PyramidBlock(dim, num_heads, reduction, grids) for _ in range(depth))

    def forward(
        self, images: Float[Tensor, "b c *s"], token: Float[Tensor, "b 1 c"] | None
    ) -> tuple[Float[Tensor, "b d *g"], Float[Tensor, "b 1 d"]]:
        """Return the stage's map and class token, given those of the stage before."""
        kind, places = kind_of(images), self.embed[kind_of(images)](images)
        grid = tuple(places.shape[2:])
        own = self.token.expand(len(images), -1, -1) if isinstance(self.token, nn.Parameter) else self.token(token)
        positions = self.positions[kind]
        resized = resized_positions(positions[:, 1:], self.grids[kind], grid)
        tokens = torch.cat([own + positions[:, :1], places.flatten(2).transpose(1, 2) + resized], dim=1)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid), tokens[:, :1]


class GrowingStage(nn.Module):
    """A map of twice the size along each axis, with an encoder's map and positions added, through some blocks.

    grid    the size of the map for which the positions are
    """

    def __init__(
        self, in_channels: int, dim: int, depth: int, num_heads: int, reduction: int, grid: tuple[int, ...]
    ) -> None:
        super().__init__()
        dims = len(grid)
        self.grid = grid
        self.grow = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2](in_channels, dim, 2, 2)
        self.positions = nn.Parameter(torch.zeros(1, prod(grid), dim))
        self.blocks = nn.ModuleList(PyramidBlock(dim, num_heads, reduction, (dims,)) for _ in range(depth))

    def forward(self, coarse: Float[Tensor, "b c *s"], skipped: Float[Tensor, "b d *g"]) -> Float[Tensor, "b d *g"]:
        """Return the stage's map, given that of the stage before and the encoder's of its own size."""
        places = self.grow(coarse) + skipped
        grid = tuple(places.shape[2:])
        tokens = places.flatten(2).transpose(1, 2) + resized_positions(self.positions, self.grid, grid)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens.transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def draw_weights(network: nn.Module) -> None:
    """Draw layers, positions and class tokens with a deviation of 0.02, and kernels as He et al. by their outputs."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=DEVIATION)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, PyramidStage):
            tokens = [module.token] if isinstance(module.token, nn.Parameter) else []
            for parameter in (*module.positions.values(), *tokens):
                nn.init.trunc_normal_(parameter, std=DEVIATION)
        elif isinstance(module, GrowingStage):
            nn.init.trunc_normal_(module.positions, std=DEVIATION)
