"""COCO's descriptions: boxes with classes from 0 on, crowds left out, splits by name, and faults by entry."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.readers import read_study
from data.sources import SourceOptions, Study, find_studies, left_out_of, remarks
from tests.boxed_folders import write_coco, write_picture

SIZES = {"a.png": (20, 30), "b.png": (20, 30)}
CLASSES = ["mass", "nodule"]


def box(image: int, category: int, *bbox: Any, **fields: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": 10 * image, "category_id": 10 * category, "bbox": list(bbox), **fields}


def studies_of(folder: Path, *annotations: dict[str, Any], **options: Any) -> dict[str, Study]:
    """Describe two images; return the studies by name."""
    for number, (name, size) in enumerate(SIZES.items()):
        write_picture(folder / "images" / name, size, number)
    write_coco(folder / "instances.json", SIZES, CLASSES, annotations)
    found = find_studies(str(folder), "coco", SourceOptions.model_validate(options))
    return {study.key.rpartition("/")[2]: study for study in found}


def corners_of(study: Study) -> list[tuple[int, list[list[int]]]]:
    """Return the class and the corners of each box on the image that was read."""
    boxes = read_study(study).boxes
    assert boxes is not None
    return list(zip(boxes.classes.tolist(), boxes.corners.tolist(), strict=True))


def test_boxes_are_rows_and_columns_of_whole_pixels_and_an_image_without_has_none(tmp_path: Path) -> None:
    found = studies_of(tmp_path, box(0, 1, 2, 3, 10, 5), box(0, 0, 0.4, 0.6, 1.2, 19.4))
    # x 0.4 to 1.6 goes to the borders 0 and 2; y 0.6 to 20.0 to 1 and 20.
    assert corners_of(found["a.png"]) == [(1, [[3, 2], [8, 12]]), (0, [[1, 0], [20, 2]])]
    assert corners_of(found["b.png"]) == []
    boxes = found["a.png"].boxes
    assert boxes is not None
    assert [one.name for one in boxes] == ["nodule", "mass"]
    assert found["a.png"].kind == "picture"
    assert found["a.png"].key == "images/a.png"


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ((2.5, 0, 3, 4), [[0, 2], [4, 6]]),  # borders half-way go outwards: 2.5 to 2, 5.5 to 6
        ((2.49, 0, 0.02, 4), [[0, 2], [4, 3]]),  # thinner than a pixel: the one that it lies in
        ((-3, -2, 10, 30), [[0, 0], [20, 7]]),  # what exceeds the image is cut off
    ],
)
def test_borders_are_rounded_as_stated(tmp_path: Path, bbox: tuple[float, ...], expected: list[list[int]]) -> None:
    assert corners_of(studies_of(tmp_path, box(0, 0, *bbox))["a.png"]) == [(0, expected)]


def test_crowds_are_left_out_and_counted(tmp_path: Path) -> None:
    found = studies_of(tmp_path, box(0, 0, 2, 3, 10, 5), box(0, 0, 0, 0, 30, 20, iscrowd=1))
    assert corners_of(found["a.png"]) == [(0, [[3, 2], [8, 12]])]
    said = remarks(str(tmp_path), "coco", SourceOptions())
    assert said[0] == ("boxes from 1 JSON files: 1 boxes of 2 classes; 1 boxes of crowds (iscrowd) are left out")
    assert said[1].startswith("each study counts as a patient of its own")


def test_the_folder_of_annotations_has_a_file_per_split_and_may_be_named_itself(tmp_path: Path) -> None:
    for split, name in (("train", "a.png"), ("val", "b.png")):
        write_picture(tmp_path / f"{split}2017" / name, (20, 30))
        write_coco(tmp_path / f"annotations/instances_{split}2017.json", {name: (20, 30)}, CLASSES, [])
    (tmp_path / "annotations" / "captions_val2017.json").write_text('{"images": [], "annotations": []}')
    found = find_studies(str(tmp_path), "coco")
    assert {study.key: study.split for study in found} == {"train2017/a.png": "train", "val2017/b.png": "val"}
    table = tmp_path / "annotations" / "instances_val2017.json"
    assert [study.key for study in find_studies(str(table), "coco")] == ["val2017/b.png"]
    assert [one.kind for one in left_out_of(str(tmp_path), "coco", found)] == [".json"]
    assert left_out_of(str(tmp_path), "coco", found)[0].count == 1


def test_an_image_of_another_size_than_its_description_is_a_bad_study(tmp_path: Path) -> None:
    found = studies_of(tmp_path, box(0, 0, 2, 3, 10, 5))
    write_picture(tmp_path / "images" / "a.png", (30, 20))
    with pytest.raises(
        ValueError, match=r"an image of 30 x 20 pixels, whose boxes are for 20 x 30; expected the image"
    ):
        read_study(found["a.png"])


def test_a_picture_that_its_orientation_tag_turns_has_no_certain_boxes(tmp_path: Path) -> None:
    found = studies_of(tmp_path, box(0, 0, 2, 3, 10, 5))
    path = tmp_path / "images" / "a.png"
    with Image.open(path) as image:
        image.getexif()[0x0112] = 3
        image.save(path, exif=image.getexif())
    with pytest.raises(
        ValueError, match=r"a picture with boxes and an orientation tag that turns it; expected a picture"
    ):
        read_study(found["a.png"])


def test_a_box_outside_of_its_image_is_a_bad_study_by_its_number(tmp_path: Path) -> None:
    found = studies_of(tmp_path, box(0, 0, 2, 3, 10, 5), box(0, 0, 30, 3, 10, 5))
    with pytest.raises(
        ValueError, match=r"box 2 of 2 from \(3, 30\) to \(8, 40\); expected a box in the image of 20 x 30"
    ):
        read_study(found["a.png"])


@pytest.mark.parametrize(
    "bbox", [[1, 2, 3], [1, 2, 0, 4], [1, 2, 3, -1], ["1", 2, 3, 4], [1, float("nan"), 3, 4], None]
)
def test_an_annotation_without_a_box_is_the_fault_of_its_image_alone(tmp_path: Path, bbox: Any) -> None:
    found = studies_of(tmp_path, box(1, 0, 2, 3, 10, 5), {"image_id": 0, "category_id": 0, "bbox": bbox})
    fault = found["a.png"].fault
    assert fault is not None
    assert fault.found == "annotations[1] of the JSON file without a box"
    assert found["b.png"].fault is None


def test_an_image_whose_file_is_missing_is_a_bad_study(tmp_path: Path) -> None:
    studies_of(tmp_path)
    (tmp_path / "images" / "b.png").unlink()
    found = find_studies(str(tmp_path), "coco")
    assert [study.fault and study.fault.found for study in found] == [
        None,
        "an image of a JSON file without its picture",
    ]


def change(folder: Path, **parts: Any) -> None:
    path = folder / "instances.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"annotations": [box(5, 0, 1, 1, 2, 2)]},
            r"instances\.json: annotations\[0\]: an image_id that images lacks",
        ),
        ({"annotations": [box(0, 5, 1, 1, 2, 2)]}, r"annotations\[0\]: a category_id that categories lacks"),
        ({"annotations": [3]}, r"annotations\[0\]: no image_id; expected a number or a text; add it"),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, r"images\[0\]: no height; expected a number"),
        (
            {"images": [{"id": 1, "file_name": 3, "height": 2, "width": 2}]},
            r"images\[0\]: file_name, height or width of",
        ),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, r"images: two entries with one id"),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
            r"categories: an id or a name that two have",
        ),
        ({"categories": [{"id": 1}]}, r"categories\[0\]: no name"),
        (
            {"categories": {}},
            r"1 JSON files, none of which has images, annotations, categories; expected COCO's form",
        ),
    ],
)
def test_what_is_no_description_is_refused_by_its_entry(tmp_path: Path, parts: dict[str, Any], said: str) -> None:
    studies_of(tmp_path)
    change(tmp_path, **parts)
    with pytest.raises(ValueError, match=said):
        find_studies(str(tmp_path), "coco")


def test_broken_json_and_descriptions_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    studies_of(tmp_path)
    write_coco(tmp_path / "other.json", {"c.png": (4, 4)}, ["mass"], [])
    with pytest.raises(
        ValueError, match=r"2 JSON files with 2 different lists of categories; expected the same in all"
    ):
        find_studies(str(tmp_path), "coco")
    write_coco(tmp_path / "other.json", {"a.png": (20, 30)}, CLASSES, [])
    with pytest.raises(
        ValueError, match=r"1 images are listed more than once in instances\.json, other\.json; expected"
    ):
        find_studies(str(tmp_path), "coco")
    (tmp_path / "other.json").write_text('{"images": [,]}')
    with pytest.raises(ValueError, match=r"other\.json: not JSON \(line 1, column 13: .*\); expected COCO's form"):
        find_studies(str(tmp_path), "coco")
    (tmp_path / "other.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"other\.json: not JSON in UTF-8"):
        find_studies(str(tmp_path), "coco")
