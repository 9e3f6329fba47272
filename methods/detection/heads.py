"""Heads: what a detector computes from its pyramid: proposals at every place, and the classes and boxes of regions.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, section 3; Lin et al., "Feature Pyramid Networks for Object
           Detection", CVPR 2017, sections 4.1 and 4.2.
Reference: open-mmlab/mmdetection 2.x, ``rpn_head.py`` and ``Shared2FCBBoxHead``, with their initial weights.
Variants:  none.
Shapes:    B images, C channels, A anchors at each place or in all, R regions, K classes.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from methods.parts.precision import Head, LinearHead, keep_in_float32


class ProposalHead(nn.Module):
    """The same layers on every level of a pyramid: is there something, and how does its anchor become its box?"""

    def __init__(self, channels: int, num_ratios: int) -> None:
        super().__init__()
        self.hidden = Head(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.something = nn.Conv2d(channels, num_ratios, 1)
        self.deltas = nn.Conv2d(channels, 4 * num_ratios, 1)
        for layer in (self.hidden[0], self.something, self.deltas):
            _begin(layer, 0.01)
        for layer in (self.something, self.deltas):
            keep_in_float32(layer)

    def forward(self, one: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b A"], Float[Tensor, "b A 4"]]:
        """Return logits and deltas of a level's anchors, in the order of ``level_anchors``."""
        hidden = self.hidden(one)
        deltas = self.deltas(hidden).unflatten(1, (-1, 4))
        return self.something(hidden).permute(0, 2, 3, 1).flatten(1), deltas.permute(0, 3, 4, 1, 2).flatten(1, 3)


class RegionHead(nn.Module):
    """Hidden layers on a region's features, then its class, and deltas of its own for each class.

    ``hidden_dims`` are the widths of the hidden layers; there is at least one.
    """

    def __init__(self, in_dim: int, hidden_dims: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for taken, given in pairwise((in_dim, *hidden_dims)):
            linear = nn.Linear(taken, given)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        self.hidden = Head(*layers)
        self.classes = LinearHead(hidden_dims[-1], num_classes + 1)
        self.deltas = LinearHead(hidden_dims[-1], 4 * num_classes)
        _begin(self.classes, 0.01)
        _begin(self.deltas, 0.001)

    def forward(self, regions: Float[Tensor, "R c p p"]) -> tuple[Float[Tensor, "R k1"], Float[Tensor, "R k 4"]]:
        """Return logits of the classes, the background last, and the deltas of each class."""
        hidden = self.hidden(regions)
        return self.classes(hidden), self.deltas(hidden).unflatten(1, (-1, 4))


def _begin(layer: nn.Module, deviation: float) -> None:
    """Draw a layer's weights from a normal distribution, with biases 0."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
