"""Nodule phantoms: only the shape along the depth tells nodules from vessels, and ingest reads table and volumes."""

from pathlib import Path

import numpy as np
import pytest

from data.phantoms.nodules import CANDIDATES, SIZE, make_candidate, write_candidates
from data.readers import read_study
from data.sources import SourceOptions, find_studies

TISSUE_FROM_HU = -400


def test_a_nodule_ends_within_the_cube_and_a_vessel_runs_through_it() -> None:
    for patient in range(10):
        vessel, nodule = (make_candidate(0, patient, label).voxels > TISSUE_FROM_HU for label in (0, 1))
        assert vessel.any(axis=(1, 2)).all()
        assert not nodule[[0, -1]].any()


@pytest.mark.slow
def test_the_middle_slice_shows_as_much_tissue_of_nodules_as_of_vessels() -> None:
    areas = np.array(
        [
            [(make_candidate(1, p, label).voxels > TISSUE_FROM_HU).sum((1, 2)).max() for label in (0, 1)]
            for p in range(40)
        ]
    )
    assert 0.8 < areas[:, 0].mean() / areas[:, 1].mean() < 1.25


def test_the_table_s_classes_and_patients_are_read_and_the_same_seed_gives_the_same_voxels(tmp_path: Path) -> None:
    folder = write_candidates(tmp_path / "scans", 2, num_unlabelled=1, seed=3)
    studies = find_studies(str(folder), "csv", SourceOptions(patient_column="patient"))
    assert sorted((study.patient, study.class_names) for study in studies) == [
        *(("phantom_000", (name,)) for name in sorted(CANDIDATES)),
        *(("phantom_001", (name,)) for name in sorted(CANDIDATES)),
        *[("phantom_002", ())] * 2,
    ]
    study = next(one for one in studies if (one.patient, one.class_names) == ("phantom_001", ("nodule",)))
    scan = read_study(study)
    assert scan.voxels.shape == (1, *SIZE)
    np.testing.assert_array_equal(scan.voxels[0], make_candidate(3, 1, CANDIDATES.index("nodule")).voxels)
