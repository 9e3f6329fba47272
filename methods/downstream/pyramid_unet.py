"""PyramidUNet: a pyramid transformer that is decoded by one, which grows from the coarsest map to the finest.

Paper:     Xie et al., "Unified 2D and 3D Pre-training for Medical Image Classification and Segmentation", 2021, whose
           PTU this is, and "UniMiSS", ECCV 2022.
Reference: YtongXie/UniMiSS-code @ 68be0a4, ``UniMiSS/Downstream/BCV/MiTnnu/network_architecture/MiT.py``. There the
           coarser maps are classified as well, for nnU-Net's deep supervision, and queries, keys and values of the
           decoder have no biases; here they are as in the encoder. PTU's own code is not public.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.encoders import Encoder, PyramidTransformerEncoder
from methods.encoders.pyramid_transformer import STEM_STRIDES, stage_grid
from methods.parts.precision import keep_in_float32
from methods.parts.pyramid_blocks import EPSILON, GrowingStage, OverlapEmbedding, draw_weights


class PyramidUNet(nn.Module):
    """The encoder itself, three stages that mirror its first three, and a convolution that joins its first map.

    A stage is as wide as its mirror image, and has its keys as coarse; it has as many blocks and heads as the stage
    after that. Logits have the first map's size, and are interpolated.
    """

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        if not isinstance(encoder, PyramidTransformerEncoder):
            raise ValueError(
                f"downstream.task.decoder pyramid decodes the encoder pyramid_transformer, found "
                f"{type(encoder).__name__}; take that encoder, or decoder=unet"
            )
        config, dims = encoder.config, encoder.spatial_dims
        mirrored = list(reversed(range(len(config.stage_dims) - 1)))
        for stage in mirrored:
            if config.stage_dims[stage] % config.num_heads[stage + 1]:
                raise ValueError(
                    f"downstream.task.decoder pyramid: num_heads[{stage + 1}] {config.num_heads[stage + 1]} does not "
                    f"divide stage_dims[{stage}] {config.stage_dims[stage]}; change one, or set decoder=unet"
                )
        convolution: Any = (nn.Conv2d, nn.Conv3d)[dims - 2]
        transposed: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
        finest = config.stem_dim
        self.encoder = encoder
        self.stages = nn.ModuleList(
            GrowingStage(
                config.stage_dims[stage + 1],
                config.stage_dims[stage],
                config.depths[stage + 1],
                config.num_heads[stage + 1],
                config.reductions[stage],
                stage_grid(config.sizes[dims], stage),
            )
            for stage in mirrored
        )
        self.norm = nn.LayerNorm(config.stage_dims[0], eps=EPSILON)
        self.grow = transposed(config.stage_dims[0], finest, 2, 2)
        self.refine = OverlapEmbedding(dims, finest, finest, side=3, stride=1, norm=config.norm)
        self.classify = convolution(finest, num_classes, 1)
        for part in (self.stages, self.refine, self.classify):
            draw_weights(part)
        keep_in_float32(self.classify)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits."""
        *skipped, found = self.encoder.features(x)
        for stage in self.stages:
            found = stage(found, skipped.pop())
        normed = self.norm(found.movedim(1, -1)).movedim(-1, 1)
        logits = self.classify(self.refine(self.grow(normed) + skipped.pop()))
        dims = len(logits.shape) - 2
        steps = tuple(map(float, STEM_STRIDES[dims]))
        return F.interpolate(logits, scale_factor=steps, mode=("bilinear", "trilinear")[dims - 2])
