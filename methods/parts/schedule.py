"""The learning rate of each step: linear warm-up, then half a cosine down to a final rate."""

import math


def learning_rate(step: int, total_steps: int, lr: float, final_lr: float = 0.0, warmup_steps: int = 0) -> float:
    """Return the rate used at ``step`` (0-based) of ``total_steps``.

    Warm-up reaches ``lr`` at its last step, ``lr * (step + 1) / warmup_steps``. The cosine starts at ``lr`` at the
    first step after it and would reach ``final_lr`` at ``total_steps``, one step after the last. Source:
    Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
