"""A mutated file of any format, in a folder of any layout: read or refused, and no neighbour lost.

``make mutations`` tries 20,000.
"""

import numpy as np
import pytest

from data.quarantine import BadStudy
from data.readers import read_study
from data.sources import find_studies
from tests.mutated_folders import FOLDERS, mutated, outcomes

NUM_FILES = 40


def test_a_mutated_file_is_read_or_refused_in_words_and_loses_no_neighbour():
    counts, faults = outcomes(NUM_FILES)
    assert faults == []
    assert counts.total() == NUM_FILES
    assert {what.split()[0] for what, _ in counts} == {folder.name for folder in FOLDERS}
    assert {"read", "refused"} <= {outcome for _, outcome in counts}


def test_a_mutation_changes_bytes_and_the_same_seed_changes_the_same():
    content = bytes(range(256)) * 4
    changed = [mutated(content, np.random.default_rng(seed)) for seed in range(50)]
    assert changed == [mutated(content, np.random.default_rng(seed)) for seed in range(50)]
    assert sum(other != content for other in changed) >= 45


def test_a_damaged_npz_file_is_one_bad_study_and_the_other_files_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 20), dtype=np.uint8)
    for name in ("a", "b", "c"):
        np.savez_compressed(tmp_path / f"{name}.npz", train_images=images, train_labels=np.arange(3))
    np.savez(tmp_path / "other.npz", weights=images)
    other = (tmp_path / "other.npz").read_bytes()
    (tmp_path / "other.npz").unlink()
    whole = (tmp_path / "b.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no archive", whole[:60] + bytes(8) + whole[68:], other):
        (tmp_path / "b.npz").write_bytes(broken)
        studies = find_studies(str(tmp_path), "npz")
        assert [study.key for study in studies if study.fault is None] == [
            f"{name}.npz/train/{number:07d}" for name in ("a", "c") for number in range(3)
        ]
        (bad,) = [study for study in studies if study.fault is not None]
        with pytest.raises(BadStudy, match=r"damaged .npz file, .*all of whose images are left out.*copy the file"):
            read_study(bad)


def test_labels_of_an_npz_file_that_are_fewer_than_its_images_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 20), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.arange(2))
    with pytest.raises(ValueError, match=r"train_labels: shape \(2,\).*a row for each of the 3 images"):
        find_studies(str(tmp_path), "npz")
