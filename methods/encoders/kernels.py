"""Kernels: convolution kernels of photographs made ready for volumes, and for other numbers of input channels.

Paper:     i3d: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017 (section 2.4). vdt: the colours of
           a photograph as the depth of a volume, after seed 003 (SVD-Net, section III-A).
Reference: M3DV/ACSConv @ 693dbd7, ``conv3d_converter.py``, which repeats along the last axis if not told otherwise;
           the I3D rows of seed 003 begin at random, since the release calls it in a way that keeps no weights.
           huggingface/pytorch-image-models @ 17452b8, ``adapt_input_conv``: sums over colours for a grey image, and
           scales by 3 / n for n channels.
Variants:  channels are summed, not averaged as for the 2D baselines of seed 003: an average would make the map of a
           grey image three times smaller, and the running statistics of the norm behind it would no longer hold.
Shapes:    o and i channels of output and input; d h w size of the kernel.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Inflation = Literal["i3d", "acs", "vdt"]
COLOURS = 3


def for_channels(kernel: Float[Tensor, "o i *size"], channels: int) -> Float[Tensor, "o {channels} *size"]:
    """Return a kernel for another number of input channels: summed over its own, and divided evenly among the new.

    It responds to an image that is the same in all channels as it did before: a grey image in one channel gives the
    map that it gave in three.
    """
    if kernel.shape[1] == channels:
        return kernel
    each = kernel.sum(dim=1, keepdim=True) / channels
    return each.expand(-1, channels, *kernel.shape[2:]).contiguous()


def repeated(kernel: Float[Tensor, "o i h w"], depth: int) -> Float[Tensor, "o i {depth} h w"]:
    """Return a 2D kernel repeated along the depth and divided by it (I3D).

    Where the planes of a volume are all alike, it gives each the map of the 2D kernel.
    """
    return (kernel / depth).unsqueeze(2).expand(-1, -1, depth, -1, -1).contiguous()


def in_the_middle(kernel: Float[Tensor, "o i h w"], depth: int) -> Float[Tensor, "o i {depth} h w"]:
    """Return a 2D kernel in the middle of an odd depth, with zeros around it: it sees each plane on its own."""
    found = torch.zeros((*kernel.shape[:2], depth, *kernel.shape[2:]), dtype=kernel.dtype, device=kernel.device)
    found[:, :, depth // 2] = kernel
    return found


def colours_as_depth(kernel: Float[Tensor, "o 3 h w"], depth: int) -> Float[Tensor, "o 1 {depth} h w"]:
    """Return a kernel of red, green and blue as one of 1 channel, whose three middle planes they are.

    On the middle one of three planes it computes what the 2D kernel does on an image with these colours. The depth is
    odd, and 3 at least.
    """
    around = (depth - COLOURS) // 2
    planes = torch.zeros((len(kernel), 1, around, *kernel.shape[2:]), dtype=kernel.dtype, device=kernel.device)
    return torch.cat([planes, kernel.unsqueeze(1), planes], dim=2)
