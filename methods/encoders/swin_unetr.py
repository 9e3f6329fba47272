"""SwinEncoder: the Swin transformer inside Swin UNETR, in 2D and 3D.

Paper:     Hatamizadeh et al., "Swin UNETR", BrainLes 2021; in 2D as Konieczkowicz (AGH 2024, section 4.2) uses it.
Reference: MONAI's ``SwinUNETR.swinViT``, made of the same parts: the state dict has the same keys, so that weights
           load strictly, and SwinUNETR accepts this encoder in its place.
"""

from typing import Annotated, Any, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import ADDED, FrozenConfig
from methods.encoders.base import Encoder


class SwinEncoder(Encoder):
    """Five feature maps at strides 2, 4, ... 32 with ``feature_size`` x 1, 2, ... 16 channels."""

    class Config(FrozenConfig):
        """Defaults are those of both papers; the rest are MONAI's.

        drop_path   largest rate of stochastic depth; the thesis pretrains with 0.1 and fine-tunes with 0
        v2          a residual block of convolutions before each stage (Swin UNETR V2), as in VoCo's released weights
        """

        name: Literal["swin_unetr"] = "swin_unetr"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        feature_size: PositiveInt = 48
        depths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (2, 2, 2, 2)
        num_heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 6, 12, 24)
        window_size: int = Field(default=7, gt=1)
        drop_path: float = Field(default=0.0, ge=0, lt=1)
        checkpoint_activations: bool = False
        v2: Annotated[bool, ADDED] = False

        @model_validator(mode="after")
        def _heads_share_channels(self) -> "SwinEncoder.Config":
            for stage, heads in enumerate(self.num_heads):
                if (self.feature_size * 2**stage) % heads:
                    raise ValueError(
                        f"num_heads[{stage}] {heads} does not divide the stage's {self.feature_size * 2**stage} "
                        "channels (feature_size x 2**stage); change one of the two"
                    )
            return self

    PATCH = 2

    def __init__(self, config: Config) -> None:
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        dims = config.spatial_dims
        network = SwinTransformer(
            in_chans=config.in_channels,
            embed_dim=config.feature_size,
            window_size=(config.window_size,) * dims,
            patch_size=(self.PATCH,) * dims,
            depths=config.depths,
            num_heads=config.num_heads,
            drop_path_rate=config.drop_path,
            use_checkpoint=config.checkpoint_activations,
            spatial_dims=dims,
            use_v2=config.v2,
        )
        self.patch_embed, self.pos_drop = network.patch_embed, network.pos_drop
        self.layers1, self.layers2 = network.layers1, network.layers2
        self.layers3, self.layers4 = network.layers3, network.layers4
        if config.v2:
            self.layers1c, self.layers2c = network.layers1c, network.layers2c
            self.layers3c, self.layers4c = network.layers3c, network.layers4c
        self.config = config
        self.spatial_dims = dims
        self.in_channels = config.in_channels
        self.channels = tuple(config.feature_size * 2**level for level in range(5))
        self.stride = 32

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the five maps, finest first, each normalised over its channels as Swin UNETR takes them."""
        maps = [self.pos_drop(self.patch_embed(x))]
        for stage in self._stages():
            x = maps[-1]
            for (layer,) in stage:
                x = layer(x.contiguous())
            maps.append(x)
        return [_normalised(values) for values in maps]

    def forward(self, x: Float[Tensor, "b c *s"], normalize: bool = True) -> list[Tensor]:
        """Return the maps to SwinUNETR, which takes them normalised."""
        assert normalize
        return self.features(x)

    def levels(self) -> list[nn.Module]:
        """Return the patch embedding, and the four stages."""
        return [self.patch_embed, *(nn.ModuleList(stage) for stage in self._stages())]

    def _stages(self) -> list[list[Any]]:
        """Return each stage's layers, after the convolutions before them if there are any."""
        stages = [[self.layers1], [self.layers2], [self.layers3], [self.layers4]]
        if self.config.v2:
            before = (self.layers1c, self.layers2c, self.layers3c, self.layers4c)
            stages = [[convolutions, *stage] for convolutions, stage in zip(before, stages, strict=True)]
        return stages


def _normalised(values: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """Normalise each place over its channels."""
    normal = F.layer_norm(rearrange(values, "b c ... -> b ... c"), values.shape[1:2])
    return rearrange(normal, "b ... c -> b c ...")
