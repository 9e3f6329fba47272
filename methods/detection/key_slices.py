"""KeySlices: which images of a sample a detector sees: an image itself, or a plane of a volume with its neighbours.

Reference: urmagicsmine/MP3D @ 4ab3ea1, ``image_io_3DCE.py``: the key slice is in the middle, and the nearest slice
           that there is takes the place of one beyond the volume's end. Where the number of slices is even, it takes
           one slice more from above the key slice; here, one more from below.
Shapes:    C channels, D slices of H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from data.boxes import Boxes
from data.views.augmentation import ViewParams, move_boxes
from data.views.batch import Batch
from data.views.rng import SampleRng


@dataclass(frozen=True)
class KeySlices:
    """Takes ``slices`` slices of volumes, or images whole where ``slices`` is None; the only plane of an image is 0.

    The key slices of a volume are the planes that its boxes cut.
    """

    slices: int | None

    def judged(self, own: Boxes, extent: Int[np.ndarray, " n"]) -> list[int]:
        """List the planes of a sample that are judged: its key slices, or the middle plane where it has none."""
        if self.slices is None:
            return [0]
        keys = _keys(own)
        return keys.tolist() if len(keys) else [int(extent[0]) // 2]

    def drawn(self, findings: Sequence[Boxes], extents: Int[np.ndarray, "b n"], rng: SampleRng) -> list[int]:
        """Draw a plane of each sample: one of its key slices, or any plane where it has none."""
        if self.slices is None:
            return [0] * len(findings)
        choices = [
            keys if len(keys := _keys(own)) else np.arange(extent[0])
            for own, extent in zip(findings, extents, strict=True)
        ]
        picked = rng.integers(np.array([len(each) for each in choices]))
        return [int(each[place]) for each, place in zip(choices, picked.tolist(), strict=True)]

    def image(self, batch: Batch, number: int, plane: int) -> Float[Tensor, "c *d h w"]:
        """Return the intensities of a sample around a plane, without padding in the plane."""
        if self.slices is None:
            return batch.sample(number)
        depth, height, width = batch.extents[number].tolist()
        wanted = np.clip(self._wanted(plane), 0, depth - 1)
        stored = batch.voxels[number][:, torch.from_numpy(wanted).to(batch.voxels.device), :height, :width]
        return stored.to(torch.float32).mul_(batch.scale[number]).add_(batch.offset[number])

    def region(self, extent: Int[np.ndarray, " n"], plane: int) -> Int64[np.ndarray, "2 n"]:
        """Return the corners of the part of a sample that ``image`` shows."""
        low, high = np.zeros_like(extent), extent.copy()
        if self.slices is not None:
            wanted = self._wanted(plane)
            low[0], high[0] = max(0, wanted[0]), min(extent[0], wanted[-1] + 1)
        return np.stack([low, high]).astype(np.int64)

    def boxes(self, own: Boxes, plane: int) -> Boxes:
        """Return the boxes of a sample in one of its planes, as 2D boxes."""
        return own if self.slices is None else own.of_plane(plane)

    def unit(self, sample: str, plane: int) -> str:
        """Name what is judged on its own."""
        return sample if self.slices is None else f"{sample}/{plane:05d}"

    def moved(
        self,
        planar: Sequence[Boxes],
        drawn: ViewParams,
        size: tuple[int, ...],
        to_canvas: Float64[np.ndarray, "b 3 3"] | None = None,
    ) -> list[Boxes]:
        """Move the boxes of each image's plane as ``augment`` moves images of this size.

        ``to_canvas`` takes indices of pixels, in which the boxes are given, to those of the images; none: they are
        those. In slices, a box is moved as a plate of one slice's thickness, and its outline in the plane is kept.
        """
        if self.slices is None:
            return list(move_boxes(planar, drawn, size, to_canvas))
        middle = [[self.slices // 2], [self.slices // 2 + 1]]
        plates = [
            Boxes(np.concatenate([np.tile(np.array([middle]), (len(own), 1, 1)), own.corners], axis=2), own.classes)
            for own in planar
        ]
        to_view = np.tile(np.eye(4), (len(planar), 1, 1))
        if to_canvas is not None:
            to_view[:, 1:, 1:] = to_canvas
        return [Boxes(own.corners[:, :, 1:], own.classes) for own in move_boxes(plates, drawn, size, to_view)]

    def _wanted(self, plane: int) -> Int[np.ndarray, " d"]:
        assert self.slices is not None
        return np.arange(self.slices) + plane - self.slices // 2


def _keys(own: Boxes) -> Int[np.ndarray, " k"]:
    """Return the planes that boxes cut, in order."""
    spans = [np.arange(low, high) for low, high in own.corners[:, :, 0].tolist()]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *spans]))
