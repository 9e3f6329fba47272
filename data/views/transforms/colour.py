"""Colour: jitter of brightness, contrast, saturation and hue, and loss of colour, for grey and RGB views.

Paper:     Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
           appendix A: colour distortion of strength s jitters by (0.8, 0.8, 0.8, 0.2) s with probability 0.8, then
           drops colour with probability 0.2. SwAV uses s = 1 (VISSL's swav_8node_resnet).
Reference: torchvision's ColorJitter and RandomGrayscale. The four changes come in an order drawn anew for each view.
           Brightness multiplies. Contrast and saturation blend with the mean grey of the image and with each pixel's
           grey, 0.299 R + 0.587 G + 0.114 B. Hue turns the hexcone (HSV). Factors lie in [max(0, 1 - x), 1 + x], the
           turn in [-x, x] of a whole one. After each change, intensities are cut to [0, 1].
           Saturation, hue and grey change nothing in an image of one channel.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from data.views.intervals import Deviation, Interval
from data.views.rng import SampleRng
from data.views.transforms.base import Transform, by_sample

LUMINANCE = (0.299, 0.587, 0.114)
RGB = 3


class ColourJitter(Transform):
    """Changes brightness, contrast, and in images of three channels saturation and hue, in random order.

    brightness, contrast, saturation, hue   the x of the module's docstring
    clip      the range to which intensities are cut; None leaves them
    numbers   three factors, the turn of the hue, and four numbers whose ranks are the order
    """

    name: Literal["colour_jitter"] = "colour_jitter"
    brightness: Deviation = 0.8
    contrast: Deviation = 0.8
    saturation: Deviation = 0.8
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    clip: Interval | None = (0.0, 1.0)

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b 8"]:
        """Draw the factors, the turn and the order."""
        factors = [
            rng.fold(name).uniform(low=max(0.0, 1 - width), high=1 + width)
            for name, width in zip(CHANGES, (self.brightness, self.contrast, self.saturation), strict=False)
        ]
        turn = rng.fold("hue").uniform(low=-self.hue, high=self.hue)
        return np.column_stack([*factors, turn, rng.fold("order").uniform(4)])

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b 8"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Make the four changes, in each sample's own order."""
        order = numbers[:, 4:].argsort(axis=1)
        changes = tuple(CHANGES.values())[: None if images.shape[1] == RGB else 2]
        for place in range(order.shape[1]):
            for number, change in enumerate(changes):
                rows = np.flatnonzero(order[:, place] == number)
                if len(rows):
                    index = torch.from_numpy(rows).to(images.device)
                    some = images[index]
                    changed = change(some, by_sample(numbers[rows, number], some))
                    if self.clip is not None:
                        changed = changed.clamp(*self.clip)
                    images = images.index_copy(0, index, changed)
        return images


class Grey(Transform):
    """Gives all three channels of an RGB image its grey.

    numbers   none
    """

    name: Literal["grey"] = "grey"

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b 0"]:
        """Draw nothing."""
        return np.empty((len(rng), 0))

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b 0"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Take the colour out."""
        return grey(images).expand_as(images) if images.shape[1] == RGB else images


def grey(images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b 1 *s"]:
    """Return the luminance of RGB images; of others the mean over channels."""
    if images.shape[1] != RGB:
        return images.mean(1, keepdim=True)
    weights = images.new_tensor(LUMINANCE).view(-1, *[1] * (images.ndim - 2))
    return (images * weights).sum(1, keepdim=True)


def _brighten(images: Tensor, factor: Tensor) -> Tensor:
    return images * factor


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    middle = grey(images).mean(tuple(range(1, images.ndim)), keepdim=True)
    return images * factor + middle * (1 - factor)


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    return images * factor + grey(images) * (1 - factor)


def _turn_hue(images: Float[Tensor, "b 3 *s"], turn: Float[Tensor, "b *ones"]) -> Float[Tensor, "b 3 *s"]:
    """Turn the hue, keeping value (the greatest channel) and chroma (its distance from the least one)."""
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    divisor = torch.where(chroma > 0, chroma, 1)
    # In sixths of a turn; which channel is the greatest tells the third, and the other two where in it.
    from_red, from_green, from_blue = (
        (green - blue) / divisor,
        2 + (blue - red) / divisor,
        4 + (red - green) / divisor,
    )
    hue = torch.where(red == value, from_red, torch.where(green == value, from_green, from_blue)) + 6 * turn
    # A channel is at the value within a sixth of its own hue, and falls to value - chroma over the next sixth.
    distance = ((hue - hue.new_tensor((0.0, 2.0, 4.0)).view(-1, *[1] * (images.ndim - 2)) + 3) % 6 - 3).abs()
    return value - chroma * (distance - 1).clamp(0, 1)


CHANGES = {"brightness": _brighten, "contrast": _contrast, "saturation": _saturate, "hue": _turn_hue}
