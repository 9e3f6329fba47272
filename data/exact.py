"""Exact: turn a float into the decimal that a person wrote, so that its products can be floored and rounded."""

from fractions import Fraction


def exact(number: int | float) -> Fraction:
    """Return the decimal that was written: 0.29 is 29/100, whereas 100 times the float 0.29 is below 29."""
    return Fraction(str(number))
