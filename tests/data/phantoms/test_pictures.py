"""Picture phantoms: the label is in the lesions and not in the brightness, and ingest reads table and pictures."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from data.phantoms.pictures import FILMS, LESIONS, make_film, make_fundus, write_films, write_fundus
from data.readers import read_study
from data.recipes import RECIPES
from data.recipes.apply import apply
from data.sources import SourceOptions, Study, find_studies

SIZE = 128


@pytest.fixture(scope="module")
def retinas():
    return [make_fundus(0, patient, eye, SIZE) for patient in range(20) for eye in (0, 1)]


@pytest.fixture(scope="module")
def films():
    return [make_film(0, patient, SIZE) for patient in range(40)]


@pytest.mark.slow
def test_a_retina_has_as_many_lesions_as_its_grade_says(retinas):
    assert {picture.label for picture in retinas} == {0, 1, 2, 3, 4}
    for picture in retinas:
        low, high = LESIONS[picture.label]
        _, count = ndimage.label(picture.lesions)
        assert low <= count <= high
    assert all(low > high for (_, high), (low, _) in pairwise(LESIONS))


@pytest.mark.slow
def test_lesions_of_a_retina_stand_out_from_what_is_around_them(retinas):
    for picture in retinas:
        if picture.label:
            green = picture.pixels[..., 1].astype(float)
            contrast = np.abs(green - ndimage.gaussian_filter(green, 3))
            around = ndimage.binary_dilation(picture.lesions, iterations=4) & ~picture.lesions
            assert contrast[picture.lesions].mean() > 2 * contrast[around].mean()


def test_opacities_are_brighter_than_the_lung_around_them(films):
    for picture in films:
        if picture.label:
            around = ndimage.binary_dilation(picture.lesions, iterations=4) & ~picture.lesions
            lung = np.percentile(picture.pixels[around], 25)  # the rest may be ribs, heart and chest wall
            assert np.median(picture.pixels[picture.lesions]) > lung + 5


def test_only_films_with_pneumonia_have_opacities(films):
    assert {picture.label for picture in films} == {0, 1}
    assert [bool(picture.label) for picture in films] == [bool(picture.lesions.any()) for picture in films]


def test_brightness_and_contrast_do_not_tell_the_label(retinas, films):
    """As scores of what is ill, the mean and the deviation of a grey value or a colour are little above chance."""
    for pictures, ill in ((films, lambda p: p.label == 1), (retinas, lambda p: p.label >= 2)):
        labels = [ill(picture) for picture in pictures]
        channels = [picture.pixels.reshape(SIZE * SIZE, -1).astype(float) for picture in pictures]
        for statistic in (np.mean, np.std):
            for number in range(channels[0].shape[1]):
                auc = roc_auc_score(labels, [statistic(pixels[:, number]) for pixels in channels])
                assert 0.2 < auc < 0.8


def test_an_eye_s_disc_lies_towards_the_nose():
    for eye, columns in ((0, slice(SIZE // 2, None)), (1, slice(0, SIZE // 2))):
        picture = make_fundus(1, 0, eye, SIZE)
        smooth = ndimage.gaussian_filter(picture.pixels[..., 1].astype(float), 4)
        assert np.unravel_index(smooth.argmax(), smooth.shape)[1] in range(SIZE)[columns]


@pytest.mark.parametrize("write", [write_fundus, write_films])
def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path, write):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, 2, num_unlabelled=1, seed=seed, size=64)
    contents = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc"}
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]


def studies_of(folder: Path) -> list[Study]:
    return find_studies(str(folder), "csv", SourceOptions(patient_column="patient"))


def test_a_fundus_cohort_is_read_with_grades_and_two_eyes_of_a_patient(tmp_path: Path):
    studies = studies_of(write_fundus(tmp_path, 3, num_unlabelled=1, seed=1, size=64))
    assert [study.patient for study in studies] == [f"phantom_{patient:03d}" for patient in (0, 0, 1, 1, 2, 2, 3, 3)]
    grades = [make_fundus(1, patient, eye, 64).label for patient in range(3) for eye in (0, 1)]
    assert [study.classes for study in studies] == [*((grade,) for grade in grades), None, None]
    (sample,) = apply(RECIPES["fundus"], read_study(studies[0]))
    assert (sample.voxels.shape[0], sample.modality) == (3, "FUNDUS")


def test_films_are_read_with_the_names_of_their_classes(tmp_path: Path):
    studies = studies_of(write_films(tmp_path, 4, num_unlabelled=1, seed=3, size=64))
    labels = [make_film(3, patient, 64).label for patient in range(4)]
    assert [study.class_names for study in studies[:4]] == [(FILMS[label],) for label in labels]
    assert studies[4].classes is None
    (sample,) = apply(RECIPES["xray"], read_study(studies[0]))
    assert (sample.voxels.shape, sample.modality) == ((1, 64, 64), "XR")
