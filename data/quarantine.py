"""BadStudy: the reason why a study cannot be used, without any name, identifier or date."""


class BadStudy(ValueError):  # noqa: N818 (a study is bad; the code is not in error)
    """A study that goes to the quarantine list while the others go on.

    ``found`` gives the offending values, ``expected`` the right ones, ``remedy`` what to do. None of
    them may hold a file name, a patient's identifier or a date: they are written beside the shards.
    """

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(found, expected, remedy)
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.found}; expected {self.expected}; {self.remedy}"

    def about(self, part: str) -> "BadStudy":
        """Return the same complaint about a part of the study, such as its label."""
        return BadStudy(f"{part}: {self.found}", self.expected, self.remedy)
