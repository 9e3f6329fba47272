"""DeepLesion: stacks around key slices in HU, planes 2.5 mm apart, and boxes one plane thick."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.readers import read_study
from data.recipes import RECIPES
from data.recipes.apply import apply
from data.scan import Scan
from data.sources import SourceOptions, Study, find_studies, left_out_of, remarks
from data.sources.stack import Stack
from tests.boxed_folders import lesion, write_deeplesion, write_slices_of

NAME, SERIES = "000007_01_02_005.png", "000007_01_02"


def studies_of(folder: Path, *rows: dict[str, str]) -> list[Study]:
    write_deeplesion(folder / "DL_info.csv", rows or (lesion(NAME),))
    return find_studies(str(folder), "deeplesion")


def hu(folder: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(folder / "Images_png" / SERIES / f"{number:03d}.png")).astype(float) - 32768


def values(scan: Scan) -> np.ndarray:
    return scan.voxels[0] * scan.scale + scan.offset


def test_slices_of_5_mm_get_a_plane_between_each_two_and_the_key_slice_stays(tmp_path: Path) -> None:
    write_slices_of(tmp_path, SERIES, range(3, 9))
    (study,) = studies_of(tmp_path)
    assert (study.key, study.patient, study.split, study.kind) == (NAME, "7", "train", "stack")
    scan = read_study(study)
    slices = [hu(tmp_path, number) for number in (4, 5, 6, 7)]
    expected = [slices[0], (slices[0] + slices[1]) / 2, slices[1], (slices[1] + slices[2]) / 2, slices[2]]
    expected += [(slices[2] + slices[3]) / 2, slices[3]]
    np.testing.assert_allclose(values(scan), expected, atol=1e-2)
    assert scan.spacing_mm == (2.5, 0.9, 0.8)
    assert scan.boxes is not None
    # The key slice is the second of four: plane 2. Pixel centres 2 to 5 and 3 to 6, from 1 on, are borders 1.5 to 4.5
    # and 2.5 to 5.5, which go outwards.
    assert scan.boxes.corners.tolist() == [[[2, 2, 1], [3, 6, 5]]]
    assert scan.boxes.classes.tolist() == [0]
    assert [(box.number, box.name) for box in study.boxes or ()] == [(0, "lesion")]


@pytest.mark.parametrize(
    ("spacing", "key", "number", "places", "plane"),
    [
        (2.5, 2, 5, [0, 1, 2, 3, 4], 2),
        (1.0, 3, 8, [0.5, 3, 5.5], 1),
        (5.0, 1, 3, [0, 0.5, 1, 1.5, 2], 2),
        (3.0, 1, 3, [1 / 6, 1, 11 / 6], 1),
        (1.0, 0, 1, [0], 0),
        (2.0, 2, 4, [0.75, 2], 1),
    ],
)
def test_planes_lie_around_the_key_slice_and_between_the_first_and_the_last(
    spacing: float, key: int, number: int, places: list[float], plane: int
) -> None:
    stack = Stack((spacing, 1.0, 1.0), key, 2.5)
    np.testing.assert_allclose(stack.places(number), places, atol=1e-9)
    assert stack.key_plane == plane
    assert stack.places(number)[plane] == key


def test_all_lesions_of_a_key_slice_are_one_study_and_noisy_ones_are_left_out(tmp_path: Path) -> None:
    write_slices_of(tmp_path, SERIES, range(3, 9))
    noisy = lesion("000009_01_01_005.png", Possibly_noisy="1")
    further = lesion(NAME, (1, 1, 4, 4), Slice_range="3, 6")
    (study,) = studies_of(tmp_path, lesion(NAME), noisy, further)
    assert len(study.image) == 5
    scan = read_study(study)
    assert scan.boxes is not None
    assert scan.boxes.corners[:, :, 0].tolist() == [[4, 5], [4, 5]]
    said = remarks(str(tmp_path), "deeplesion", SourceOptions())
    assert said == ["boxes from the table: 2 lesions on 1 key slices; 1 possibly noisy rows are left out"]
    assert [one.kind for one in left_out_of(str(tmp_path), "deeplesion", [study])] == [".png"]


def test_a_recipe_keeps_the_planes_and_turns_the_box_with_the_image(tmp_path: Path) -> None:
    write_slices_of(tmp_path, SERIES, range(4, 8))
    (study,) = studies_of(tmp_path)
    scan = read_study(study)
    (stored,) = apply(RECIPES["ct_lesions"], scan)
    assert stored.size == (7, 8, 9)
    assert stored.boxes is not None
    # Slices run to the feet, rows to the back, columns to the left: all three turn.
    assert stored.boxes.corners.tolist() == [[[7 - 3, 8 - 6, 9 - 5], [7 - 2, 8 - 2, 9 - 1]]]
    shown = stored.voxels[0] * stored.scale * 2074 - 1024
    np.testing.assert_allclose(shown[::-1, ::-1, ::-1], values(scan), atol=0.05)


def test_a_split_and_a_patient_are_those_of_the_table(tmp_path: Path) -> None:
    write_slices_of(tmp_path, SERIES, range(4, 8))
    write_slices_of(tmp_path, "000011_01_01", range(4, 8))
    other = lesion("000011_01_01_005.png", Train_Val_Test="3")
    found = studies_of(tmp_path, lesion(NAME, Train_Val_Test="2"), other)
    assert [(study.patient, study.split) for study in found] == [("7", "val"), ("11", "test")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Bounding_boxes": "1, 2, 3"}, "row 1 of the table, column Bounding_boxes: another text"),
        ({"Bounding_boxes": "1, 2, 3, Jane"}, "row 1 of the table, column Bounding_boxes: another text"),
        ({"Slice_range": "6, 9"}, "column Slice_range: a range from 6 to 9 without the key slice 5"),
        ({"Slice_range": "4, nan"}, "column Slice_range: another text"),
        ({"Spacing_mm_px_": "0.8, 0.8, 0"}, "column Spacing_mm_px_: 0.8, 0.8, 0 mm"),
        ({"Key_slice_index": ""}, "column Key_slice_index: another text"),
        ({"Slice_range": "2, 6"}, "row 1 of the table, whose key slice lacks 2 of 5 slices"),
        (
            {"Spacing_mm_px_": "0.9, 0.9, 5"},
            "2 rows of one key slice (the first is row 1) with different Spacing_mm_px_",
        ),
        ({"Patient_index": "8"}, "2 rows of one key slice (the first is row 1) with different Patient_index"),
    ],
)
def test_a_row_of_another_form_is_the_fault_of_its_key_slice_by_row_and_column(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    write_slices_of(tmp_path, SERIES, range(4, 8))
    rows = [lesion(NAME, **changes), *([lesion(NAME)] if said.startswith("2 rows") else [])]
    write_slices_of(tmp_path, "000011_01_01", range(4, 8))
    bad, good = studies_of(tmp_path, *rows, lesion("000011_01_01_005.png"))
    assert bad.fault is not None
    assert said in bad.fault.found
    assert "Jane" not in str(bad.fault)
    assert good.fault is None


def test_slices_of_different_sizes_are_a_bad_study(tmp_path: Path) -> None:
    write_slices_of(tmp_path, SERIES, range(4, 7))
    write_slices_of(tmp_path, SERIES, [7], (8, 8))
    (study,) = studies_of(tmp_path)
    with pytest.raises(
        ValueError, match=r"slices of shapes \(1, 8, 8\), \(1, 8, 9\) \(C, H, W\); expected grey pictures"
    ):
        read_study(study)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "DL_info.csv").write_text("File_name,Patient_index\na,b\n")
    with pytest.raises(ValueError, match=r"2 columns but not Bounding_boxes, .* expected those of DL_info\.csv"):
        find_studies(str(tmp_path), "deeplesion")
