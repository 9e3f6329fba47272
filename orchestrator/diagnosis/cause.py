"""Cause: one reason for a flat or odd loss, with the number that shows it, and the remedy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A reason for a flat or odd loss.

    name    what is wrong, in the words of the documentation's table
    shown   the number that shows it, beside what would be sound
    remedy  what to change
    """

    name: str
    shown: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.shown}; {self.remedy}"


def share(part: float, whole: float) -> str:
    """Return a share in per cent."""
    return f"{100 * part / whole:.0f} %"
