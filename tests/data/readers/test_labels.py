"""Classes of images from a table: one or several in a column, or a column for each."""

from pathlib import Path

import pytest

from data.sources import SourceOptions, Study, find_studies


def studies_of(folder: Path, heading: str, *lines: str, **options) -> list[Study]:
    """Write a table and its image files, and find them."""
    for line in lines:
        (folder / line.split(",")[0]).touch()
    (folder / "t.csv").write_text("\n".join([heading, *lines]))
    return find_studies(str(folder), "csv", SourceOptions.model_validate(options))


def classes_of(studies: list[Study]) -> dict[str, tuple]:
    return {study.key: (study.classes, study.class_names) for study in studies}


def test_a_column_of_several_labels_is_split_at_the_separator_and_numbered_in_order(tmp_path: Path) -> None:
    lines = ("1.png,Effusion|Mass", "2.png,No Finding", "3.png,Cardiomegaly", "4.png,", "5.png,Mass | Effusion|Mass")
    found = studies_of(tmp_path, "file,label", *lines, label_separator="|", no_class="No Finding")
    assert classes_of(found) == {
        "1.png": ((1, 2), ("Effusion", "Mass")),
        "2.png": ((), ()),
        "3.png": ((0,), ("Cardiomegaly",)),
        "4.png": (None, ()),
        "5.png": ((2, 1), ("Mass", "Effusion")),
    }


def test_without_a_separator_the_whole_text_is_one_class(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,label", "1.png,Effusion|Mass", "2.png,10", "3.png,")
    assert classes_of(found) == {"1.png": ((1,), ("Effusion|Mass",)), "2.png": ((0,), ("10",)), "3.png": (None, ())}


def test_whole_numbers_are_class_numbers_even_where_one_is_missing(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,label", "1.png,4", "2.png,0;2", label_separator=";")
    assert classes_of(found) == {"1.png": ((4,), ("4",)), "2.png": ((0, 2), ("0", "2"))}


COLUMNS = ("1.png,1.0,,0.0", "2.png,-1.0,1.0,", "3.png,,,", "4.png,0,1,1")


@pytest.mark.parametrize(
    ("uncertain", "second"),
    [
        ("negative", ((1,), ("Edema",))),
        ("positive", ((0, 1), ("Cardiomegaly", "Edema"))),
        ("unlabelled", (None, ())),
    ],
)
def test_columns_of_0_and_1_are_a_class_each_and_blanks_say_no(tmp_path: Path, uncertain: str, second: tuple) -> None:
    names = ("Cardiomegaly", "Edema", "Mass")
    heading = f"file,{','.join(names)}"
    found = studies_of(tmp_path, heading, *COLUMNS, label_columns=names, uncertain=uncertain)
    assert classes_of(found) == {
        "1.png": ((0,), ("Cardiomegaly",)),
        "2.png": second,
        "3.png": ((), ()),
        "4.png": ((1, 2), ("Edema", "Mass")),
    }


def test_classes_are_numbered_as_their_columns_are_given(tmp_path: Path) -> None:
    found = studies_of(tmp_path, "file,a,b", "1.png,1,0", "2.png,0,1", label_columns=("b", "a"))
    assert classes_of(found) == {"1.png": ((1,), ("a",)), "2.png": ((0,), ("b",))}


def test_a_column_of_other_values_is_refused_without_saying_them(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"column who has a value of 8 letters .*expected 1, 0, -1 or blank"
    ) as caught:
        studies_of(tmp_path, "file,who", "1.png,Lovelace", label_columns=("who",))
    assert "Lovelace" not in str(caught.value)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the table has 2 columns but not Mass; .*set image_column, label_column or"
    ):
        studies_of(tmp_path, "file,Edema", "1.png,1", label_columns=("Edema", "Mass"))


def test_two_kinds_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label_columns a, b with label_separator '\|'.*give one kind of labels"):
        SourceOptions(label_columns=("a", "b"), label_separator="|")
