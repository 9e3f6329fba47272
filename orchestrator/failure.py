"""Failure: a run that ended without its result. A module of its own, because code that trains nothing imports it."""


class RunError(RuntimeError):
    """A run that ended without its result; the message says why."""
