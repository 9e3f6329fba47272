"""A mutated file of any format is read or refused, and never ends its process; ``tests/mutations.py`` tries more."""

from collections import Counter

from tests.mutations import outcomes


def test_mutated_files_of_every_format_are_read_or_refused_and_end_no_process() -> None:
    counts = outcomes(440, seed=1)
    totals: Counter[str] = Counter()
    for (_, outcome), count in counts.items():
        totals[outcome] += count
    assert totals["read"] + totals["refused"] + totals["unforeseen"] == 440
    assert totals["read"] > 60
    assert len({name for name, _ in counts if not name.startswith("number")}) >= 22
