"""Stacks of pictures as volumes: planes between slices are interpolated linearly."""

from collections.abc import Sequence

import numpy as np

from data.quarantine import BadStudy
from data.readers.picture import read_picture
from data.scan import Scan
from data.sources.stack import Stack

HU_OF_0 = -32768.0  # DeepLesion's 16-bit pictures hold HU + 32768


def read_stack(uris: Sequence[str], stack: Stack) -> Scan:
    """Read neighbouring slices as (1, D, H, W) in HU, with planes ``stack.plane_mm`` apart.

    The slices are axial and seen from the feet, as radiologists look at them: columns run to the patient's left, rows
    to the back, slices to the feet. Raises BadStudy for pictures of colours or of different sizes.
    """
    slices = [read_picture(uri).voxels for uri in uris]
    shapes = {one.shape for one in slices}
    if len(shapes) > 1 or slices[0].shape[0] != 1:
        raise BadStudy(
            f"slices of shapes {', '.join(map(str, sorted(shapes)))} (C, H, W)",
            "grey pictures of one size",
            "copy the series again from its source",
        )
    planes = [_plane(slices, place) for place in stack.places(len(slices))]
    _, row_mm, column_mm = stack.spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -stack.plane_mm, -row_mm, -column_mm, 1.0
    return Scan(
        voxels=np.stack(planes, axis=1),
        spacing_mm=(stack.plane_mm, row_mm, column_mm),
        modality="CT",
        affine=affine,
        offset=HU_OF_0,
    )


def _plane(slices: Sequence[np.ndarray], place: float) -> np.ndarray:
    """Return the plane at a place among slices."""
    below = int(np.floor(place + 1e-6))
    share = np.float32(max(place - below, 0.0))
    if share < 1e-4 or below == len(slices) - 1:
        return slices[below].astype(np.float32)
    return slices[below].astype(np.float32) * (1 - share) + slices[below + 1].astype(np.float32) * share
