"""GroupTransform: a 3D feature map becomes a 2D one, each channel a weighted sum of its own planes.

Paper:     Zhang et al., "Advancing 3D Medical Image Analysis with Variable Dimension Transform based Supervised 3D
           Pre-training" (SVD-Net, seed 003), section III-B: the group transform module (GTM), one for each level.
Reference: urmagicsmine/MP3D @ 4ab3ea1, ``modified_p3d.py`` (``conversion_type='groupconv'``): C x D channels, a 1 x 1
           convolution of C groups, no bias.
Variants:  none.
Shapes:    B volumes, C channels, D planes of H x W.
"""

from jaxtyping import Float
from torch import Tensor, nn


class GroupTransform(nn.Module):
    """Weights of its own for each channel and plane; it takes maps of one depth only."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.planes = nn.Conv2d(channels * depth, channels, 1, groups=channels, bias=False)

    def forward(self, volumes: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c h w"]:
        """Return the sum over the planes; raise ValueError for another depth than it was built for."""
        if volumes.shape[2] != self.depth:
            raise ValueError(
                f"group transform: a map with {volumes.shape[2]} planes, expected {self.depth}; give the detector "
                "volumes of as many slices as it was built for"
            )
        return self.planes(volumes.flatten(1, 2))
