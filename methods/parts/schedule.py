"""The learning rate of each step: linear warm-up, then half a cosine down to a final rate."""

import math
from typing import Literal

WarmUp = Literal["above_zero", "from_zero", "zero_to_peak"]


def learning_rate(
    step: int,
    total_steps: int,
    lr: float,
    final_lr: float = 0.0,
    warmup_steps: int = 0,
    warmup: WarmUp = "above_zero",
) -> float:
    """Return the rate used at ``step`` (0-based) of ``total_steps``.

    The cosine starts at ``lr`` at the first step after the warm-up and would reach ``final_lr`` at ``total_steps``,
    one step after the last. Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if step < warmup_steps:
        return warm_up(step, warmup_steps, lr, warmup)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warm_up(step: int, steps: int, lr: float, shape: WarmUp) -> float:
    """Return the rate at ``step`` (0-based) of a linear warm-up of ``steps``.

    ``above_zero`` rises from ``lr / steps`` and reaches ``lr`` at the last step of the warm-up. ``from_zero`` begins
    at 0 and reaches ``lr`` one step after the warm-up: VoCo's released pretraining (MONAI's WarmupCosineSchedule).
    ``zero_to_peak`` begins at 0 and reaches ``lr`` at the last step of the warm-up: the released fine-tunings of VoCo
    and of the thesis on IoU-based positives. Both released shapes spend their first step at a rate of 0.
    """
    if shape == "from_zero":
        return lr * step / steps
    if shape == "zero_to_peak":
        return lr * step / max(1, steps - 1)
    return lr * (step + 1) / steps
