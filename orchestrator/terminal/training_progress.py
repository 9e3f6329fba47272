"""Training progress: show a training to a person: its workers start, then its steps pass."""

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from orchestrator.terminal import progress
from orchestrator.terminal.phase import Phase, duration

Entries = list[dict[str, Any]]
METRICS = ("loss", "collapse", "score", "dice_mean")


@contextmanager
def shown(
    what: str, total_steps: int, validated: Callable[[int], bool] | None = None
) -> Generator[Callable[[Entries], None]]:
    """Show that a training's workers start; yield a function that takes the history's entries and shows its steps.

    ``validated`` returns whether a validation, during which nothing is reported, follows a step.
    """
    began_s = time.monotonic()
    words, training = "", list[Phase]()
    with ExitStack() as started, ExitStack() as starting:
        starting.enter_context(progress.phase(f"{what}: starting workers"))

        def show(entries: Entries) -> None:
            nonlocal words
            done, words = entries[-1]["step"] + 1, measured(entries[-1])
            if not training:
                training.append(started.enter_context(progress.phase(what, total_steps, done=done)))
                starting.close()
            following = next_validation(done, total_steps, validated)
            progress.update(training[0], done, ", ".join(filter(None, (words, following))))

        yield show
    if training:
        passed = f"{what}: step {training[0].done} of {total_steps} after {duration(time.monotonic() - began_s)}"
        progress.say(", ".join(filter(None, (passed, words))))


def measured(entry: dict[str, Any]) -> str:
    """Name the most informative metrics of a step."""
    return ", ".join(f"{metric} {entry[metric]:.4f}" for metric in METRICS if metric in entry)


def next_validation(done: int, total_steps: int, validated: Callable[[int], bool] | None) -> str:
    """Name the step after which the next validation comes, or nothing."""
    if validated is None or done >= total_steps:
        return ""
    step = next((step for step in range(done + 1, total_steps) if validated(step)), total_steps)
    return f"validation after step {step}"
