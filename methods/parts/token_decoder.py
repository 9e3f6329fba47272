"""TokenDecoder: a transformer that predicts all patches of an image from the tokens of the visible ones.

Paper:     He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3.
Reference: facebookresearch/mae @ efb2a80, ``models_mae.py``; without the class token, which the encoder lacks too.
           Blocks are MONAI's, as the encoder's, and positions are fixed sines and cosines for the image's own grid.
Shapes:    B images, *g patches along each axis, N patches, K visible ones, d dimensions, p voxels of a patch.
"""

import torch
from jaxtyping import Float, Int64
from pydantic import PositiveInt
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.parts.positions import sin_cos_positions
from methods.parts.precision import LinearHead


class TokenDecoder(nn.Module):
    """A linear layer, a learnt token in place of each hidden patch, blocks, and a linear layer to the voxels."""

    class Config(FrozenConfig):
        """How large the decoder is.

        decoder_dim    width of its tokens
        decoder_heads  heads of its attention
        num_blocks     transformer blocks
        """

        decoder_dim: PositiveInt = 512
        decoder_heads: PositiveInt = 16
        num_blocks: PositiveInt = 8

    def __init__(self, config: Config, in_dim: int, voxels: int) -> None:
        from monai.networks.blocks.transformerblock import TransformerBlock

        super().__init__()
        dim = config.decoder_dim
        if dim % config.decoder_heads:
            raise ValueError(
                f"method.decoder_heads {config.decoder_heads} does not divide method.decoder_dim {dim}; change one"
            )
        self.embed = nn.Linear(in_dim, dim)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, 4 * dim, config.decoder_heads, qkv_bias=True) for _ in range(config.num_blocks)
        )
        for block in self.blocks:
            block.norm_cross_attn = nn.Identity()  # MONAI's blocks hold a norm there without any use
        self.norm = nn.LayerNorm(dim)
        self.voxels = LinearHead(dim, voxels)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, visible: Float[Tensor, "b k d"], places: Int64[Tensor, "b k"], grid: tuple[int, ...]
    ) -> Float[Tensor, "b n p"]:
        """Return the voxels of all patches; ``places`` says where the visible ones are."""
        embedded = self.embed(visible)
        positions = sin_cos_positions(grid, embedded.shape[2]).to(embedded)
        tokens = self.token.to(embedded.dtype).expand(len(visible), positions.shape[1], -1)
        tokens = tokens.scatter(1, places[:, :, None].expand_as(embedded), embedded) + positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.voxels(self.norm(tokens))
