"""The rule by which a label map becomes boxes, apart from what makes them: every command line imports the rule."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LabelBoxes:
    """How a label map becomes boxes.

    within      planes: in each axial plane by itself; volumes: over all axes
    min_voxels  a component of fewer voxels has no box
    values      the label values that become boxes; None: all
    """

    within: Literal["planes", "volumes"]
    min_voxels: int = 1
    values: tuple[int, ...] | None = None

    def takes(self, value: int) -> bool:
        """Tell whether parts of a label value become boxes."""
        return self.values is None or value in self.values
