"""The sliding window of a segmentation: how many windows there are, and how they are blended where they overlap."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from tests.methods.test_segmentation import method_of

SIDE = 32


class Halves(nn.Module):
    """Sees class 1 in the left half of every window, and class 2, a little more surely, in the right half."""

    def __init__(self) -> None:
        super().__init__()
        self.num_windows = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_windows += len(images)
        logits = torch.zeros(len(images), 3, *images.shape[2:])
        logits[:, 1, :, : SIDE // 2] = 1.0
        logits[:, 2, :, SIDE // 2 :] = 1.2
        return logits


@pytest.mark.parametrize(("overlap", "per_axis"), [(0.0, 2), (0.5, 3), (0.75, 5)])
def test_the_overlap_decides_how_many_windows_cover_an_image(overlap: float, per_axis: int) -> None:
    method = method_of(window_overlap=overlap)
    method.network = halves = Halves()
    method.predict(torch.zeros(1, 1, 2 * SIDE, 2 * SIDE))
    assert halves.num_windows == per_axis**2


@pytest.mark.parametrize(
    # Windows begin at columns 0 and 16. From 16 on, the first sees class 2, the second class 1. In a mean the surer
    # one wins as far as both reach; by weights that fall from a window's middle, the nearer one wins, from 24 on.
    ("blend", "agreed"),
    [("constant", SIDE), ("gaussian", 24)],
)
def test_the_blend_decides_which_of_two_windows_is_believed(
    blend: Literal["constant", "gaussian"], agreed: int
) -> None:
    method = method_of(window_overlap=0.5, window_blend=blend)
    method.network = Halves()
    half = SIDE // 2
    middle_row = method.predict(torch.zeros(1, 1, SIDE, SIDE + half))[0, half].tolist()
    assert middle_row == [1] * half + [2] * (agreed - half) + [1] * (SIDE - agreed) + [2] * half
