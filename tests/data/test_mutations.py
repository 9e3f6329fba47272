"""A mutated file of any format, in a folder of any layout: read or refused, and no neighbour lost.

``make mutations`` tries 20,000.
"""

import numpy as np
import pytest

from tests.mutations import mutated, outcomes
from tests.small_folders import FOLDERS

NUM_FILES = 40


@pytest.mark.slow
def test_a_mutated_file_is_read_or_refused_in_words_and_loses_no_neighbour():
    found = outcomes(NUM_FILES)
    assert found.faults == []
    assert found.counts.total() == NUM_FILES
    assert {what.split()[0] for what, _ in found.counts} == {folder.name for folder in FOLDERS}
    assert {"read", "refused"} <= {outcome for _, outcome in found.counts}


def test_a_mutation_changes_bytes_and_the_same_seed_changes_the_same():
    content = bytes(range(256)) * 4
    changed = [mutated(content, np.random.default_rng(seed)) for seed in range(50)]
    assert changed == [mutated(content, np.random.default_rng(seed)) for seed in range(50)]
    assert sum(other != content for other in changed) >= 45
