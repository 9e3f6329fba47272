"""Failure: a run that ended without its result. A module of its own, for code that trains nothing imports it."""


class RunError(RuntimeError):
    """A run that ended without its result; the message says why."""
