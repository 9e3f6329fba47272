"""Stack: pictures of neighbouring slices as a volume, whose planes lie around one slice that stays as it is."""

from dataclasses import dataclass
from math import floor

PLANE_MM = 2.5  # seed 003, section IV-D
_ON_A_SLICE = 1e-4  # of the distance between slices


@dataclass(frozen=True)
class Stack:
    """Slices in order from head to feet.

    spacing_mm  (D, H, W), as scanned
    key         the place among the slices of the one that stays a plane
    plane_mm    the distance between the planes of the volume
    """

    spacing_mm: tuple[float, float, float]
    key: int
    plane_mm: float

    @property
    def key_plane(self) -> int:
        """The plane that the key slice becomes: as many lie before it as have slices on both sides."""
        return floor(self.key * self.spacing_mm[0] / self.plane_mm + _ON_A_SLICE)

    def places(self, num_slices: int) -> list[float]:
        """Return where the planes lie among the slices, from the first at 0 to the last."""
        step = self.plane_mm / self.spacing_mm[0]
        behind = floor((num_slices - 1 - self.key) / step + _ON_A_SLICE)
        last = num_slices - 1.0
        return [min(max(self.key + n * step, 0.0), last) for n in range(-self.key_plane, behind + 1)]
