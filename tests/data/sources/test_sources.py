"""Sources: layouts -> studies, labels paired, patients and splits named; local and remote alike."""

import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files import shown
from data.quarantine import BadStudy
from data.readers import content_digest, read_study
from data.sources import LAYOUTS, SourceOptions, Study, find_studies, label_names, left_out_of, remarks
from data.sources.pairing import Pattern
from tests.boxed_folders import lesion, write_coco, write_deeplesion, write_voc


def tree(root: Path, *paths: str) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return str(root)


def pairs(studies: list[Study]) -> dict[str, str | None]:
    return {study.key: study.label and Path(study.label).name for study in studies if study.fault is None}


def test_images_and_labels_are_paired_by_what_their_wildcards_stand_for(tmp_path: Path) -> None:
    source = tree(
        tmp_path, "P1/CT_image_ds.nii.gz", "P1/CT_mask_ds.nii.gz", "P2/CT_image.nii.gz", "P2/MR_image.nii.gz"
    )
    options = SourceOptions(images="*/CT_image*.nii.gz", labels="*/CT_mask*.nii.gz", patient_pattern=r"P\d")
    studies = find_studies(source, "volumes", options)
    assert pairs(studies) == {"P1/CT_image_ds.nii.gz": "CT_mask_ds.nii.gz", "P2/CT_image.nii.gz": None}
    assert [study.patient for study in studies] == ["P1", "P2"]


def test_one_label_serves_all_images_of_a_folder(tmp_path: Path) -> None:
    source = tree(tmp_path, "a/T1.nii", "a/T2.nii", "a/lesions.nii", "b/T1.nii")
    options = SourceOptions(images="*/*.nii", labels="*/lesions.nii")
    assert pairs(find_studies(source, "volumes", options)) == {
        "a/T1.nii": "lesions.nii",
        "a/T2.nii": "lesions.nii",
        "b/T1.nii": None,
    }


def test_a_label_suffix_pairs_files_and_names_labels_without_an_image(tmp_path: Path) -> None:
    source = tree(tmp_path, "x.nii.gz", "x_seg.nrrd", "deep/y.NII", "deep/y_seg.NII", "z_seg.nii", "._x.nii", "r.txt")
    studies = find_studies(source, "volumes", SourceOptions(label_suffix="_seg"))
    assert pairs(studies) == {"deep/y.NII": "y_seg.NII", "x.nii.gz": "x_seg.nrrd"}
    (orphan,) = [study for study in studies if study.fault is not None]
    assert orphan.key == "z_seg.nii"
    with pytest.raises(BadStudy, match=r"a label without an image; expected an image .*add the image"):
        read_study(orphan)


def test_alternatives_in_braces_are_a_wildcard(tmp_path: Path) -> None:
    source = tree(tmp_path, "ct.nii", "ct_sm.nii", "ct_labels.nii", "ct_sm_labels.nii", "ct_bones_labels.nii")
    options = SourceOptions(images="{ct,ct_sm}.nii", labels="{ct,ct_sm}_labels.nii")
    studies = find_studies(source, "volumes", options)
    assert pairs(studies) == {"ct.nii": "ct_labels.nii", "ct_sm.nii": "ct_sm_labels.nii"}
    assert len(studies) == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab/._", max_size=6), min_size=2, max_size=2))
def test_a_pattern_filled_with_what_it_matched_is_the_path_itself(parts: list[str]) -> None:
    path = f"{parts[0]}_image{parts[1]}.nii"
    for text in ("**/*_image*.nii", "*_image*.nii", "*/*_image?.nii"):
        values = Pattern(text).match(path)
        assert values is None or Pattern(text).fill(values) == path


def test_what_names_or_folders_call_a_label_map_is_no_image_unless_options_say_so(tmp_path: Path) -> None:
    source = tree(tmp_path, "x.nii.gz", "X_Seg.nrrd", "y_mask.nii", "masks/z.nii", "CT/z.nii", "deep/seg.nii")
    tree(tmp_path, "p1_t1.nii.gz", "p1_seg.nii.gz")
    maps = {study.key for study in find_studies(source, "volumes") if study.fault is not None}
    assert maps == {"X_Seg.nrrd", "masks/z.nii", "p1_seg.nii.gz"}
    with pytest.raises(BadStudy, match=r"a label map \(by its name or folder\) .*; pair it by --label-suffix or"):
        read_study(next(study for study in find_studies(source, "volumes") if study.fault))
    taken = find_studies(source, "volumes", SourceOptions(images="**/*"))
    assert [study.fault for study in taken] == [None] * 8


def test_a_folder_of_another_layout_is_refused_with_the_layout_that_reads_it(tmp_path: Path) -> None:
    source = tree(tmp_path, "imagesTr/a_0000.png", "imagesTr/b_0000.png", "labelsTr/a.png", "d.zip")
    named = r"3 \.png \(ingest it by --layout class_folders or csv, without the labels .*\); 1 \.zip"
    message = rf"0 studies in layout 'nnunet'.*it holds {named}"
    with pytest.raises(ValueError, match=message):
        find_studies(source, "nnunet")


LINKED = ("volumes", "dicom", "class_folders", "nnunet")


@pytest.mark.parametrize("layout", LINKED)
def test_no_folder_is_visited_twice_and_broken_links_are_reported_once(tmp_path: Path, layout: str) -> None:
    source = tree(tmp_path / "s", "imagesTr/P0/a.nii", "imagesTr/P0/a.dcm", "imagesTr/b.nii")
    tree(tmp_path / "elsewhere", "c.nii", "c.dcm")
    (tmp_path / "s/imagesTr/P0/up").symlink_to(tmp_path / "s")
    (tmp_path / "s/imagesTr/above").symlink_to(tmp_path)
    (tmp_path / "s/imagesTr/again").symlink_to(tmp_path / "s/imagesTr/P0")
    (tmp_path / "s/imagesTr/outside").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "s/imagesTr/outside too").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "s/imagesTr/lost.nii").symlink_to(tmp_path / "gone.nii")
    (tmp_path / "s/imagesTr/lost").symlink_to(tmp_path / "gone")
    (tmp_path / "s/imagesTr/self.nii").symlink_to("self.nii")
    (tmp_path / "s/imagesTr/notes.txt").symlink_to(tmp_path / "gone.txt")
    studies = find_studies(source, layout)
    faults = sorted(study.key for study in studies if study.fault is not None)
    assert faults == ["imagesTr/lost", "imagesTr/lost.nii", "imagesTr/self.nii"]
    assert {study.fault.found for study in studies if study.fault} == {"a broken link"}
    sound = sorted(Path(uri).as_posix() for study in studies for uri in study.image)
    ending = "dcm" if layout == "dicom" else "nii"
    expected = [f"P0/a.{ending}", f"outside/c.{ending}"] + ([] if layout == "dicom" else ["b.nii"])
    assert sound == sorted(f"{source}/imagesTr/{path}" for path in expected)
    odd = {one.kind: one.count for one in left_out_of(source, layout, studies) if not one.kind.startswith(".")}
    assert odd == {"broken link": 1, "link to a folder that is listed anyway": 4}


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder in which this process is nobody, who cannot read what is forbidden."""
    folder = Path(tempfile.mkdtemp(prefix="raydiology-"))
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_that_cannot_be_listed_or_entered_is_reported_and_the_others_are_read(nobody: Path) -> None:
    source = tree(nobody, "a.nii", "shut/b.nii", "seen/c.nii")
    (nobody / "shut").chmod(0o000)
    (nobody / "seen").chmod(0o744)
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        (nobody / "seen").chmod(0o444)
    studies = find_studies(source, "volumes")
    assert {study.key: study.fault and study.fault.found for study in studies} == {
        "a.nii": None,
        "shut": "a folder that cannot be listed",
        "seen/c.nii": "a file in a folder that cannot be entered",
    }


def test_the_decathlon_layout_has_labels_modality_and_names(tmp_path: Path) -> None:
    source = tree(
        tmp_path, "imagesTr/h_001.nii.gz", "imagesTr/h_002.nii.gz", "labelsTr/h_001.nii.gz", "labelsTr/h_009.nii.gz",
        "imagesTs/h_003.nii.gz",
    )  # fmt: skip
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/h_00{n}.nii.gz", "label": f"./labelsTr/h_00{n}.nii.gz"} for n in (1, 4)],
        "test": ["./imagesTs/h_003.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    studies = {study.key: study for study in find_studies(source, "nnunet")}
    assert pairs(list(studies.values())) == {
        "imagesTr/h_001": "h_001.nii.gz",
        "imagesTr/h_002": None,
        "imagesTs/h_003": None,
    }
    assert {study.modality for study in studies.values()} == {"MR"}
    assert (studies["imagesTs/h_003"].split, studies["imagesTr/h_001"].split) == ("test", None)
    faults = {key: study.fault.found for key, study in studies.items() if study.fault}
    assert faults == {
        "labelsTr/h_009": "a label without an image",
        "imagesTr/h_004": "an image that dataset.json lists but is not there",
    }
    assert label_names(source) == {1: "Anterior", 2: "Posterior"}


def test_nnunet_channels_are_one_study_and_a_missing_one_is_said(tmp_path: Path) -> None:
    source = tree(
        tmp_path, "imagesTr/b_01_0000.nii.gz", "imagesTr/b_01_0001.nii.gz", "imagesTr/b_02_0001.nii.gz",
        "imagesTr/b_03_0000.nii.gz", "imagesTr/b_03_0001.nii.gz", "labelsTr/b_01.nii.gz",
    )  # fmt: skip
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}})
    )
    studies = {study.key: study for study in find_studies(source, "nnunet")}
    assert [Path(uri).name for uri in studies["imagesTr/b_01"].image] == ["b_01_0000.nii.gz", "b_01_0001.nii.gz"]
    assert pairs(list(studies.values())) == {"imagesTr/b_01": "b_01.nii.gz", "imagesTr/b_03": None}
    fault = studies["imagesTr/b_02"].fault
    assert fault is not None
    assert fault.found == "1 of 2 channels"
    assert label_names(source) == {1: "tumour"}


def test_class_folders_number_classes_by_name_and_take_splits_from_above(tmp_path: Path) -> None:
    source = tree(tmp_path, "train/b/1.jpg", "train/a/2.png", "test/b/3.jpeg", "Validation/a/4.jpg", "labels.csv")
    studies = {study.key: study for study in find_studies(source, "class_folders")}
    found = {key: (study.class_names, study.classes, study.split) for key, study in studies.items()}
    assert found == {
        "train/b/1.jpg": (("b",), (1,), "train"),
        "train/a/2.png": (("a",), (0,), "train"),
        "test/b/3.jpeg": (("b",), (1,), "test"),
        "Validation/a/4.jpg": (("a",), (0,), "val"),
    }


def test_a_csv_gives_labels_patients_and_splits_and_rows_without_a_file_are_faults(tmp_path: Path) -> None:
    source = tree(tmp_path, "im/1.jpg", "im/2.png")
    rows = ["name,grade,who,part", "im/1.jpg,3,A,train", "im/2,0,B,test", "im/3.jpg,1,B,test"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    options = SourceOptions(
        image_column="name", label_column="grade", patient_column="who", split_column="part", dataset="d"
    )
    for place in (source, f"{source}/t.csv"):
        one, two, three = find_studies(place, "csv", options)
        assert (one.classes, one.class_names, one.patient, one.split) == ((3,), ("3",), "A", "train")
        assert (two.classes, Path(two.image[0]).name, two.split) == ((0,), "2.png", "test")
        assert three.fault is not None
        assert three.fault.found == "a row of the table without its image file"


def test_a_table_without_its_columns_is_refused_without_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Lovelace_Ada.jpg,1,PAT-70431\nLovelace_Ada_2.jpg,0,PAT-70431\n")
    message = r"the table has 3 columns but not file, label; expected a first line.*set image_column"
    with pytest.raises(ValueError, match=message) as caught:
        find_studies(str(tmp_path), "csv")
    assert not any(text in str(caught.value) for text in ("Lovelace", "PAT-70431"))


@pytest.mark.parametrize(("options", "given"), [({}, False), ({"dataset": "scans"}, True)])
def test_a_dataset_s_name_is_known_to_be_given_or_the_folder_s(
    tmp_path: Path, options: dict[str, str], given: bool
) -> None:
    source = tree(tmp_path / "scans", "a/b.nii", "imagesTr/c.nii", "d.dcm")
    for layout in ("volumes", "nnunet", "dicom", "class_folders"):
        studies = find_studies(source, layout, SourceOptions.model_validate(options))
        assert {(study.dataset, study.dataset_is_given) for study in studies} == {("scans", given)}


@pytest.mark.parametrize(
    ("layout", "options", "text"),
    [
        ("nifti", {}, "there is no 'nifti'; expected one of volumes, nnunet, dicom"),
        ("volumes", {"images": "*.nrrd"}, r"0 studies.*'\*.nrrd'.*check the folder"),
        ("volumes", {"images": "*.nii", "labels": "*/*.nii"}, "2 wildcards.*has 1.*same wildcards"),
        ("volumes", {"patient_pattern": "(STS_"}, "no regular expression"),
        ("volumes", {"patient_pattern": "STS"}, r"does not match the path of a study \(5 letters.*widen"),
        ("volumes", {"label": "x"}, "Extra inputs"),
        (
            "volumes",
            {"label_column": "x"},
            "label_column means nothing to layout volumes; expected layout csv; leave",
        ),
        (
            "csv",
            {"patient_pattern": "p", "patient_column": "who"},
            r"each of them names the patients; give one of the two",
        ),
    ],
)
def test_contradicting_options_are_errors_in_words(
    tmp_path: Path, layout: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        find_studies(tree(tmp_path, "a.nii"), layout, SourceOptions.model_validate(options))


class Watched(SourceOptions):
    """Options that note which of them are read."""

    def __getattribute__(self, name: str):
        if name in SourceOptions.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_option_says_that_a_layout_takes_it_where_the_layout_reads_it(tmp_path: Path, layout: str) -> None:
    source = tree(tmp_path, "a/b.nii", "imagesTr/c.nii", "d.dcm", "1.png")
    (tmp_path / "t.csv").write_text("file,label\n1.png,0\n")
    np.savez(tmp_path / "set.npz", train_images=np.zeros((2, 4, 4), np.uint8))
    write_coco(tmp_path / "annotations" / "train.json", {"1.png": (4, 4)}, ["a"], [])
    write_voc(tmp_path / "voc" / "Annotations" / "1.xml", (4, 4), [])
    write_deeplesion(tmp_path / "deep" / "DL_info.csv", [lesion("000001_01_01_002.png")])
    source = {"deeplesion": f"{source}/deep", "voc": f"{source}/voc"}.get(layout, source)
    options = Watched()
    READ.clear()
    LAYOUTS[layout](source, "dataset", options)
    # These are read elsewhere, or only where an image has a column for each class or is a secondary capture.
    elsewhere = {"dataset", "label_names", "uncertain", "secondary_captures", "boxes", "box_min_voxels", "box_labels"}
    claimed = {name for name in SourceOptions.model_fields if layout in SourceOptions.layouts(name)}
    assert READ - elsewhere == claimed - elsewhere


def test_a_source_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*is not a readable folder.*check the path"):
        find_studies(str(tmp_path / "nowhere"), "volumes")


@pytest.mark.parametrize(
    ("folder", "layout", "options", "num_studies", "num_labels", "num_patients"),
    [
        ("ibsi_sts", "volumes", {"images": "*/CT_image*.nii.gz", "labels": "*/CT_mask*.nii.gz"}, 11, 11, 11),
        ("totalsegmentator", "dicom", {"images": "*", "labels": "*_labels.nii.gz"}, 1, 1, 1),
        ("tcia_crlm", "dicom", {}, 1, 0, 1),
        ("tcia_crlm", "volumes", {"modality": "CT"}, 1, 0, 1),
        ("vtkjs_lidc", "volumes", {}, 1, 0, 1),
        ("msd_hippocampus", "nnunet", {"modality": "MRI"}, 72, 72, 72),
        ("open_ms", "volumes", {"images": "*/*_2mm.nii.gz", "labels": "*/lesions_2mm.nii.gz"}, 4, 4, 1),
        ("pyradiomics", "volumes", {"images": "*_image.nrrd", "labels": "*_label.nrrd"}, 2, 2, 2),
        ("dicom_dcmqi_ct3", "dicom", {"images": ".", "labels": "liver_seg.nrrd", "modality": "CT"}, 1, 1, 1),
        ("dicom_slicer_cthead", "dicom", {}, 1, 0, 1),
        ("kermany_cxr", "csv", {}, 940, 0, 914),
        ("idrid_fundus", "csv", {"label_column": "retinopathy_grade"}, 300, 0, 300),
        ("mednist", "class_folders", {}, 900, 0, 900),
    ],
)
def test_every_real_source_has_a_layout_and_options_that_fit(
    scans: Path,
    folder: str,
    layout: str,
    options: dict[str, str],
    num_studies: int,
    num_labels: int,
    num_patients: int,
) -> None:
    by_folder = {"patient_pattern": "^[^/]+"} if folder in ("ibsi_sts", "open_ms") else {}
    studies = find_studies(str(scans / folder), layout, SourceOptions.model_validate({**options, **by_folder}))
    assert len(studies) == num_studies
    assert sum(study.label is not None for study in studies) == num_labels
    assert len({study.patient for study in studies}) == num_patients
    assert [study.fault for study in studies if study.fault] == []


@pytest.mark.slow
def test_the_classes_and_splits_of_real_pictures_are_those_of_the_manifest(scans: Path) -> None:
    studies = find_studies(str(scans / "kermany_cxr"), "class_folders")
    assert Counter(study.split for study in studies) == {"train": 700, "test": 240}
    rows = find_studies(str(scans / "kermany_cxr"), "csv")
    assert {study.key: study.split for study in rows} == {study.key: study.split for study in studies}
    assert remarks(str(scans / "kermany_cxr"), "csv", SourceOptions()) == [
        "columns of the table: files from file; classes from label; patients from patient (914 patients in 940 "
        "rows); splits from split (700 train, 240 test); not used: cause"
    ]
    assert Counter(study.class_names for study in studies) == {("NORMAL",): 470, ("PNEUMONIA",): 470}


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as listing and reading a bucket needs: ``root`` is the folder that holds the buckets.

    Files named ``*.gone`` are listed and then not there.
    """

    root: Path

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = self.root / unquote(url.path).strip("/")
        if "list-type" in query:
            body, kind = self._listing(path, query.get("prefix", [""])[0]).encode(), "application/xml"
        elif path.is_file() and path.suffix != ".gone":
            body, kind = path.read_bytes(), "application/octet-stream"
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, first = len(body), 0
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            first = int(first)
            body = body[first : int(last) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{size}")
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _listing(self, bucket: Path, prefix: str) -> str:
        paths = [file.relative_to(bucket).as_posix() for file in sorted(bucket.rglob("*")) if file.is_file()]
        keys = [path for path in paths if path.startswith(prefix)]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(bucket / key).stat().st_size}</Size>"
            "<LastModified>2026-11-20T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        counts = f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{counts}{entries}</ListBucketResult>"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """A small S3 of this process; yields the options that an address needs to reach it."""
    handler = type("Handler", (Bucket,), {"root": tmp_path})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"?scheme=http&endpoint_override={quote(f'127.0.0.1:{server.server_port}')}&region=none"
    server.shutdown()
    server.server_close()


def test_an_address_is_shown_without_its_credentials() -> None:
    assert shown("s3://key:secret@bucket/scans?endpoint_override=x") == "s3://bucket/scans"
    assert shown("/data/scans") == "/data/scans"


@pytest.mark.slow
def test_a_bucket_is_read_like_a_folder(tmp_path: Path, endpoint: str) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    folder = tmp_path / "bucket/scans"
    folder.mkdir(parents=True)
    image = nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1]))
    image.to_filename(folder / "a b é.nii.gz")
    nib.Nifti1Image((voxels > 0).astype(np.uint8), image.affine).to_filename(folder / "a b é_seg.nii.gz")
    nib.save(nib.MGHImage(voxels, np.diag([1, 2, 3, 1])), folder / "m.mgz")  # pyright: ignore[reportArgumentType]
    options = SourceOptions(label_suffix="_seg")
    local = find_studies(str(folder), "volumes", options)
    remote = find_studies(f"s3://key:secret@bucket/scans{endpoint}", "volumes", options)
    assert [study.key for study in remote] == [study.key for study in local] == ["a b é.nii.gz", "m.mgz"]
    for here, there in zip(local, remote, strict=True):
        assert content_digest(read_study(there)) == content_digest(read_study(here))
    np.testing.assert_array_equal(read_study(remote[0]).label, (voxels > 0).transpose())


@pytest.mark.slow
def test_a_file_that_vanishes_becomes_a_bad_study_and_its_path_is_not_said(tmp_path: Path, endpoint: str) -> None:
    tree(tmp_path / "bucket/scans", "Lovelace.gone")
    (study,) = find_studies(f"s3://key:secret@bucket/scans{endpoint}", "dicom")
    with pytest.raises(
        BadStudy, match=r"cannot be decoded \(FileNotFoundError: No such file.*a whole file"
    ) as caught:
        read_study(study)
    assert "Lovelace" not in str(caught.value)


def test_an_npz_gives_a_study_per_image_with_class_and_split(tmp_path: Path) -> None:
    images = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    arrays = {"train_images": images[:3], "test_images": images[3:], "train_labels": np.array([[2], [0], [1]])}
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    for place in (str(tmp_path), str(tmp_path / "set.npz")):
        studies = find_studies(place, "npz", SourceOptions(modality="XR"))
        assert [(s.split, s.classes, s.class_names) for s in studies] == [
            ("train", (2,), ("2",)), ("train", (0,), ("0",)), ("train", (1,), ("1",)), ("test", None, ()),
            ("test", None, ()),
        ]  # fmt: skip
        scan = read_study(studies[4])
        assert scan.voxels.tolist() == [images[4].tolist()]
        assert (scan.scale, scan.modality) == (1 / 255, "XR")


def test_an_npz_with_a_column_for_each_class_gives_each_image_any_number_of_them(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], np.uint8)
    np.savez(tmp_path / "set.npz", train_images=np.zeros((3, 4, 4), np.uint8), train_labels=labels)
    studies = find_studies(str(tmp_path), "npz", SourceOptions())
    assert [(s.classes, s.class_names) for s in studies] == [((1, 2), ("1", "2")), ((), ()), ((0,), ("0",))]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, r"without an array named like train_images; .* rename its arrays"),
        (
            {"train_images": np.zeros((2, 4, 4), np.uint8), "train_labels": np.full((2, 14), 3)},
            r"train_labels: shape \(2, 14\), int64, up to 3; expected 0 or 1 in each of .*; keep the column that is",
        ),
        (
            {"train_images": np.zeros((2, 4, 4), np.uint8), "train_labels": np.zeros((2, 1))},
            r"train_labels: shape \(2, 1\), float64; expected a whole number per image, or a 0 or 1 for each class",
        ),
        (
            {"train_images": np.zeros((3, 4, 4), np.uint8), "train_labels": np.arange(2)},
            r"train_labels: shape \(2,\), int64; expected a row for each of the 3 images",
        ),
        (
            {"train_images": np.zeros((2, 4, 4), np.uint8), "train_labels": np.array([-1, 2**40])},
            r"train_labels: .*, from -1 to 1099511627776; expected classes from 0 to 9999; renumber them",
        ),
    ],
)
def test_an_npz_of_other_arrays_is_refused_and_a_bad_study_among_others(tmp_path: Path, arrays, message) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        find_studies(str(tmp_path), "npz", SourceOptions())
    np.savez(tmp_path / "sound.npz", train_images=np.zeros((1, 4, 4), np.uint8))
    bad, sound = find_studies(str(tmp_path), "npz", SourceOptions())
    assert (bad.key, sound.key, sound.fault) == ("set.npz", "sound.npz/train/0000000", None)
    with pytest.raises(BadStudy, match=message):
        read_study(bad)


def test_a_damaged_npz_file_is_one_bad_study_and_the_other_files_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 20), dtype=np.uint8)
    for name in ("a", "b", "c"):
        np.savez_compressed(tmp_path / f"{name}.npz", train_images=images, train_labels=np.arange(3))
    whole = (tmp_path / "b.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no archive", whole[:60] + bytes(8) + whole[68:]):
        (tmp_path / "b.npz").write_bytes(broken)
        studies = find_studies(str(tmp_path), "npz")
        assert [study.key for study in studies if study.fault is None] == [
            f"{name}.npz/train/{number:07d}" for name in ("a", "c") for number in range(3)
        ]
        (bad,) = [study for study in studies if study.fault is not None]
        with pytest.raises(BadStudy, match=r"damaged .npz file \(.*all of whose images are left out.*copy the file"):
            read_study(bad)
