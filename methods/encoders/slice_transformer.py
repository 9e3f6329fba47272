"""SliceTransformerEncoder: a 2D encoder sees each axial slice of a volume, a transformer relates the slices.

Paper:     Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive
           Clustering", AAAI 2023 (seed 000): f_intra and f_inter.
Reference: duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive @ 2cc652e, ``utils/models.py``; with
           ``variant: released`` 31,071,748, 31,162,884 and 31,346,692 parameters for 32, 64 and 128 slices.
Variants:  each flag is a field of the config, or of ``attention``, and can be set on its own.
                       paper                                released
           attention   see methods/parts/deformable_attention.py
           positions   sinusoidal: "added with a            none
                       positional encoding"
           pooled      all: "five blocks of ResNet-50"      last_twice: the four stages, and the last again
           The paper does not say which encoding: it is that of Vaswani et al. (NeurIPS 2017), added to tokens times
           the root of their length as there; otherwise it would drown tokens that are pooled from unit vectors.
           Normalising each pooled map, the projection and the layers are the released ones: the paper describes none.
           The paper's "four pyramid structure blocks" are 4 layers of one kind, as its section on f_inter says.
Shapes:    B volumes, C channels, D slices of H x W pixels, K pooled features of a slice, F features of a token.
"""

from collections.abc import Callable
from math import ceil
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import FrozenConfig
from methods.encoders.base import Encoder
from methods.encoders.resnet import ResNetEncoder
from methods.encoders.slices import OF_SLICES, SliceEncoderConfig, check_slices, flat_slices, stacked
from methods.parts.chunks import Outputs, in_chunks
from methods.parts.deformable_attention import FORMS, DeformableAttention
from methods.parts.precision import at_least_float32, full_precision
from methods.parts.sizes import check_stride
from methods.parts.sync_batch_norm import BatchNorm
from methods.parts.variants import completed_by

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"attention": dict(FORMS["paper"]), "positions": "sinusoidal", "pooled": "all"},
    "released": {"attention": dict(FORMS["released"]), "positions": "none", "pooled": "last_twice"},
}
LONGEST_WAVE = 10_000.0


def sinusoids(tokens: Float[Tensor, "b d f"]) -> Float[Tensor, "d f"]:
    """Return an encoding of each token's position: sines in the even features, cosines in the odd ones."""
    _, length, dim = tokens.shape
    positions = torch.arange(length, dtype=tokens.dtype, device=tokens.device)
    evens = torch.arange(0, dim, 2, dtype=tokens.dtype, device=tokens.device)
    angles = positions[:, None] * LONGEST_WAVE ** (-evens / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


class SliceLayer(nn.Module):
    """Deformable attention and a feed-forward network; each is added to its input, normalised and dropped from."""

    def __init__(
        self, attention: DeformableAttention.Config, dim: int, num_slices: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(attention, dim, num_slices)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim)
        )
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "b d f"]) -> Float[Tensor, "b d f"]:
        """Return the tokens of the next layer."""
        tokens = self.dropout(self.attention_norm(tokens + self.attention(tokens)))
        return self.dropout(self.feed_forward_norm(tokens + self.feed_forward(tokens)))


class SliceTransformerEncoder(Encoder):
    """The maps of a 2D encoder as ``slices`` has them, but the last, in whose place are the transformer's tokens.

    Each token stands for its slice: it is averaged along the depth like a map, and the same at every place of the
    slice. So the mean over the last map is the mean over all tokens, the volume's vector.

    In training, batch norm inside the encoder of slices takes the slices of all volumes together as its batch.
    """

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        slices           the encoder of slices: it has two spatial dimensions, and the channels of the volume
        num_slices       slices of a volume. Along the features, attention takes as many only; along the slices, it
                         takes any number, and a bias table is stretched over them
        pooled           the slice's maps that its token is made of; ``last`` alone has no multi-level features
        dim              features of a token
        slices_at_once   slices that pass their encoder at once in training, to save memory; by default all. No number
                         depends on it: it is refused where slices share statistics, in training with batch norm
        """

        name: Literal["slice_transformer"] = "slice_transformer"
        variant: Literal["paper", "released"] = "paper"
        spatial_dims: Literal[3] = 3
        in_channels: PositiveInt = 1
        slices: SliceEncoderConfig = ResNetEncoder.Config(spatial_dims=2, grey_to_rgb=True)
        num_slices: Annotated[int, Field(ge=2)] = 64
        pooled: Literal["all", "last_twice", "last"] = "all"
        dim: PositiveInt = 640
        positions: Literal["sinusoidal", "none"] = "sinusoidal"
        attention: DeformableAttention.Config = DeformableAttention.Config()
        num_layers: PositiveInt = 4
        hidden_dim: PositiveInt = 720
        dropout: float = Field(default=0.1, ge=0, lt=1)
        slices_at_once: PositiveInt | None = None

        _completed = completed_by(VARIANTS)

        @model_validator(mode="after")
        def _sees_slices(self) -> "SliceTransformerEncoder.Config":
            check_slices(self.slices, self.in_channels)
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.slices: Encoder = OF_SLICES[config.slices.name](config.slices)
        pooled = sum(self.slices.channels[index] for index in self._pooled(config))
        self.projection = nn.Linear(pooled, config.dim)
        self.layers = nn.ModuleList(
            SliceLayer(config.attention, config.dim, config.num_slices, config.hidden_dim, config.dropout)
            for _ in range(config.num_layers)
        )
        self.config = config
        self.spatial_dims = 3
        self.in_channels = config.in_channels
        self.channels = (*self.slices.channels[:-1], config.dim)
        self.stride = self.slices.stride
        self.means_differ = self.slices.means_differ
        self.slices_frozen = False

    def _pooled(self, config: Config) -> list[int]:
        """Return the indices of the slice's maps that are pooled."""
        every = list(range(len(self.slices.channels)))
        return {"all": every, "last_twice": [*every[1:], every[-1]], "last": every[-1:]}[config.pooled]

    def project(self, volumes: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b d f"]:
        """Return the token of each slice, before the transformer."""
        vectors = self._pass_slices(lambda slices: self._vectors(self.slices.maps(slices)), volumes, self.num_chunks)
        return self._tokens(vectors, len(volumes))

    @full_precision()
    def attend(self, tokens: Float[Tensor, "b d f"]) -> Float[Tensor, "b d f"]:
        """Pass the tokens of volumes through the transformer, at least in float32."""
        tokens = at_least_float32(tokens)
        if self.config.positions == "sinusoidal":
            tokens = tokens * self.config.dim**0.5 + sinusoids(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens

    def maps(self, x: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """Return as many maps as the encoder of slices has, finest first; the last holds the tokens."""
        flat = self._pass_slices(self.slices.maps, x)
        tokens = self.attend(self._tokens(self._vectors(flat), len(x)))
        last = stacked(tokens.flatten(0, 1)[:, :, None, None].expand(-1, -1, *flat[-1].shape[2:]), x)
        return [*(stacked(one, x) for one in flat[:-1]), last]

    def levels(self) -> list[nn.Module]:
        """Return the levels of the encoder of slices, the projection, and the layers of the transformer."""
        return [*self.slices.levels(), self.projection, *self.layers]

    def check_size(self, size: tuple[int, ...], place: str) -> None:
        """Raise ValueError where volumes of this size, which a config gives at ``place``, cannot pass."""
        check_stride(size, self.strides, place)
        if self.config.attention.axis == "features" and size[0] != self.config.num_slices:
            raise ValueError(
                f"{place} {size}: {size[0]} slices, attention along the features takes {self.config.num_slices}; set "
                "encoder.num_slices to the slices of a view"
            )

    def freeze_slices(self) -> None:
        """Train the encoder of slices no more: its statistics stay as they are.

        Without weights that want a gradient, autograd holds none of its activations.
        """
        self.slices_frozen = True
        self.slices.requires_grad_(False)
        self.slices.eval()

    def train(self, mode: bool = True) -> "SliceTransformerEncoder":
        """Set the training mode; a frozen encoder of slices stays in evaluation mode."""
        super().train(mode)
        if self.slices_frozen:
            self.slices.eval()
        return self

    def _pass_slices(self, function: Callable[[Tensor], Outputs], volumes: Tensor, num_chunks: int = 1) -> Outputs:
        """Return a function's outputs on all slices; raise ValueError where chunks of them would change numbers."""
        slices = flat_slices(volumes)
        chunks = ceil(len(slices) / (self.config.slices_at_once or len(slices)))
        if chunks > 1 and any(m.training for m in self.slices.modules() if isinstance(m, BatchNorm)):
            raise ValueError(
                f"encoder.slices_at_once {self.config.slices_at_once}: the {len(slices)} slices would pass batch "
                f"norm in {chunks} chunks, each with statistics of its own; leave slices_at_once out, freeze the "
                "encoder of slices, or take one without batch norm (swin_unetr, or unet with norm=instance)"
            )
        return in_chunks(self, function, slices, max(chunks, num_chunks))

    @full_precision()
    def _vectors(self, maps: list[Tensor]) -> Float[Tensor, "bd k"]:
        """Average the pooled maps over the slice, normalise each mean to length 1, and join them."""
        means = [at_least_float32(maps[index]).flatten(2).mean(2) for index in self._pooled(self.config)]
        return torch.cat([F.normalize(mean) for mean in means], dim=1)

    @full_precision()
    def _tokens(self, vectors: Float[Tensor, "bd k"], num_volumes: int) -> Float[Tensor, "b d f"]:
        return self.projection(vectors).unflatten(0, (num_volumes, -1))


def relating_slices(encoder: Encoder) -> SliceTransformerEncoder:
    """Return the encoder of a method whose ``encoders`` names none but this one."""
    assert isinstance(encoder, SliceTransformerEncoder), f"{type(encoder).__name__} has no tokens of slices"
    return encoder
