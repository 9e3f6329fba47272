"""Whole views: several views of whole samples, which differ in their augmentation alone.

Shapes:    B samples, C channels, *s the size of a view.
"""

from dataclasses import dataclass

from data.views.augmentation import Augmentation, augment, choose_one_of, draw
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Views
from methods.parts.fitting import Fitting


@dataclass(frozen=True)
class WholeViews:
    """Draws ``num`` views of each sample, cut or padded with 0 to ``size`` about its middle."""

    size: tuple[int, ...]
    augment: Augmentation
    num: int

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Fit each sample once, and augment each view on its own."""
        whole, boxes = Fitting(self.size, (None,) * len(self.size)).apply(batch, None)
        chosen = choose_one_of(self.augment, self.num, rng)
        images = [
            augment(whole, draw(self.augment, self.size, rng.fold(view), chosen[view])) for view in range(self.num)
        ]
        return Views(tuple(images), (boxes,) * self.num)
