"""Tables with a row per box: VinDr's, RSNA's and NIH's columns, known absences, and faults by row."""

from pathlib import Path
from typing import Any

import pytest

from data.readers import read_study
from data.sources import SourceOptions, Study, find_studies, remarks
from tests.boxed_folders import write_picture

VINDR = {"image_column": "image_id", "label_column": "class_name", "no_class": "No finding"}
RSNA = {"image_column": "patientId", "label_column": "Target"}


def studies_of(folder: Path, text: str, **options: Any) -> dict[str, Study]:
    for number, name in enumerate("abc"):
        write_picture(folder / f"{name}.png", (20, 30), number)
    (folder / "t.csv").write_text(text)
    found = find_studies(str(folder), "csv", SourceOptions.model_validate(options))
    return {study.key: study for study in found}


def corners_of(study: Study) -> list[tuple[int, list[list[int]]]]:
    boxes = read_study(study).boxes
    assert boxes is not None
    return list(zip(boxes.classes.tolist(), boxes.corners.tolist(), strict=True))


def test_rows_as_vindr_s_are_the_boxes_of_their_image_and_no_finding_is_known_to_have_none(tmp_path: Path) -> None:
    text = (
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,Nodule/Mass,8,R9,3.0,5,12,9\na,Cardiomegaly,3,R9,0,1,30,20\na,Nodule/Mass,8,R8,4,5,12,9\n"
        "b,No finding,14,R9,,,,\nb,No finding,14,R8,NaN,NaN,NaN,NaN\n"
    )
    found = studies_of(tmp_path, text, **VINDR)
    boxes = [(1, [[5, 3], [9, 12]]), (0, [[1, 0], [20, 30]]), (1, [[5, 4], [9, 12]])]
    assert corners_of(found["a.png"]) == boxes
    assert corners_of(found["b.png"]) == []
    assert (set(found["a.png"].class_names), found["b.png"].classes) == ({"Nodule/Mass", "Cardiomegaly"}, ())
    (said,) = remarks(str(tmp_path), "csv", SourceOptions.model_validate(VINDR))
    assert "classes from class_name; boxes from x_min, y_min, x_max, y_max; patients from none" in said


def test_rows_as_rsna_s_have_a_width_and_a_height_and_a_target_of_0_has_no_box(tmp_path: Path) -> None:
    text = "patientId,x,y,width,height,Target\na,1.0,2,5,6,1\na,9,8,4,4,1\nb,,,,,0\n"
    found = studies_of(tmp_path, text, **RSNA)
    assert corners_of(found["a.png"]) == [(0, [[2, 1], [8, 6]]), (0, [[8, 9], [12, 13]])]
    assert (found["a.png"].boxes or ())[0].name == "1"
    assert (found["b.png"].boxes, found["b.png"].classes) == ((), (0,))


def test_nih_s_broken_heading_is_known(tmp_path: Path) -> None:
    text = "Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,1,2,5,6,,,\n"
    found = studies_of(tmp_path, text, image_column="Image Index", label_column="Finding Label")
    assert corners_of(found["a.png"]) == [(0, [[2, 1], [8, 6]])]


def test_columns_may_be_named_or_left_alone(tmp_path: Path) -> None:
    text = "file,label,left,top,right,bottom,x,y,w,h\na.png,m,1,2,6,8,0,0,3,3\n"
    named = studies_of(tmp_path, text, box_columns=["left", "TOP", "right", "bottom"])
    assert corners_of(named["a.png"]) == [(0, [[2, 1], [8, 6]])]
    assert corners_of(studies_of(tmp_path, text)["a.png"]) == [(0, [[0, 0], [3, 3]])]
    assert studies_of(tmp_path, text, box_columns=[""])["a.png"].boxes is None
    for wrong, said in (
        (["left", "top"], r"box_columns left, top: 2; expected four columns"),
        (["left", "top", "right", "low"], r"box_columns .*: no column low; expected four columns of the table"),
    ):
        with pytest.raises(ValueError, match=said):
            studies_of(tmp_path, text, box_columns=wrong)


def test_a_table_without_boxes_says_nothing_of_them(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,label,x,y,width\na.png,m,1,2,3\n")
    assert found["a.png"].boxes is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.png,m,1,2,,8", "a row whose columns x_min, y_min, x_max, y_max hold cells that are no four numbers"),
        ("a.png,m,1,2,Jane,8", "a row whose columns x_min, y_min, x_max, y_max hold cells that are no four numbers"),
        ("a.png,m,6,2,6,8", "a row whose columns x_min, y_min, x_max, y_max hold a box from (6, 2) to (6, 8)"),
        ("a.png,m,1,2,inf,8", "a row whose columns x_min, y_min, x_max, y_max hold a box from (1, 2) to (inf, 8)"),
        ("a.png,,1,2,6,8", "a row with a box and without a class"),
    ],
)
def test_a_row_without_a_whole_box_is_the_fault_of_its_image_alone(tmp_path: Path, row: str, said: str) -> None:
    found = studies_of(tmp_path, f"file,label,x_min,y_min,x_max,y_max\n{row}\na.png,m,1,2,6,8\nb.png,m,1,2,6,8\n")
    fault = found["a.png"].fault
    assert fault is not None
    assert fault.found.startswith(said)
    assert "Jane" not in str(fault)
    assert corners_of(found["b.png"]) == [(0, [[2, 1], [8, 6]])]


def test_a_decimal_comma_in_a_quoted_cell_is_a_decimal(tmp_path: Path) -> None:
    found = studies_of(tmp_path, 'file;label;x1;y1;x2;y2\na.png;m;"1,2";2;6;"7,9"\n')
    assert corners_of(found["a.png"]) == [(0, [[2, 1], [8, 6]])]
