"""Failure: a run that ended without its result. A module of its own, as it is named where nothing is trained."""


class RunError(RuntimeError):
    """A run that ended without its result; the message says why in words."""
