"""Brain phantoms: nested tumours, sequences that need each other, and a folder that ingest reads as four channels."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data.phantoms.brain import CORE, ENHANCING, LABEL_NAMES, OEDEMA, SEQUENCES, make_brain, write_brains
from data.readers import read_study
from data.recipes import RECIPES
from data.recipes.apply import apply
from data.sources import find_studies

COARSE_MM = (6.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def brains():
    return [make_brain(3, patient, (4.0, 4.0, 4.0)) for patient in range(6)]


@pytest.mark.slow
def test_the_parts_of_a_tumour_are_nested(brains):
    for brain in brains:
        depth = ndimage.distance_transform_edt(brain.label > 0, brain.spacing_mm)
        parts = [depth[brain.label == part] for part in (OEDEMA, ENHANCING, CORE)]
        means = [part.mean() for part in parts if part.size]
        assert len(means) >= 2
        assert means == sorted(means)


@pytest.mark.slow
def test_most_tumours_enhance_and_some_do_not():
    enhancing = [(make_brain(0, patient, (5.0, 5.0, 5.0)).label == ENHANCING).any() for patient in range(24)]
    assert 0.7 < np.mean(enhancing) < 1


def test_healthy_brains_have_no_tumour():
    assert make_brain(3, 0, COARSE_MM, tumour=False).label.max() == 0


@pytest.mark.slow
def test_air_is_zero_in_every_sequence_and_no_brain_is(brains):
    for brain in brains:
        assert ((brain.voxels == 0).all(0) == (brain.voxels == 0).any(0)).all()
        assert 0.25 < (brain.voxels[0] > 0).mean() < 0.6
        assert (brain.voxels[:, brain.label > 0] > 0).all()


def test_parts_look_as_they_do_in_people(brains):
    """Oedema is bright in FLAIR and dark in T1w; what enhances is bright in T1gd, and cores are dark there."""
    for brain in brains:
        mean = {
            (name, part): brain.voxels[number][brain.label == part].mean()
            / brain.voxels[number][healthy(brain)].mean()
            for number, name in enumerate(SEQUENCES)
            for part in (OEDEMA, CORE, ENHANCING)
            if (brain.label == part).any()
        }
        assert mean["FLAIR", OEDEMA] > 1.2
        assert mean["T1w", OEDEMA] < 1
        assert mean["T1gd", CORE] < 1
        if ("T1gd", ENHANCING) in mean:
            assert mean["T1gd", ENHANCING] > 1.15 > mean["T1w", ENHANCING]


def healthy(brain) -> np.ndarray:
    return (brain.voxels[0] > 0) & (brain.label == 0)


def test_no_sequence_alone_tells_the_tumour_by_its_intensity(brains):
    """The best interval of a sequence finds the whole tumour with a Dice below 0.5."""
    for brain in brains:
        tumour = brain.label > 0
        for volume in brain.voxels:
            for outer in (2, 10, 20):
                low, high = np.percentile(volume[tumour], (outer, 100 - outer))
                guess = (volume >= low) & (volume <= high)
                assert 2 * (guess & tumour).sum() / (guess.sum() + tumour.sum()) < 0.5


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_brains(tmp_path / name, 1, num_unlabelled=1, seed=seed, spacing_mm=COARSE_MM)
    contents = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in "abc"
    }
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]


def test_a_cohort_is_read_as_one_study_of_four_channels_per_patient(tmp_path):
    write_brains(tmp_path, 1, num_unlabelled=1, seed=1, spacing_mm=COARSE_MM)
    studies = find_studies(str(tmp_path), "nnunet")
    assert [(len(study.image), study.label is not None, study.modality) for study in studies] == [
        (4, True, "MR"),
        (4, False, "MR"),
    ]
    brain = make_brain(1, 0, COARSE_MM)
    image = nib.load(tmp_path / "imagesTr" / "brain_000_0002.nii.gz")
    assert nib.aff2axcodes(image.affine) == tuple(brain.orientation)
    (sample,) = apply(
        RECIPES["mri_volume"].with_fields(spacing_mm=brain.spacing_mm, window=(0.0, 100.0)), read_study(studies[0])
    )
    assert sample.voxels.shape == brain.voxels.shape
    np.testing.assert_array_equal(sample.label, brain.label)
    for stored, written in zip(sample.voxels, brain.voxels, strict=True):
        assert np.corrcoef(stored[written > 0], written[written > 0])[0, 1] > 0.999999
    names = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    assert {number: name for name, number in names.items() if number} == LABEL_NAMES


def test_a_cohort_may_have_fewer_sequences(tmp_path):
    write_brains(tmp_path, 0, num_unlabelled=1, seed=1, spacing_mm=COARSE_MM, sequences=("T1w", "FLAIR"))
    brain = make_brain(1, 0, COARSE_MM, tumour=False)
    for channel, sequence in enumerate(("T1w", "FLAIR")):
        image = nib.as_closest_canonical(nib.load(tmp_path / "imagesTr" / f"brain_000_{channel:04d}.nii.gz"))
        voxels = np.asarray(image.dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(voxels, brain.voxels[SEQUENCES.index(sequence)])
