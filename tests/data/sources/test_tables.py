"""Tables as people have them: from Excel, pandas and Windows, moved, with rows too short, too long or repeated."""

import gzip
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from data.readers import read_study
from data.sources import SourceOptions, Study, find_studies


def studies_of(folder: Path, text: str, *files: str, encoding: str = "utf-8", **options) -> list[Study]:
    """Write a table and empty files beside it, and find its studies."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "t.csv").write_text(text, encoding=encoding)
    return find_studies(str(folder), "csv", SourceOptions.model_validate(options))


def classes_of(studies: list[Study]) -> dict[str, tuple]:
    return {study.key: (study.classes, study.class_names) for study in studies if study.fault is None}


def faults_of(studies: list[Study]) -> dict[str, str]:
    return {study.key: study.fault.found for study in studies if study.fault is not None}


def write_film(path: Path) -> None:
    """Write a radiograph as DICOM."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    film = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    film.update({"SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR", "Rows": 8, "Columns": 9})
    film.update({"SOPInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "PatientID": path.stem})
    film.update({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0})
    film.update({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11})
    film.PixelData = np.arange(72, dtype=np.uint16).tobytes()
    film.save_as(path, enforce_file_format=True)


PICTURES = ("0.png", "1.png", "2.png")


def test_a_row_too_short_ends_in_blanks_and_a_row_too_long_is_its_own_fault(tmp_path: Path) -> None:
    text = "file,label,note\n0.png,1,ok\n1.png\n2.png,0,a,b\n \n,,\n0.png,1,ok,,\n"
    studies = studies_of(tmp_path, text, *PICTURES)
    assert classes_of(studies) == {"0.png": ((1,), ("1",)), "1.png": (None, ())}
    assert faults_of(studies) == {"2.png": "a row of 4 cells under a heading of 3 columns"}


@pytest.mark.parametrize("line", ['1.png,"1', '1.png,"a"b', '"1.png"x,1'])
def test_a_line_that_is_no_line_of_a_csv_file_is_its_own_fault_and_swallows_no_other(
    tmp_path: Path, line: str
) -> None:
    studies = studies_of(tmp_path, f'file,label\n0.png,1\n{line}\n2.png,"a\nb"\n', *PICTURES)
    assert classes_of(studies) == {"0.png": ((0,), ("1",)), "2.png": ((1,), ("a\nb",))}
    (said,) = faults_of(studies).values()
    assert said.startswith("line 3 is no line of a CSV file (")


def test_a_heading_with_a_lone_carriage_return_ends_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the table has 1 columns but not label"):
        studies_of(tmp_path, "file\rx,label\n0.png,1\n")


@pytest.mark.parametrize("text", ["file;label\n0.png;1\n1.png;0\n", "file\tlabel\n0.png\t1\n1.png\t0\n",
                                  "file|label\r\n0.png|1\r\n1.png|0\r\n", "sep=;\nfile;label\n0.png;1\n1.png;0\n",
                                  '\n"file","label"\r"0.png","1"\r"1.png","0"\r'])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_is_read_whatever_its_separator_line_ends_and_unicode(
    tmp_path: Path, text: str, encoding: str
) -> None:
    studies = studies_of(tmp_path, text, *PICTURES, encoding=encoding)
    assert classes_of(studies) == {"0.png": ((1,), ("1",)), "1.png": ((0,), ("0",))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\n0.png,\xe4\n".encode("latin-1"),
            r"table t\.csv: line 2 is not UTF-8 text; .* save it as UTF-8",
        ),
        (b'file,label\n0.png,"1\n', r"table t\.csv: line 2 is no line of a CSV file .* correct the line"),
        (b'"file,label\n0.png,1\n', r"table t\.csv: line 1 is no line of a CSV file .* correct the line"),
        (b"file,label\n", r"table t\.csv: a heading and no rows; expected a row for each image; add the rows"),
        (b"\n\n", r"table t\.csv: it is empty; expected a heading and rows"),
        (b"file,label,label\n0.png,1,2\n", r"2 columns called label; expected one; rename or delete the others"),
        ("file,label\n0.png,1\n".encode("utf-16-le"), r"t\.csv: its first line holds zero bytes, .* save it as CSV"),
        (gzip.compress(b"file,label\n0.png,1\n"), r"t\.csv: a gzip stream under .*; decompress it"),
        (b"<!DOCTYPE html><html>Sign in</html>", r"t\.csv: a web page under .*; download the file again"),
        (b"PK\3\4" + bytes(99), r"t\.csv: a ZIP archive under"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        find_studies(str(tmp_path), "csv")


@pytest.mark.parametrize("name", ["t.xlsx", "T.XLS", "t.json", "t.parquet"])
def test_a_table_in_another_format_is_named_by_its_suffix_as_the_source_and_in_a_folder(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b'[{"file": "0.png"}]')
    suffix = name[1:]
    with pytest.raises(ValueError, match=rf"0 CSV files; expected 1; save the table \({suffix}\) as CSV"):
        find_studies(str(tmp_path), "csv")
    with pytest.raises(ValueError, match=rf"table {name}: a {suffix} file; expected a CSV file .*; save it as CSV"):
        find_studies(str(tmp_path / name), "csv")


def test_a_faulty_row_names_no_class_and_a_quoted_cell_may_follow_a_space(tmp_path: Path) -> None:
    text = 'file, label\n0.png, "b, c"\n1.png, aa, x\n2.png, d\x00\n3.png, e\n'
    found = studies_of(tmp_path, text, *PICTURES, "3.png")
    assert classes_of(found) == {"0.png": ((0,), ("b, c",)), "3.png": ((1,), ("e",))}
    assert faults_of(found) == {
        "1.png": "a row of 3 cells under a heading of 2 columns",
        "2.png": "a row that holds zero bytes",
    }


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("0", "1.0", "01", "1e0", "2,0", "1E+01"), {"0": 0, "1": 1, "2": 1, "3": 1, "4": 2, "5": 10}),
        (("True", "false", "TRUE", "False"), {"0": 1, "1": 0, "2": 1, "3": 0}),
        (("123456789012345678", "123456789012345679", "5"), {"0": 1, "1": 2, "2": 0}),
        (("1.5", "1,5", "10"), {"0": 0, "1": 0, "2": 1}),
        (("#NA", "-nan", "NaT", "0"), {"3": 0}),
    ],
)
@pytest.mark.parametrize("separator", [";", "\t"])
def test_numbers_and_truths_are_one_class_in_every_spelling(
    tmp_path: Path, separator: str, labels: tuple[str, ...], classes: dict[str, int]
) -> None:
    text = f"file{separator}label\n" + "\n".join(f"{n}.png{separator}{label}" for n, label in enumerate(labels))
    found = studies_of(tmp_path, text, *(f"{n}.png" for n in range(len(labels))))
    assert {s.key[0]: s.classes[0] for s in found if s.classes is not None} == classes
    names = {number: {s.class_names for s in found if s.classes == (number,)} for number in classes.values()}
    assert all(len(one) == 1 for one in names.values())


def test_truths_count_in_a_class_s_column(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,A\n0.png,True\n1.png,FALSE\n2.png,\n", *PICTURES, label_columns=("A",))
    assert classes_of(found) == {"0.png": ((0,), ("A",)), "1.png": ((), ()), "2.png": ((), ())}


@pytest.mark.parametrize("column", ["split", "Partition", "data_split"])
@pytest.mark.parametrize("words", [("0", "1", "2"), ("A", "B", "B"), ("", "x", "")])
def test_a_column_that_is_called_split_must_hold_splits(tmp_path: Path, column: str, words: tuple[str, ...]) -> None:
    text = f"file,label,{column}\n" + "\n".join(f"{n}.png,0,{word}" for n, word in enumerate(words))
    with pytest.raises(ValueError, match=rf"column {column} of the table has \d of 3 rows whose value is no split"):
        studies_of(tmp_path, text, *PICTURES)
    assert {study.split for study in studies_of(tmp_path, text, *PICTURES, split_column="")} == {None}


def test_a_patient_s_number_that_lost_its_digits_is_a_fault_of_its_row(tmp_path: Path) -> None:
    text = "file,label,PatientID\n0.png,0,1.23457E+11\n1.png,1,123457000001\n2.png,0,007\n"
    found = studies_of(tmp_path, text, *PICTURES)
    assert [study.patient for study in found[1:]] == ["123457000001", "007"]
    assert list(faults_of(found)) == ["0.png"]
    assert "number in short form" in faults_of(found)["0.png"]


@pytest.mark.parametrize(
    "path", ["../set/im/{}.png", "im/../im/{}.png", "{root}/im/{}.png", "../set/../set/./im/{}.PNG"]
)
def test_a_path_that_leads_out_of_the_folder_and_in_again_is_found(tmp_path: Path, path: str) -> None:
    (tmp_path / "set").mkdir()
    text = "file,label\n" + "\n".join(f"{path.format(n, root=tmp_path / 'set')},{n}" for n in (7, 8)) + "\nim/9,9"
    found = studies_of(tmp_path / "set", text, "im/7.png", "im/8.png", "im/9.png")
    assert list(classes_of(found)) == ["im/7.png", "im/8.png", "im/9.png"]


@pytest.mark.parametrize("path", ["../images/{}.png", "{root}/images/{}.png"])
def test_an_image_outside_of_the_table_s_folder_is_named_and_no_other_is_taken_for_it(
    tmp_path: Path, path: str
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/7.png").touch()
    text = f"file,label\n{path.format(7, root=tmp_path)},1\n"
    found = studies_of(tmp_path / "labels", text, "7.png")
    assert classes_of(found) == {}
    (said,) = faults_of(found).values()
    assert said == "a row of the table whose image lies outside of the table's folder"


def test_a_row_s_broken_link_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "1.png").symlink_to("/nowhere/1.png")
    found = studies_of(tmp_path, "file,label\n0.png,0\n1.png,1\n", "0.png")
    assert (classes_of(found), faults_of(found)) == ({"0.png": ((0,), ("0",))}, {"1.png": "a broken link"})


def test_accents_are_one_letter_in_both_forms(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "müller.png") for form in ("NFC", "NFD"))
    found = studies_of(tmp_path, f"file,label\n{one},0\n{two},0\n", two)
    assert classes_of(found) == {two: ((0,), ("0",))}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("0", "2", "nan", "NaN", "4", "NA", ""), {"0": (0, "0"), "1": (2, "2"), "4": (4, "4")}),
        (("0.0", "10.0", "2.0", "nan"), {"0": (0, "0"), "1": (10, "10"), "2": (2, "2")}),
        (("-1", "10", "2", "2.0"), {"0": (0, "-1"), "1": (2, "10"), "2": (1, "2"), "3": (1, "2")}),
        (("1.5", "10"), {"0": (0, "1.5"), "1": (1, "10")}),
        (("10", "9", "mild", "<NA>"), {"0": (1, "10"), "1": (0, "9"), "2": (2, "mild")}),
        (("20001", "123456789012", "9"), {"0": (1, "20001"), "1": (2, "123456789012"), "2": (0, "9")}),
    ],
)  # fmt: skip
def test_numbers_are_classes_by_their_value_and_missing_values_are_none(
    tmp_path: Path, labels: tuple[str, ...], classes: dict[str, tuple[int, str]]
) -> None:
    text = "file,label\n" + "\n".join(f"{n}.png,{label}" for n, label in enumerate(labels))
    found = studies_of(tmp_path, text, *(f"{n}.png" for n in range(len(labels))))
    expected = {f"{n}.png": ((number,), (name,)) for n, (number, name) in classes.items()}
    blanks = {f"{n}.png": (None, ()) for n in range(len(labels)) if str(n) not in classes}
    assert classes_of(found) == {**expected, **blanks}


def test_patients_and_splits_that_are_missing_values_name_none(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,label,patient,split\n0.png,1,NaN,NA\n1.png,1,nan,train\n", *PICTURES)
    assert [study.split for study in found] == [None, "train"]
    assert len({study.patient for study in found}) == 2


def test_class_folders_that_are_numbers_are_numbered_by_value(tmp_path: Path) -> None:
    for name in ("10", "9", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    found = find_studies(str(tmp_path), "class_folders")
    assert classes_of(found) == {f"{n}/a.png": ((c,), (n,)) for c, n in enumerate(("1", "9", "10"))}


@pytest.mark.parametrize(
    ("folders", "word"),
    [
        (("train/a", "dev/a", "test/b"), "dev"),
        (("train", "holdout"), "holdout"),
        (("a/train", "a/Hold-out"), "Hold-out"),
        (("x/train/a", "x/unheard/a", "x/val/a"), "unheard"),
    ],
)
def test_a_folder_in_a_split_s_place_is_refused_by_its_name(
    tmp_path: Path, folders: tuple[str, ...], word: str
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").touch()
    with pytest.raises(ValueError, match=f"folders {word} beside those of splits: no split; expected one of train"):
        find_studies(str(tmp_path), "class_folders")
    pattern = "**/{train,val,test}/**/*.png"
    assert all(study.split for study in find_studies(str(tmp_path), "class_folders", SourceOptions(images=pattern)))


@pytest.mark.parametrize("folders", [("train/external", "val/internal"), ("dev", "a"), ("train/a", "b/c"), ("a/b",)])
def test_words_of_splits_are_classes_elsewhere(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").touch()
    assert len({study.classes for study in find_studies(str(tmp_path), "class_folders")}) == len(folders)


@pytest.mark.parametrize("names", [("train", "holdout"), ("dev",), ("train", "mine"), ("Test", "external")])
def test_an_array_of_no_split_is_refused_by_its_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", **{f"{name}_images": images for name in names})
    with pytest.raises(ValueError, match=f"arrays {names[-1]}_images: no split; expected one of train"):
        find_studies(str(tmp_path / "a.npz"), "npz")


def test_an_array_of_objects_is_called_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.array([{}, 2], dtype=object))
    with pytest.raises(ValueError, match=r"array train_images of Python objects; .*; save it again as an array"):
        find_studies(str(tmp_path / "a.npz"), "npz")


def test_an_array_of_its_own_name_alone_has_no_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mine_images=np.zeros((2, 4, 4), np.uint8))
    assert [study.split for study in find_studies(str(tmp_path), "npz")] == [None, None]


def test_a_class_s_column_may_hold_decimal_commas_and_one_bad_cell_is_its_row_s(tmp_path: Path) -> None:
    text = "file;Edema\n0.png;1,0\n1.png;nan\n2.png;Lovelace\n"
    found = studies_of(tmp_path, text, *PICTURES, label_columns=("Edema",))
    assert classes_of(found) == {"0.png": ((0,), ("Edema",)), "1.png": ((), ())}
    (said,) = faults_of(found).values()
    assert said.startswith("column Edema has a value of 8 letters")


@pytest.mark.parametrize(
    "path",
    ["im\\{}.png", ".\\im\\{}.PNG", "im//./{}.png", "C:\\data\\set\\im\\{}.png", "/home/ada/set/im/{}",
     "set/im/{}.png", "{}.png", "IM/{}"],
)  # fmt: skip
def test_a_path_is_found_whatever_its_slashes_and_the_folder_it_began_in(tmp_path: Path, path: str) -> None:
    text = "file,label\n" + "\n".join(f"{path.format(n)},{n}" for n in ("7", "8", "9"))
    found = studies_of(tmp_path, text, "im/7.png", "im/8.png")
    assert {study.key: Path(study.image[0]).name for study in found if study.fault is None} == {
        "im/7.png": "7.png",
        "im/8.png": "8.png",
    }
    assert faults_of(found) == {path.format("9"): "a row of the table without its image file"}


def test_a_name_that_two_files_have_is_a_fault_and_so_is_a_row_without_one(tmp_path: Path) -> None:
    text = "file,label\nx,0\ny.png,1\n,1\n,0\nz.npy,1\n"
    found = studies_of(tmp_path, text, "x.png", "x.jpg", "a/y.png", "b/y.png", "z.npy")
    assert faults_of(found) == {
        "x": "a row of the table whose name 2 files have",
        "y.png": "a row of the table whose name 2 files have",
        "row 3": "a row of the table without a file name",
        "row 4": "a row of the table without a file name",
        "z.npy": "a row of the table that names a file of a kind that is not read",
    }


def test_rows_of_one_image_are_one_study_and_contradicting_rows_its_fault(tmp_path: Path) -> None:
    text = "file,label,x,patient\n0.png,1,2,A\n0,1,9,A\n1.png,0,,B\n1.png,1,,B\n2.png,1,,C\n2.png,,,D\n3,1\n3,1\n"
    found = studies_of(tmp_path, text, *PICTURES)
    assert classes_of(found) == {"0.png": ((1,), ("1",))}
    assert faults_of(found) == {
        "1.png": "an image of 2 rows of the table with different classes",
        "2.png": "an image of 2 rows of the table with different patients or splits",
        "3": "a row of the table without its image file",
    }
    several = studies_of(tmp_path, text, *PICTURES, label_separator="|")
    assert classes_of(several)["1.png"] == ((0, 1), ("0", "1"))


def test_a_table_may_name_dicom_files_with_suffix_without_and_by_their_stem(tmp_path: Path) -> None:
    for name in ("id0.dcm", "id1", "id2.IMA"):
        write_film(tmp_path / name)
    found = studies_of(tmp_path, "file,label\nid0,0\nid1,1\nid2,0\nid3,1\n", "id3.png", modality="XR")
    assert [study.kind for study in found] == ["dicom", "dicom", "dicom", "picture"]
    assert {read_study(study).modality for study in found[:3]} == {"XR"}


def test_a_path_that_the_patient_pattern_does_not_match_is_that_row_s_fault(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,label\np1.png,0\nstray.png,1\n", "p1.png", "stray.png", patient_pattern=r"p\d")
    assert [study.patient for study in found] == ["p1", f"{tmp_path.name}/stray.png"]
    assert faults_of(found) == {"stray.png": "a path in which patient_pattern finds no patient"}
