"""Phase: a piece of work that takes a while, and how far it is, in words."""

import time
from dataclasses import dataclass, field

QUIET_AFTER_S = 20.0
LEAST_SHOWN_S = 1.0
PLURALS = {"study": "studies"}


@dataclass
class Phase:
    """A piece of work that takes a while: ``done`` of ``total`` (if known), counted in ``unit``.

    shown     further text to show
    short     its name where there is little room; by default ``what``
    began_s   when it began, as time.time() has it
    counted   when counting began, and how much was done before, which does not count for the pace
    updated_s when ``done`` last changed
    """

    what: str
    total: int | None = None
    unit: str = "step"
    done: int = 0
    shown: str = ""
    short: str = ""
    began_s: float = field(default_factory=time.time)
    counted: tuple[float, int] = (0.0, 0)
    updated_s: float = 0.0

    def __post_init__(self) -> None:
        if self.total is not None and not self.updated_s:
            self.counted, self.updated_s = (self.began_s, self.done), self.began_s

    @property
    def name(self) -> str:
        return self.short or self.what

    def pace(self) -> float | None:
        """Return units per second since counting began; None if nothing has been done since."""
        since_s, before = self.counted
        return (self.done - before) / (self.updated_s - since_s) if self.done > before else None

    def details(self, now_s: float) -> list[str]:
        """Say how far it is, how fast it goes, how much time is left, and how long it has been quiet."""
        elapsed_s = now_s - self.began_s
        if self.total is None:
            elapsed = duration(elapsed_s) if elapsed_s >= LEAST_SHOWN_S else ""
            return [part for part in (self.shown, elapsed) if part]
        parts = [f"{self.unit} {self.done} of {self.total}"]
        if (pace := self.pace()) and self.done < self.total:
            parts += [per_second(pace, self.unit), f"{duration((self.total - self.done) / pace)} left"]
        elif not pace and elapsed_s >= LEAST_SHOWN_S:
            parts.append(duration(elapsed_s))
        parts += [self.shown] if self.shown else []
        if self.unit == "step" and now_s - self.updated_s >= QUIET_AFTER_S:
            parts.append(f"no report for {duration(now_s - self.updated_s)}")
        return parts

    def text(self, now_s: float) -> str:
        """Return the phase in one line."""
        details = ", ".join(self.details(now_s))
        return f"{self.what}: {details}" if details else self.what


def duration(seconds: float) -> str:
    """Return a time in words: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def per_second(pace: float, unit: str) -> str:
    """Return a pace in words: ``3.1 steps/s``, or ``12 s per step`` if it is slow."""
    if pace >= 1:
        return f"{pace:.1f} {PLURALS.get(unit, f'{unit}s')}/s"
    return f"{duration(1 / pace)} per {unit}" if pace < 0.5 else f"{1 / pace:.1f} s per {unit}"
