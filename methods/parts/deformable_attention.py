"""DeformableAttention: attention over the slices of a volume, to a few places that the queries choose.

Paper:     Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive
           Clustering", AAAI 2023 (seed 000), eq. 6 to 8.
Reference: duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive @ 2cc652e, whose attention is
           ``DeformableAttention1D`` of lucidrains/deformable-attention.
Variants:  each flag is a field of the config and can be set on its own.
                      paper                                     released
           axis       slices: along the slices, whose           features: along the features, of which the slices
                      features are channels                     are the channels, so that their number is fixed
           grouped    no: each head's matrices take all         yes: a head takes an equal part of the channels
                      channels
           head_dim   80: F / H for 640 features, as the        64
                      output matrix is square
           aligned    yes: the first and last places of the     no: they lie half a position beyond, where half of
                      grid are the first and last positions     what is sampled is 0
           bias       table: 2 D - 1 entries of each head,      mlp: a network on sign(x) log(1 + |x|) of the
                      read between them by interpolation        distance x, for all heads
           The paper leaves the offset network open: both have the released one, and the released output bias. Its
           grid of D_G x 2 points has a second coordinate, which is 0 in a sequence. Distances are counted in half
           lengths of the sequence, so that a table fits any length.
Shapes:    B volumes, D slices, F features, C channels and N positions (F and D, or D and F), H heads of E dimensions,
           M places of the grid, w channels that a head takes.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import FrozenConfig

FORMS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"axis": "slices", "grouped": False, "head_dim": 80, "aligned": True, "bias": "table"},
    "released": {"axis": "features", "grouped": True, "head_dim": 64, "aligned": False, "bias": "mlp"},
}
INITIAL_SPREAD = 0.02


def unit_places(positions: Float[Tensor, "*n"], count: int) -> Float[Tensor, "*n"]:
    """Return positions among ``count``, counted from 0, as places: -1 is the first position, 1 the last."""
    return 2 * positions / max(count - 1, 1) - 1


def interpolate(
    values: Float[Tensor, "b w n"], places: Float[Tensor, "b m"], aligned: bool
) -> Float[Tensor, "b w m"]:
    """Return phi of eq. 7: values between positions, by linear interpolation; beyond the ends they fall to 0.

    If ``aligned``, places -1 and 1 are the middles of the first and last positions; if not, their outer borders.
    """
    across = torch.stack([torch.zeros_like(places), places], dim=-1)[:, :, None]
    return F.grid_sample(values[..., None], across, padding_mode="zeros", align_corners=aligned)[..., 0]


class BiasTable(nn.Module):
    """Relative position bias: one entry for each head and each distance between two of ``length`` positions.

    Among another number of positions, the table is stretched over all distances.
    """

    def __init__(self, num_heads: int, length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_heads, 2 * length - 1))
        nn.init.trunc_normal_(self.table, std=INITIAL_SPREAD)

    def forward(self, distances: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        """Return the bias at distances between places, -2 to 2."""
        batch, _, queries, _ = distances.shape
        flat = rearrange(distances / 2, "b h n m -> h (b n m)")
        read = interpolate(self.table[:, None], flat, aligned=True)
        return rearrange(read, "h 1 (b n m) -> b h n m", b=batch, n=queries)


class BiasNetwork(nn.Module):
    """Relative position bias: a network on the logarithm of a distance, the same for all heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, distances: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        """Return the bias at distances between places."""
        return self.layers((distances.sign() * distances.abs().log1p())[..., None])[..., 0]


class DeformableAttention(nn.Module):
    """Multi-head attention from every position to the places of a coarse grid, moved by offsets of each head."""

    class Config(FrozenConfig):
        """Defaults are the paper's, and the released ones of what the paper leaves open.

        downsample     r: positions per place of the grid
        kernel_size    positions that an offset is computed from
        offset_scale   largest offset, in places of the grid
        """

        axis: Literal["slices", "features"] = "slices"
        grouped: bool = False
        num_heads: PositiveInt = 8
        head_dim: PositiveInt = 80
        aligned: bool = True
        bias: Literal["table", "mlp"] = "table"
        downsample: PositiveInt = 4
        kernel_size: PositiveInt = 6
        offset_scale: float = Field(default=2.0, gt=0)

        @model_validator(mode="after")
        def _covers_the_sequence(self) -> "DeformableAttention.Config":
            beyond = self.kernel_size - self.downsample
            if beyond < 0 or beyond % 2:
                raise ValueError(
                    f"attention.kernel_size {self.kernel_size}: expected attention.downsample {self.downsample} plus "
                    f"an even number; use {self.downsample + 2}"
                )
            return self

    def __init__(self, config: Config, dim: int, num_slices: int) -> None:
        super().__init__()
        by_slices = config.axis == "slices"
        channels, length = (dim, num_slices) if by_slices else (num_slices, dim)
        heads, inner = config.num_heads, config.num_heads * config.head_dim
        if config.grouped and channels % heads:
            raise ValueError(
                f"attention.num_heads {heads} does not divide the {channels} "
                f"{'features' if by_slices else 'slices'} that grouped heads share; change one of the two"
            )
        taken = channels if config.grouped else channels * heads
        padding = (config.kernel_size - config.downsample) // 2
        self.config, self.num_slices = config, num_slices
        self.query = nn.Conv1d(channels, inner, 1, groups=heads if config.grouped else 1, bias=False)
        self.key = nn.Conv1d(taken, inner, 1, groups=heads, bias=False)
        self.value = nn.Conv1d(taken, inner, 1, groups=heads, bias=False)
        self.output = nn.Conv1d(inner, channels, 1)
        self.offsets = nn.Sequential(
            nn.Conv1d(
                config.head_dim,
                config.head_dim,
                config.kernel_size,
                stride=config.downsample,
                padding=padding,
                groups=config.head_dim,
            ),
            nn.GELU(),
            nn.Conv1d(config.head_dim, 1, 1, bias=False),
        )
        self.bias = BiasTable(heads, length) if config.bias == "table" else BiasNetwork(max(1, channels // 4))

    def forward(self, tokens: Float[Tensor, "b d f"]) -> Float[Tensor, "b d f"]:
        """Return eq. 8 for all heads, joined; raise ValueError for slices that it cannot take."""
        self._check(tokens.shape[1])
        x = tokens.transpose(1, 2) if self.config.axis == "slices" else tokens
        queries = self._by_head(self.query(x))
        places = self._places(queries)
        keys, values = self._sample(x, places)
        near = unit_places(torch.arange(x.shape[2], dtype=places.dtype, device=places.device), x.shape[2])
        logits = torch.einsum("b h e n, b h e m -> b h n m", queries, keys) * self.config.head_dim**-0.5
        attention = (logits + self.bias(near[:, None] - places[:, :, None])).softmax(-1)
        joined = torch.einsum("b h n m, b h e m -> b h e n", attention, values).flatten(1, 2)
        attended = self.output(joined)
        return attended.transpose(1, 2) if self.config.axis == "slices" else attended

    def _places(self, queries: Float[Tensor, "b h e n"]) -> Float[Tensor, "b h m"]:
        """Return p + the offsets of eq. 7, as places."""
        moved = self.offsets(queries.flatten(0, 1))[:, 0].tanh() * self.config.offset_scale
        grid = torch.arange(moved.shape[1], dtype=moved.dtype, device=moved.device)
        return unit_places(grid + moved, moved.shape[1]).unflatten(0, queries.shape[:2])

    def _sample(
        self, x: Float[Tensor, "b c n"], places: Float[Tensor, "b h m"]
    ) -> tuple[Float[Tensor, "b h e m"], Float[Tensor, "b h e m"]]:
        """Return the keys and values of each head at its places."""
        taken = self._by_head(x) if self.config.grouped else x[:, None].expand(-1, self.config.num_heads, -1, -1)
        sampled = interpolate(taken.flatten(0, 1), places.flatten(0, 1), self.config.aligned)
        sampled = rearrange(sampled, "(b h) w m -> b (h w) m", b=len(x))
        return self._by_head(self.key(sampled)), self._by_head(self.value(sampled))

    def _by_head(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b h w n"]:
        return x.unflatten(1, (self.config.num_heads, -1))

    def _check(self, num_slices: int) -> None:
        if self.config.axis == "features" and num_slices != self.num_slices:
            raise ValueError(
                f"a volume of {num_slices} slices: attention along the features takes {self.num_slices} slices, its "
                "channels; set encoder.num_slices, or encoder.attention.axis to slices"
            )
        if self.config.axis == "slices" and num_slices < self.config.downsample:
            raise ValueError(
                f"a volume of {num_slices} slices: attention takes {self.config.downsample} or more; give larger "
                "volumes, or lower encoder.attention.downsample"
            )
