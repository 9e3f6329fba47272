"""nnU-Net's folders as people have them: which files are one study, whose label is whose, odd dataset.json files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources import Study, find_studies, label_names
from data.sources.channels import group_channels


def tree(root: Path, *paths: str, **description: object) -> list[Study]:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    if description:
        (root / "dataset.json").write_text(json.dumps(description))
    return find_studies(str(root), "nnunet")


def found(studies: list[Study]) -> dict[str, tuple]:
    """The files and the label of each sound study."""
    return {
        study.key: (
            *(Path(uri).name.partition(".")[0] for uri in study.image),
            study.label and Path(study.label).name,
        )
        for study in studies
        if study.fault is None
    }


def faults(studies: list[Study]) -> dict[str, str]:
    return {study.key: study.fault.found for study in studies if study.fault is not None}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("description", [{}, {"modality": {"0": "CT"}}, {"channel_names": {"0": "T1", "1": "T2"}}])
def test_four_digits_of_a_patient_are_no_channel(tmp_path: Path, first: int, description: dict) -> None:
    """Four patients of one prefix; with two channels in dataset.json, as the last axis of each file."""
    names = [f"pancreas_{n:04d}" for n in range(first, first + 4)]
    studies = tree(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in names), **description)
    assert [(study.key, len(study.image)) for study in studies] == [(f"imagesTr/{name}", 1) for name in names]
    assert len({study.patient for study in studies}) == 4
    assert faults(studies) == {}


def test_the_same_full_set_in_every_study_is_channels_without_a_dataset_json(tmp_path: Path) -> None:
    studies = tree(tmp_path, *(f"imagesTr/{name}_000{n}.nii.gz" for name in "ab" for n in (0, 1)))
    assert found(studies) == {"imagesTr/a": ("a_0000", "a_0001", None), "imagesTr/b": ("b_0000", "b_0001", None)}
    assert {study.num_channels for study in studies} == {2}


@pytest.mark.parametrize("extra", ["c_0000", "c_0001", "c_0002", "c"])
def test_without_a_dataset_json_one_study_of_another_set_leaves_all_files_apart(tmp_path: Path, extra: str) -> None:
    names = ["a_0000", "a_0001", "b_0000", "b_0001", extra]
    studies = tree(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in names))
    assert [study.key for study in studies] == [f"imagesTr/{name}" for name in names]


def test_channels_beside_a_dataset_json_that_names_fewer_are_a_fault(tmp_path: Path) -> None:
    names = ("a_0000", "b_0000", "b_0001", "c_0007")
    studies = tree(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in names), channel_names={"0": "CT"})
    assert found(studies) == {"imagesTr/a": ("a_0000", None), "imagesTr/c_0007": ("c_0007", None)}
    assert faults(studies) == {"imagesTr/b": "2 files for 1 channels"}


@pytest.mark.slow
@given(
    st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1),
    st.sets(st.sampled_from("abc")),
    st.integers(0, 3),
)
def test_every_file_is_in_one_study_and_no_study_has_files_of_two_names(files, labelled, num_named) -> None:
    stems = [f"{name}_{number:04d}" for name, number in files]
    groups = group_channels(stems, (), labelled, num_named)
    assert sorted(stem for group in groups.values() for stem in group.stems) == sorted(stems)
    for group in groups.values():
        assert len({stem[0] for stem in group.stems}) == 1
        assert group.fault is not None or len(group.stems) in (1, group.num_channels)


def test_a_file_beside_channels_of_its_name_is_quarantined_with_them_and_none_is_lost(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}}')
    names = ("a_0000", "a_0001", "a", "b_0000", "b_0001")
    bad, sound = tree(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in names))
    assert (bad.key, len(bad.image)) == ("imagesTr/a", 3)
    assert bad.fault is not None
    assert bad.fault.found == "a file beside files that are channels of its name"
    assert (sound.key, len(sound.image), sound.fault) == ("imagesTr/b", 2, None)


def test_labels_of_one_name_without_an_image_have_keys_of_their_own(tmp_path: Path) -> None:
    studies = tree(tmp_path, "imagesTr/a.nii.gz", "labelsTr/x.nii.gz", "labelsTr/x.nrrd", "labelsTr/y.nii.gz")
    assert [study.key for study in studies if study.fault is not None] == [
        "labelsTr/x.nii.gz",
        "labelsTr/x.nrrd",
        "labelsTr/y",
    ]


def test_files_in_folders_are_studies_and_patients_of_their_own(tmp_path: Path) -> None:
    names = ("P0/ct", "P1/ct", "x")
    studies = tree(tmp_path, *(f"{f}/{name}.nii.gz" for f in ("imagesTr", "labelsTr") for name in names))
    assert found(studies) == {
        "imagesTr/P0/ct": ("ct", "ct.nii.gz"),
        "imagesTr/P1/ct": ("ct", "ct.nii.gz"),
        "imagesTr/x": ("x", "x.nii.gz"),
    }
    assert all(study.label == study.image[0].replace("images", "labels") for study in studies)
    assert len({study.patient for study in studies}) == 3


def test_two_files_of_one_name_are_both_quarantined_by_name(tmp_path: Path) -> None:
    names = (
        "imagesTr/a.nii",
        "imagesTr/a.nii.gz",
        "imagesTr/b.nrrd",
        "labelsTr/b.nii",
        "labelsTr/b.mha",
        "images/c.nii",
    )
    studies = tree(tmp_path, *names)
    assert faults(studies) == {
        "imagesTr/a.nii": "2 files of one name",
        "imagesTr/a.nii.gz": "2 files of one name",
        "imagesTr/b": "2 labels of one name",
    }
    assert found(studies) == {"images/c": ("c", None)}


def test_a_list_may_name_studies_without_their_folder(tmp_path: Path) -> None:
    studies = tree(tmp_path, "imagesTr/a_0000.nii", "imagesTr/b_0000.nii", training=["a", "b", "c"], modality=["CT"])
    assert found(studies) == {"imagesTr/a": ("a_0000", None), "imagesTr/b": ("b_0000", None)}
    assert faults(studies) == {"/c": "an image that dataset.json lists but is not there"}


@pytest.mark.parametrize("text", ["", "{'labels': 1}", "// x\n{}"])
def test_only_a_comma_before_a_bracket_is_called_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"not JSON .*; correct it there$"):
        find_studies(str(tmp_path), "nnunet")


@pytest.mark.parametrize("prefix", ["", "./", "/data/btcv/", "C:\\btcv\\"])
@pytest.mark.parametrize("kind", ["training", "validation"])
def test_pairs_in_dataset_json_come_before_names(tmp_path: Path, prefix: str, kind: str) -> None:
    pairs = [
        {"image": f"{prefix}imagesTr/img{n}.nii.gz", "label": f"{prefix}labelsTr/label{n}.nii.gz"} for n in (1, 2, 3)
    ]
    files = ("imagesTr/img1.nii.gz", "imagesTr/img2.nii.gz", "labelsTr/label1.nii.gz", "labelsTr/label9.nii.gz")
    studies = tree(tmp_path, *files, modality={"0": "CT"}, **{kind: pairs})
    assert found(studies) == {"imagesTr/img1": ("img1", "label1.nii.gz")}
    assert faults(studies) == {
        "imagesTr/img2": "an image whose label dataset.json lists but is not there",
        "labelsTr/label9": "a label without an image",
        "imagesTr/img3": "an image that dataset.json lists but is not there",
    }


@pytest.mark.parametrize("given", [{"0": "T1", "1": "T2"}, {"T1": 0, "T2": 1}, ["T1", "T2"], {"1": "T2", "0": "T1"}])
def test_channel_names_are_read_in_any_form(tmp_path: Path, given: object) -> None:
    (study,) = tree(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", channel_names=given)
    assert (study.num_channels, study.modality, len(study.image)) == (2, "MR", 2)


@pytest.mark.parametrize("given", [{"1": "liver", "0": "b"}, {"liver": 1, "b": 0}, {"liver": "1"}, ["b", "liver"]])
def test_label_names_are_read_in_any_form(tmp_path: Path, given: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": given}))
    assert label_names(str(tmp_path)) == {1: "liver"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": {"a": 1,}}', r"dataset\.json: not JSON \(line 1, column \d+: .*no comma before a closing"),
        ("[1]", r"dataset\.json: a list; expected a mapping"),
        ('{"channel_names": {"CT": "x"}}', r"1 channel_names without a number for each.*number the channels"),
        ('{"labels": "liver"}', r"dataset\.json: labels that are a str; expected a mapping"),
        ('{"labels": {"\xe4": 1}}', r"dataset\.json: not JSON in UTF-8; .* save it as UTF-8"),
    ],
)
def test_a_dataset_json_that_is_none_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        tree(tmp_path, "imagesTr/a.nii")
