"""VNet: V-Net's expanding path on its own encoder.

Paper:     Milletari et al., "V-Net", 3DV 2016.
Reference: MONAI's ``VNet``, of whose stages it is made: the same keys and the same result, in other widths too.
"""

from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders.vnet import ACTIVATION, STAGES, VNetEncoder
from methods.parts.precision import keep_in_float32


class VNet(nn.Module):
    """The stages of the encoder, and four steps up that see its maps."""

    def __init__(self, encoder: VNetEncoder, num_classes: int) -> None:
        from monai.networks.nets.vnet import OutputTransition, UpTransition

        super().__init__()
        dims, width, dropout = encoder.spatial_dims, encoder.config.init_features, encoder.config.dropout
        for name, stage in encoder.named_children():
            self.add_module(name, stage)
        both, skip = (dropout, dropout), (None, dropout)
        self.up_tr256 = UpTransition(dims, 16 * width, 16 * width, 2, ACTIVATION, both, dims)
        self.up_tr128 = UpTransition(dims, 16 * width, 8 * width, 2, ACTIVATION, both, dims)
        self.up_tr64 = UpTransition(dims, 8 * width, 4 * width, 1, ACTIVATION, skip, dims)
        self.up_tr32 = UpTransition(dims, 4 * width, 2 * width, 1, ACTIVATION, skip, dims)
        self.out_tr = OutputTransition(dims, 2 * width, num_classes, ACTIVATION)
        keep_in_float32(self.out_tr.conv2)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits."""
        maps: list[Tensor] = []
        for stage in ("in_tr", *STAGES):
            maps.append(self.get_submodule(stage)(maps[-1] if maps else x))
        joined = maps.pop()
        for step in (self.up_tr256, self.up_tr128, self.up_tr64, self.up_tr32):
            joined = step(joined, maps.pop())
        return self.out_tr(joined)
