"""Pseudo-3D blocks: a convolution within slices and one across them, in place of one over three dimensions.

Paper:     Qiu et al., "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", ICCV 2017.
Reference: urmagicsmine/MP3D @ 4ab3ea1, ``modified_p3d.py``: the first convolution of a block strides, the blocks of
           all four stages are pseudo-3D, and their orders take turns over the whole network.
"""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

Order = Literal["A", "B", "C"]
ORDERS: tuple[Order, ...] = ("A", "B", "C")


class PseudoBlock(nn.Module):
    """A bottleneck of 1x1x1, then 1x3x3 (S) and 3x1x1 (T), then 1x1x1 to four times as many channels.

    The input x is joined in the order of A: T(S(x)), B: S(x) + T(x), or C: S(x) + T(S(x)). Each convolution is
    normalised, and all but the last are rectified before they are joined.
    """

    expansion = 4

    def __init__(
        self,
        in_planes: int,
        planes: int,
        stride: tuple[int, int, int],
        downsample: nn.Module | None,
        norm: Any,
        order: Order,
    ) -> None:
        from monai.networks.layers.utils import get_norm_layer

        super().__init__()
        wide = planes * self.expansion
        self.conv1 = nn.Conv3d(in_planes, planes, 1, stride=stride, bias=False)
        self.conv2 = nn.Conv3d(planes, planes, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.conv3 = nn.Conv3d(planes, planes, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.conv4 = nn.Conv3d(planes, wide, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (get_norm_layer(norm, spatial_dims=3, channels=planes) for _ in range(3))
        self.bn4 = get_norm_layer(norm, spatial_dims=3, channels=wide)
        self.act = nn.ReLU()
        self.downsample = downsample
        self.order: Order = order

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k z y x"]:
        """Return the block's map; its size is the input's divided by the stride, rounded up."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self._joined(self.act(self.bn1(self.conv1(x))))
        return self.act(self.bn4(self.conv4(out)) + residual)

    def _joined(self, x: Tensor) -> Tensor:
        within = self.act(self.bn2(self.conv2(x)))
        across = self.act(self.bn3(self.conv3(x if self.order == "B" else within)))
        return across if self.order == "A" else within + across
