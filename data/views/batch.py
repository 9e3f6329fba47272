"""Batch: the samples that the feed hands to a method, padded to one size; ``extents`` holds their true sizes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Integer, Num
from torch import Tensor

from data.boxes import Boxes
from data.views.rng import SampleRng


@dataclass(frozen=True)
class Batch:
    """B samples as stored: integers (or float16) until a view is cut.

    voxels      as stored, padded at the far end to the largest sample
    extents     the true spatial size of each sample, on the host
    scale, offset   intensity = voxel * scale + offset
    spacing_mm  on the host
    sample_ids  B strings
    volumes     B strings: which volume a slice belongs to (equal to the sample's own for a volume)
    numbers     global sample numbers
    rows        each sample's place among the N samples that are trained on, 0 to N - 1; -1 where it is only measured
    labels      as stored, padded with 0; None where label maps are not read
    classes     each sample's classes, padded with -1; None where they are not read
    boxes       B entries on the host: the boxes of each sample's findings, None where they are unknown; None where
                they are not read
    """

    voxels: Num[Tensor, "B C *S"]
    extents: Int64[np.ndarray, "B n"]
    scale: Float32[Tensor, " B"]
    offset: Float32[Tensor, " B"]
    spacing_mm: Float32[np.ndarray, "B n"]
    sample_ids: tuple[str, ...]
    volumes: tuple[str, ...]
    numbers: Int64[np.ndarray, " B"]
    epochs: Int64[np.ndarray, " B"]
    rows: Int64[np.ndarray, " B"]
    labels: Integer[Tensor, "B *S"] | None = None
    classes: Int64[Tensor, "B M"] | None = None
    boxes: tuple[Boxes | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def spatial_dims(self) -> int:
        return self.voxels.ndim - 2

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch with its tensors on a device; extents, boxes, ids and numbers stay on the host."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("voxels", "scale", "offset", "labels", "classes")
            if getattr(self, name) is not None
        }
        return replace(self, **moved)

    def intensities(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Turn stored values (.., B, C, *S) of all samples into intensities, in place."""
        per_sample = (-1, *[1] * (self.voxels.ndim - 1))
        return stored.mul_(self.scale.view(per_sample)).add_(self.offset.view(per_sample))

    def sample(self, index: int) -> Float[Tensor, "C *S"]:
        """Return the intensities of one sample, without padding, as a new float32 tensor."""
        inside = (..., *(slice(0, extent) for extent in self.extents[index].tolist()))
        stored = self.voxels[index][inside].to(torch.float32, copy=True)
        return stored.mul_(self.scale[index]).add_(self.offset[index])

    def rng(self, seed: int) -> SampleRng:
        """Return the random streams of these samples for a run's seed."""
        return SampleRng.for_samples(seed, self.epochs, self.sample_ids)
