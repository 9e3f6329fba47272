"""Columns of a table: patients and splits are found under the names that public tables use."""

from pathlib import Path

import pytest

from data.sources import SourceOptions, Study, find_studies, remarks


def studies_of(folder: Path, heading: str, *lines: str, **options) -> list[Study]:
    """Write a table whose first column is the image file, and find its studies."""
    for line in lines:
        (folder / line.split(",")[0]).touch()
    (folder / "t.csv").write_text("\n".join([heading, *lines]))
    return find_studies(str(folder), "csv", SourceOptions.model_validate(options))


def said_of(folder: Path, **options) -> str:
    (said,) = remarks(str(folder), "csv", SourceOptions.model_validate(options))
    return said


# The columns of published tables that matter here, and those that look alike and mean something else.
@pytest.mark.parametrize(
    ("heading", "options", "patients", "splits"),
    [
        ("Image Index,Finding Labels,Follow-up #,Patient ID", ("Image Index", "Finding Labels"), "Patient ID", None),
        ("dicom_id,label,subject_id,split", ("dicom_id", "label"), "subject_id", "split"),
        ("image_id,breast_birads,study_id,split", ("image_id", "breast_birads"), None, "split"),
        ("ImageID,Labels,PatientID,Study", ("ImageID", "Labels"), "PatientID", None),
        ("image_name,diagnosis,patient_id,lesion_id", ("image_name", "diagnosis"), "patient_id", None),
        ("Path,Edema,Sex,Age", ("Path", "Edema"), None, None),
        ("file,label,SUBJECT,Partition", ("file", "label"), "SUBJECT", "Partition"),
        ("image,level,Usage,PTID", ("image", "level"), "PTID", "Usage"),
        ("FILE,Label,patient_age,Set", ("file", "label"), None, "Set"),
    ],
)
def test_the_columns_of_public_tables_are_found(
    tmp_path: Path, heading: str, options: tuple[str, str], patients: str | None, splits: str | None
) -> None:
    names = heading.split(",")
    cells = {patients: ("A", "B", "A"), splits: ("Train", "VALIDATE", "")}
    rows = [",".join([f"{n}.png", str(n), *(cells.get(name, "xyz")[n] for name in names[2:])]) for n in range(3)]
    studies = studies_of(tmp_path, heading, *rows, image_column=options[0], label_column=options[1])
    assert [study.patient for study in studies] == (
        ["A", "B", "A"] if patients else [f"{tmp_path.name}/{n}.png" for n in range(3)]
    )
    assert [study.split for study in studies] == (["train", "val", None] if splits else [None] * 3)
    said = said_of(tmp_path, image_column=options[0], label_column=options[1])
    unused = [name for name in names[2:] if name not in (patients, splits)]
    assert said.endswith(f"not used: {', '.join(unused) or 'none'}")
    assert (f"patients from {patients} (2 patients in 3 rows)" in said) == bool(patients)
    assert ("each file counts as a patient of its own" in said) == (patients is None)
    assert (f"splits from {splits} (1 train, 1 val)" in said) == bool(splits)


def test_a_column_called_like_one_of_splits_is_not_used_for_other_words(tmp_path: Path) -> None:
    studies = studies_of(tmp_path, "file,label,Usage,fold", "1.png,0,Public,1", "2.png,0,Private,2")
    assert [study.split for study in studies] == [None, None]
    assert said_of(tmp_path).endswith("not used: Usage, fold")


@pytest.mark.parametrize(
    ("heading", "kind", "first", "second"),
    [
        ("file,label,PatientID,subject", "patient", "PatientID", "subject"),
        ("file,label,split,set", "split", "split", "set"),
    ],
)
def test_two_columns_that_may_be_meant_are_refused_until_one_is_named(
    tmp_path: Path, heading: str, kind: str, first: str, second: str
) -> None:
    lines = ("1.png,0,train,test", "2.png,0,test,train")
    with pytest.raises(
        ValueError, match=rf"2 columns that may name the {kind}: {first}, {second}; .*by {kind}_column"
    ):
        studies_of(tmp_path, heading, *lines)
    studies = studies_of(tmp_path, heading, *lines, **{f"{kind}_column": second.upper()})
    assert [getattr(study, kind) for study in studies] == ["test", "train"]
    assert said_of(tmp_path, **{f"{kind}_column": second}).endswith(f"not used: {first}")
    studies = studies_of(tmp_path, heading, *lines, **{f"{kind}_column": ""})
    assert not {getattr(study, kind) for study in studies} & {"train", "test"}


@pytest.mark.parametrize("options", [{}, {"split_column": "split"}])
def test_a_split_that_is_none_of_the_three_is_refused_by_its_word_whether_the_column_is_named_or_found(
    tmp_path: Path, options: dict[str, str]
) -> None:
    lines = ("1.png,0,train", "2.png,0,dev", "3.png,0,holdout", "4.png,0,Holdout", "5.png,0,NaN")
    with pytest.raises(
        ValueError, match=r"column split .* 3 of 5 rows .* \(dev, holdout\); expected one of train.*split_column an"
    ):
        studies_of(tmp_path, "file,label,split", *lines, **options)
    assert {study.split for study in studies_of(tmp_path, "file,label,split", *lines, split_column="")} == {None}


def test_a_split_column_that_is_named_must_hold_splits_and_its_words_are_not_shown(tmp_path: Path) -> None:
    lines = ("1.png,0,train", "2.png,0,Lovelace", "3.png,0,")
    with pytest.raises(ValueError, match=r"column part .* 1 of 3 rows whose value is no split .*correct") as caught:
        studies_of(tmp_path, "file,label,part", *lines, split_column="part")
    assert "Lovelace" not in str(caught.value)


def test_a_blank_in_the_column_of_patients_is_a_patient_of_its_own(tmp_path: Path) -> None:
    studies = studies_of(tmp_path, "file,label,patient", "1.png,0,A", "2.png,0,", "3.png,0, ", "4.png,0")
    assert len({study.patient for study in studies}) == 4
    assert (
        "patients from patient (1 patients in 4 rows, of which 3 name no patient and count as one each)"
        in said_of(tmp_path)
    )


def test_patients_by_a_pattern_of_paths_come_before_a_column_that_nobody_named(tmp_path: Path) -> None:
    studies = studies_of(tmp_path, "file,label,patient", "a1.png,0,X", "b2.png,0,X", patient_pattern="^.")
    assert [study.patient for study in studies] == ["a", "b"]
    assert said_of(tmp_path, patient_pattern="^.").endswith("classes from label; not used: patient")
