"""Pascal VOC's folders: boxes counted from 1 to the last pixel, difficult objects left out, splits by lists."""

from pathlib import Path

import pytest

from data.readers import read_study
from data.sources import SourceOptions, Study, find_studies, left_out_of, remarks
from tests.boxed_folders import Named, write_picture, write_voc

SIZE = (20, 30)


def write(folder: Path, stem: str, *objects: Named, difficult: tuple[Named, ...] = ()) -> None:
    write_picture(folder / "JPEGImages" / f"{stem}.png", SIZE, len(stem))
    write_voc(folder / "Annotations" / f"{stem}.xml", SIZE, objects, difficult)


def found_in(folder: Path) -> dict[str, Study]:
    return {study.key: study for study in find_studies(str(folder), "voc")}


def fault_of(study: Study) -> str:
    assert study.fault is not None
    return study.fault.found


def test_the_first_pixel_is_number_1_and_the_last_belongs_to_the_box(tmp_path: Path) -> None:
    write(tmp_path / "VOC2012", "a", ("dog", (1, 1, 30, 20)), ("cat", (3, 5, 3, 7)))
    write(tmp_path / "VOC2012", "b")
    write_picture(tmp_path / "VOC2012" / "JPEGImages" / "c.png", SIZE)
    found = found_in(tmp_path)
    boxes = read_study(found["VOC2012/JPEGImages/a.png"]).boxes
    assert boxes is not None
    assert boxes.corners.tolist() == [[[0, 0], [20, 30]], [[4, 2], [7, 3]]]
    named = found["VOC2012/JPEGImages/a.png"].boxes
    assert named is not None
    assert [(one.number, one.name) for one in named] == [(1, "dog"), (0, "cat")]
    assert found["VOC2012/JPEGImages/b.png"].boxes == ()
    assert found["VOC2012/JPEGImages/c.png"].boxes is None
    assert left_out_of(str(tmp_path), "voc", list(found.values())) == []


def test_difficult_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a", ("dog", (1, 1, 5, 5)), difficult=(("cat", (2, 2, 3, 3)),))
    boxes = found_in(tmp_path)["JPEGImages/a.png"].boxes
    assert boxes is not None
    assert [(one.number, one.name) for one in boxes] == [(0, "dog")]
    said = remarks(str(tmp_path), "voc", SourceOptions())
    assert said[0] == "boxes from 1 XML files: 1 boxes of 1 classes; 1 difficult objects are left out"


def test_lists_beside_the_images_are_splits(tmp_path: Path) -> None:
    for stem in "abc":
        write(tmp_path, stem)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n\n")
    (lists / "val.txt").write_text("b  1\n")
    (lists / "dog_train.txt").write_text("c 1\n")
    assert {key: study.split for key, study in found_in(tmp_path).items()} == {
        "JPEGImages/a.png": "train",
        "JPEGImages/b.png": "val",
        "JPEGImages/c.png": None,
    }
    (lists / "test.txt").write_text("a\n")
    with pytest.raises(
        ValueError, match=r"ImageSets/Main: .*\.txt and .*\.txt name one image \(not shown\); expected one"
    ):
        found_in(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "an annotation that is no XML (line 1)"),
        ("<annotation>\n<object></annotation>", "an annotation that is no XML (line 2)"),
        ("", "an annotation that is no XML (line 1)"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "an XML file with a document type"),
        (
            "<annotation><object><name>x</name></object></annotation>",
            "object 1 of the XML file without a name or a box",
        ),
    ],
)
def test_a_broken_xml_file_is_the_fault_of_its_image_alone(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, "a", ("dog", (1, 1, 5, 5)))
    write(tmp_path, "b")
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    found = found_in(tmp_path)
    assert fault_of(found["JPEGImages/a.png"]) == said
    assert found["JPEGImages/b.png"].fault is None


@pytest.mark.parametrize("box", [(5, 1, 4, 9), (1, 9, 5, 8), ("x", 1, 2, 2), ("nan", 1, 2, 2)])
def test_an_object_whose_corners_are_none_is_named_by_its_number(tmp_path: Path, box: tuple) -> None:
    write(tmp_path, "a", ("dog", (1, 1, 5, 5)), ("cat", box))
    assert fault_of(found_in(tmp_path)["JPEGImages/a.png"]) == "object 2 of the XML file without a name or a box"


def test_xml_files_without_a_picture_or_with_several_are_bad_studies(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write_voc(tmp_path / "Annotations" / "b.xml", SIZE, [])
    write_picture(tmp_path / "JPEGImages" / "a.jpg", SIZE)
    found = found_in(tmp_path)
    assert fault_of(found["Annotations/b.xml"]) == "an XML file without its image"
    (twice,) = (study for key, study in found.items() if key.startswith("JPEGImages/a."))
    assert fault_of(twice) == "an XML file whose name several pictures have"


def test_a_picture_of_another_size_than_its_xml_file_says_is_a_bad_study(tmp_path: Path) -> None:
    write(tmp_path, "a", ("dog", (1, 1, 5, 5)))
    write_picture(tmp_path / "JPEGImages" / "a.png", (30, 20))
    with pytest.raises(ValueError, match=r"an image of 30 x 20 pixels, whose boxes are for 20 x 30"):
        read_study(found_in(tmp_path)["JPEGImages/a.png"])
