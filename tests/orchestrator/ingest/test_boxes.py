"""Boxes from the command line into shards: each layout that has some, label maps, and no names anywhere."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from data.labels import BOXES
from data.shards.check import describe, verify
from data.shards.index import ShardSet
from orchestrator.cli import main
from tests.boxed_folders import (
    lesion,
    write_coco,
    write_deeplesion,
    write_picture,
    write_slices_of,
    write_voc,
)

pytestmark = pytest.mark.usefixtures("without_ray")
PICTURES = ["--recipe", "natural", "--modality", "NATURAL"]
VINDR = ["--image-column", "image_id", "--label-column", "class_name", "--no-class", "No finding"]
AS_STORED = ["--set", "spacing_mm=null", "--set", "crop_above=null", "--set", "min_slices=1"]


def coco(folder: Path) -> list[str]:
    sizes = {f"jane doe {number}.png": (24, 32) for number in range(4)}
    for number, name in enumerate(sizes):
        write_picture(folder / "pictures" / name, (24, 32), number)
    boxes = [{"image_id": 10 * n, "category_id": 10 * (n % 2), "bbox": [n, 2, 8, 4]} for n in range(3)]
    write_coco(folder / "train.json", sizes, ["mass", "nodule"], boxes)
    return ["--layout", "coco", *PICTURES]


def voc(folder: Path) -> list[str]:
    for number in range(4):
        write_picture(folder / "JPEGImages" / f"jane doe {number}.png", (24, 32), number)
        objects = [("mass", (number + 1, 3, number + 8, 6))] if number < 3 else []
        write_voc(folder / "Annotations" / f"jane doe {number}.xml", (24, 32), objects)
    return ["--layout", "voc", *PICTURES]


def rows(folder: Path) -> list[str]:
    lines = ["image_id,class_name,x_min,y_min,x_max,y_max"]
    for number in range(4):
        write_picture(folder / f"jane doe {number}.png", (24, 32), number)
        found = f"mass,{number},2,{number + 8},6" if number < 3 else "No finding,,,,"
        lines.append(f"jane doe {number},{found}")
    (folder / "table.csv").write_text("\n".join(lines))
    return ["--layout", "csv", *PICTURES, *VINDR]


def lesions(folder: Path) -> list[str]:
    names = [f"{number:06d}_01_01_005.png" for number in range(4)]
    for number, name in enumerate(names):
        write_slices_of(folder, name.removesuffix("_005.png"), range(4 + number % 2, 8))
    write_deeplesion(folder / "DL_info.csv", [lesion(name, Slice_range="5, 7") for name in names])
    return ["--layout", "deeplesion", "--recipe", "ct_lesions"]


LABELLED = ["--layout", "volumes", "--recipe", "ct_volume", "--modality", "CT", "--label-suffix", "_seg"]
LABELLED += ["--label-names", "{2: tumour}", "--boxes", "volumes", *AS_STORED]


def label_maps(folder: Path) -> list[str]:
    for number in range(4):
        rng = np.random.default_rng(number)
        voxels, label = rng.integers(-900, 900, (6, 8, 9)).astype(np.int16), np.zeros((6, 8, 9), np.uint8)
        if number < 3:
            label[1:3, 2:6, number : number + 4] = 2
            label[5, 7, 8] = 1
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"jane doe {number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"jane doe {number}_seg.nii.gz")
    return [*LABELLED, "--box-min-voxels", "2"]


KINDS = {"coco": coco, "voc": voc, "rows": rows, "lesions": lesions, "label maps": label_maps}
# Names of classes, and how many samples have how many boxes of each.
HELD = {
    "coco": "0 mass (2), 1 nodule (1)",
    "voc": "0 mass (3)",
    "rows": "0 mass (3)",
    "lesions": "0 lesion (4)",
    "label maps": "1 label 1 (0), 2 tumour (3)",
}
# Low and high corner of each sample's boxes, (y, x) or (z, y, x).
IN_ROWS = [[], [2, 0, 6, 8], [2, 1, 6, 9], [2, 2, 6, 10]]
CORNERS = {
    "coco": IN_ROWS,
    "voc": IN_ROWS,
    "rows": IN_ROWS,
    # Of 5 planes, the last as stored is the key slice, whose box is turned with the image.
    "lesions": [[4, 2, 4, 5, 6, 8]] * 4,
    # Turned from NIfTI's order of axes.
    "label maps": [[], [0, 2, 1, 4, 6, 3], [1, 2, 1, 5, 6, 3], [2, 2, 1, 6, 6, 3]],
}


def ingested(folder: Path, kind: str, *further: str) -> tuple[list[str], ShardSet]:
    (folder / "in").mkdir()
    asked = KINDS[kind](folder / "in")
    out = folder / "shards"
    assert main(["ingest", "--source", str(folder / "in"), "--out", str(out), *asked, *further]) == 0
    return asked, ShardSet.open(str(out))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_a_source_are_in_the_shards_and_shown(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, shards = ingested(tmp_path, kind)
    said = capsys.readouterr()
    assert list(verify(shards.uri)) == []
    assert shards.num_samples == shards.select(having=BOXES).num_samples == 4
    assert dict(describe(shards))["boxes"] == HELD[kind]
    assert sorted(shards.rows["boxes"].to_pylist()) == CORNERS[kind]
    for file in (tmp_path / "shards").rglob("*"):
        assert not file.is_file() or b"jane" not in file.read_bytes().lower()
    assert "jane" not in (said.out + said.err).lower()
    assert main(["shards", "show", shards.uri]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"boxes {HELD[kind]}" in shown
    assert "with known boxes" in shown
    again = ["ingest", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "shards"), *asked]
    assert main(again) == 0
    assert "nothing was changed" in capsys.readouterr().out


@pytest.mark.slow
def test_boxes_are_made_of_the_chosen_labels_alone_and_only_these_name_classes(tmp_path: Path) -> None:
    """The one voxel of label 1 would be a box, if it were asked for and large enough."""
    _, tumours = ingested(tmp_path, "label maps", "--box-labels", "2")
    assert dict(describe(tumours))["boxes"] == "2 tumour (3)"
    assert sorted(tumours.rows["boxes"].to_pylist()) == CORNERS["label maps"]
    asked = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "others"), *LABELLED, "--box-labels", "1"]
    assert main(["ingest", *asked]) == 0
    others = ShardSet.open(str(tmp_path / "others"))
    assert dict(describe(others))["boxes"] == "1 label 1 (3)"


def test_a_changed_box_is_read_again_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, before = ingested(tmp_path, "voc")
    path = tmp_path / "in" / "Annotations" / "jane doe 1.xml"
    path.write_text(path.read_text().replace("<xmin>2<", "<xmin>3<"))
    capsys.readouterr()
    assert main(["ingest", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "shards"), *asked]) == 0
    assert "1 studies read (0 new, 1 changed, 0 quarantined before), 3 kept" in capsys.readouterr().out
    after = ShardSet.open(str(tmp_path / "shards"))
    changed = [[2, 2, 6, 9] if corners == [2, 1, 6, 9] else corners for corners in before.rows["boxes"].to_pylist()]
    assert sorted(after.rows["boxes"].to_pylist()) == sorted(changed) != sorted(before.rows["boxes"].to_pylist())


def test_a_bad_annotation_is_quarantined_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    asked = coco(tmp_path / "in")
    text = (tmp_path / "in" / "train.json").read_text()
    (tmp_path / "in" / "train.json").write_text(text.replace("[1, 2, 8, 4]", "[1, 2, 0, 4]"))
    more = ["--out", str(tmp_path / "shards"), "--max-bad", "0.5"]
    assert main(["ingest", "--source", str(tmp_path / "in"), *asked, *more]) == 0
    quarantined = (tmp_path / "shards" / "quarantine.jsonl").read_text()
    assert "annotations[1] of the JSON file without a box" in quarantined
    assert "jane" not in quarantined


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--boxes", "planes"],
            "option boxes means nothing to layout coco; expected layout volumes or nnunet or dicom",
        ),
        (["--box-min-voxels", "3"], "box_min_voxels 3 without boxes: no boxes would be made"),
        (["--box-labels", "3"], "box_labels [3] without boxes: no boxes would be made"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    asked = coco(tmp_path / "in")
    source = ["ingest", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "shards")]
    assert main([*source, *asked, *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def config_with(folder: Path, first: str, second: str) -> list[Any]:
    """Write two sources; return the command that ingests both."""
    for name in (first, second):
        (folder / name).mkdir()
    also = KINDS[second](folder / second)
    asked = KINDS[first](folder / first)
    layout = also[also.index("--layout") + 1]
    options = {"modality": "NATURAL"}
    text = f"also: [{{source: '{folder / second}', layout: {layout}, options: {options}}}]"
    (folder / "ingest.yaml").write_text(text)
    config = ["--config", str(folder / "ingest.yaml"), "--out", str(folder / "shards")]
    return ["ingest", "--source", str(folder / first), *asked, *config]


def test_sources_whose_classes_have_other_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def renamed(folder: Path) -> list[str]:
        asked = voc(folder)
        for path in (folder / "Annotations").iterdir():
            path.write_text(path.read_text().replace("<name>mass<", "<name>effusion<"))
        return asked

    KINDS["renamed"] = renamed
    try:
        assert main(config_with(tmp_path, "coco", "renamed")) == 2
    finally:
        del KINDS["renamed"]
    assert "class 0 of boxes is 'mass' in one and 'effusion' in another" in " ".join(capsys.readouterr().err.split())
