"""The cases of ``../shared/cases``: inputs that people's reports describe, each with its right value.

Each is planned as its command is typed, and its bundles are run in this process, without Ray.
"""

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from data.shards.bundles import run_bundle, volume_id
from data.shards.kept import kept_rows
from data.shards.manifest import duplicates
from data.shards.writer import from_row
from orchestrator.commands import scans
from orchestrator.commands.parser import parse
from orchestrator.ingest.plan import make_plan
from orchestrator.ingest.request import IngestConfig, load
from orchestrator.ingest.run import in_stable_order

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
SOURCES = {"table-as-source": "train.csv", "chexpert-path-prefix": "CheXpert-v1.0-small"}
HOLDING_OUT = ("csv-unknown-split-name",)


@dataclass(frozen=True)
class Read:
    """What a study gave: its samples in order, as intensities in the units of the recipe's window."""

    values: np.ndarray
    spacing_mm: tuple[float, ...]
    label: np.ndarray | None
    classes: tuple[int, ...] | None
    patient: str
    split: str

    @property
    def ids(self) -> dict[int, int]:
        """Voxels of each id of the label map but the background."""
        assert self.label is not None
        return {int(n): int(count) for n, count in zip(*np.unique(self.label, return_counts=True), strict=True) if n}


@dataclass
class Outcome:
    """What became of every file of a source: read, or left out with the reason."""

    read: dict[str, Read] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    no_scans: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    label_names: dict[int, str] = field(default_factory=dict)

    def classes(self) -> dict[str, tuple[int, ...] | None]:
        return {key: one.classes for key, one in self.read.items()}


def request(case: str, out: Path) -> IngestConfig:
    """Return what a case's command asks for, as the command line reads it."""
    cases = (
        Path(os.environ["RAYDIOLOGY_TEST_DATA"]).parent / "cases" if "RAYDIOLOGY_TEST_DATA" in os.environ else CASES
    )
    folder = cases / case
    if not folder.is_dir():
        pytest.skip(f"no case {case}: there is no {cases.name} folder beside the scans that has it")
    words = ["ingest", "--source", str(folder / "in" / SOURCES.get(case, "")), "--dataset", "d", "--out", str(out)]
    words += ["--max-bad", "1", "--keep-names", *([] if case in HOLDING_OUT else ["--val-fraction", "0"])]
    given = parse([*words, *shlex.split((folder / "args").read_text())]).params
    return load(scans._asked(given.pop("changes"), given), given.pop("config"))


def outcome_of(case: str, out: Path) -> Outcome:
    """Plan a case, run its bundles, and read back what they wrote."""
    config = request(case, out)
    plan = make_plan(config)
    manifests = [run_bundle(plan.job, bundle) for bundle in plan.bundles]
    rows: dict[str, list] = {}
    for manifest in manifests:
        for row in kept_rows(plan.job.out, plan.job.work, manifest, set(manifest.contents)):
            rows.setdefault(row["volume"], []).append(from_row(row))
    contents = {study: content for manifest in manifests for study, content in manifest.contents.items()}
    copies = duplicates(in_stable_order(plan, contents))
    faults = {reject.study: reject for manifest in manifests for reject in manifest.rejects}
    found = Outcome(label_names=plan.label_names, left_out=[one.describe(with_name=True) for one in plan.left_out])
    found.no_scans = {study.key: str(study.fault) for study in plan.no_scans}
    for study in plan.studies:
        name = volume_id(plan.job.key, study)
        if name in faults:
            found.bad[study.key] = f"{faults[name].found}; expected {faults[name].expected}; {faults[name].remedy}"
        elif name in copies:
            found.bad[study.key] = "a copy"
        else:
            found.read[study.key] = _read(sorted(rows[name], key=lambda one: one.sample_id), config)
    assert len(found.read) + len(found.bad) == len(plan.studies)
    return found


def _read(samples: list, config: IngestConfig) -> Read:
    low, high = config.resolved_recipe.window if config.resolved_recipe.window_kind != "percentile" else (0, 1)
    first = samples[0]
    shares = np.stack([one.scan.voxels * np.float64(one.scan.scale) + one.scan.offset for one in samples])
    labels = [one.scan.label for one in samples]
    return Read(
        values=(shares * (high - low) + low).squeeze(),
        spacing_mm=tuple(round(size, 3) for size in first.scan.spacing_mm),
        label=None if labels[0] is None else np.stack(labels).squeeze(),
        classes=first.classes,
        patient=first.patient,
        split=first.split,
    )


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Outcome:
    return outcome_of(request.param, tmp_path)


def kind(case: str, said: str):
    """Run a test on a case; its id names the case and its kind."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=f"{case}: {said}")], indirect=True)


def is_the_phantom(one: Read, ids: dict[int, int] | None = None) -> bool:
    """Tell whether a study is a CT of the cases' phantom on its own grid, whole and in HU."""
    assert one.values.shape == (8, 10, 12)
    assert one.spacing_mm == (3, 2, 2)
    assert (round(one.values.min()), round(one.values.max())) == (-1020, 1500)
    assert abs(one.values.mean() + 718.6) < 1.5
    assert one.label is None if ids is None else one.ids == ids
    return True


def are_phantoms(case: Outcome, *keys: str, ids: dict[int, int] | None = None) -> None:
    """Assert that these studies are read, no two are of one patient, and no others are read."""
    assert list(case.read) == list(keys)
    assert all(is_the_phantom(one, ids) for one in case.read.values())
    assert len({one.patient for one in case.read.values()}) == len(keys)
    assert case.left_out == []


def only_bad(case: Outcome, key: str, reason: str) -> None:
    """Assert that one study is quarantined, for this reason (a pattern)."""
    assert list(case.bad) == [key]
    assert re.fullmatch(reason, case.bad[key]), case.bad[key]


BODY = {1: 256, 2: 2}


# A file that kills its reader, or raises what nobody expected.


def test_a_header_that_kills_its_library_is_quarantined_and_its_neighbour_is_read(tmp_path: Path) -> None:
    """Kind: a native library that ends its process; tried in a process of its own."""
    request("mha-ndims-93", tmp_path)
    context = get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(outcome_of("mha-ndims-93", tmp_path)))
    child.start()
    found = queue.get(timeout=120)
    child.join()
    assert child.exitcode == 0
    are_phantoms(found, "good0.nii.gz")
    only_bad(found, "x.mha", r"93 axes of \(12, 10, 8\) voxels .*; correct the header")


@kind("qfac-zero", "a header field whose odd value the standard defines")
def test_a_qfac_of_zero_is_read(case: Outcome) -> None:
    are_phantoms(case, "good0.nii.gz", "qfac0.nii")


@kind("exif-odd-types", "a tag of an unexpected type beside sound pixels")
def test_a_picture_with_odd_tags_is_read_and_turned(case: Outcome) -> None:
    assert {key: one.values.shape for key, one in case.read.items()} == {
        "x/make_is_rational.jpg": (3, 24, 20),
        "x/ok.png": (3, 20, 24),
    }
    assert (case.bad, case.left_out) == ({}, [])


@kind("csv-ragged", "a row of another length than its heading")
def test_a_short_row_is_an_image_without_a_label(case: Outcome) -> None:
    assert case.classes() == {"0.png": (1,), "1.png": (0,), "2.png": None, "3.png": (1,)}
    assert (case.bad, case.left_out) == ({}, [])


# Different patients become one study, overwrite each other, or lose their label.


@kind("unlabelled-4-digit-no-json", "patients that are numbered as channels are")
def test_four_patients_are_four_studies(case: Outcome) -> None:
    are_phantoms(case, *(f"imagesTr/pancreas_000{number}" for number in (1, 2, 3, 4)))


@kind("nested-imagestr", "files of one name in folders of their own")
def test_files_of_one_name_in_several_folders_are_studies_of_their_own(case: Outcome) -> None:
    are_phantoms(case, *(f"imagesTr/{name}" for name in ("P0/ct", "P1/ct", "P2/ct", "x")), ids=BODY)


@kind("one-series-uid-for-all", "two patients under one identifier")
def test_two_patients_under_one_uid_are_kept_apart(case: Outcome) -> None:
    are_phantoms(case, *(f"2.25.9999.{name}" for name in ("430", "430 2", "436", "436 2", "439")))
    assert case.bad == {}


@kind("btcv-img-label-names", "labels that only dataset.json pairs with images")
def test_pairs_of_dataset_json_are_obeyed(case: Outcome) -> None:
    are_phantoms(case, *(f"imagesTr/img000{number}" for number in (1, 2, 3)), ids=BODY)
    assert (case.bad, case.label_names) == ({}, {1: "spleen", 2: "rkid"})


@kind("copy-without-label-wins", "two copies of one scan, one with a label")
def test_the_labelled_copy_stays(case: Outcome) -> None:
    assert list(case.read) == ["b.nii.gz", "good0.nii.gz"]
    assert is_the_phantom(case.read["b.nii.gz"], BODY)
    assert is_the_phantom(case.read["good0.nii.gz"])
    only_bad(case, "a_pool.nii.gz", "a copy")


# Intensities.


@kind("one-slice-without-rescale", "slices of a series that differ in a tag of intensities")
def test_a_series_with_rescale_in_some_slices_is_quarantined(case: Outcome) -> None:
    are_phantoms(case, "2.25.9999.361")
    only_bad(case, "2.25.9999.360", "1 of 8 slices without RescaleSlope and RescaleIntercept; .*; export .*")


@kind("padding-63536-unsigned", "padding values")
def test_padding_is_the_lowest_intensity(case: Outcome) -> None:
    assert list(case.read) == ["2.25.9999.340", "2.25.9999.341"]
    values = case.read["2.25.9999.340"].values
    assert (round(values.min()), round(values.max())) == (-1020, 900)
    assert (values == values.min()).sum() >= 160
    assert is_the_phantom(case.read["2.25.9999.341"])


@kind("no-intercept-padding-2000", "intensities that only their padding makes look like HU")
def test_intensities_without_intercept_are_refused_as_not_hu(case: Outcome) -> None:
    are_phantoms(case, "2.25.9999.351")
    only_bad(case, "2.25.9999.350", "CT intensities from 4 up, none below 0; expected HU, .*; set option rescale .*")


@kind("tiff16-white-is-zero", "pictures in which 0 is white, of any depth")
def test_white_is_zero_in_16_bit_as_in_8(case: Outcome) -> None:
    black, white, low = (case.read[f"x/{name}.tif"].values for name in ("black0_16", "white0_16", "white0_8"))
    np.testing.assert_allclose(white[0, :4], 1 - 1000 / 65535, atol=1e-4)
    np.testing.assert_allclose(white, low, atol=1 / 255)
    np.testing.assert_allclose(black[0, 0], 13289 / 65535, atol=1e-4)
    only_bad(case, "x/f32.tif", "a picture of floating-point values; .*; convert to 16 bit")


@kind("deeplesion-png16", "a rescale that means the numbers in a picture's file")
def test_rescaled_pictures_are_in_hu(case: Outcome) -> None:
    assert len(case.read) == 3
    for one in case.read.values():
        assert (round(one.values.min()), round(one.values.max())) == (-1020, 1500)
    assert case.bad == {}


# Tables.


@kind("table-as-source", "a table that is the source itself")
def test_the_table_named_is_the_one_read(case: Outcome) -> None:
    assert case.classes() == {"0.png": (0,), "1.png": (1,), "2.png": (0,), "3.png": (1,)}
    assert case.bad == {}
    (other,) = case.left_out
    assert other.startswith("1 .csv, such as valid.csv")


def test_words_that_are_no_split_are_refused_by_name(tmp_path: Path) -> None:
    """Kind: unknown words in a split column; the case is csv-unknown-split-name."""
    config = request("csv-unknown-split-name", tmp_path)
    with pytest.raises(ValueError, match=r"column split .* 4 of 10 rows .* \(dev, holdout\); expected one of train"):
        make_plan(config)


@kind("csv-nan-label", "missing values and numbers as classes")
def test_missing_values_are_no_classes_and_numbers_keep_their_value(case: Outcome) -> None:
    given = {"0.png": (0,), "1.png": (2,), "2.png": None, "3.png": None, "4.png": (4,), "5.png": None}
    assert (case.classes(), case.bad) == (given, {})


@kind("csv-windows-paths", "paths of another system")
def test_backslashes_are_slashes(case: Outcome) -> None:
    assert case.classes() == {f"images/{number}.png": (number % 2,) for number in range(4)}
    assert (case.bad, case.left_out) == ({}, [])


@kind("chexpert-path-prefix", "paths that begin above the table")
def test_a_prefix_of_all_paths_is_dropped(case: Outcome) -> None:
    assert case.classes() == {f"train/patient0000{n}/study1/view1_frontal.jpg": (0,) for n in range(4)}
    assert len({one.patient for one in case.read.values()}) == 4
    assert (case.bad, case.left_out) == ({}, [])


@kind("csv-row-per-box", "several rows of one image")
def test_rows_of_one_image_are_one_study(case: Outcome) -> None:
    assert case.classes() == {"id0.png": (1,), "id1.png": (0,), "id2.png": (1,), "id3.png": (0,)}
    assert (case.bad, case.left_out) == ({}, [])


@kind("csv-semicolon", "another separator than the comma")
def test_a_semicolon_separates(case: Outcome) -> None:
    assert case.classes() == {"0.png": (0,), "1.png": (1,), "2.png": (0,), "3.png": (1,)}
    assert (case.bad, case.left_out) == ({}, [])


@kind("csv-dicom-images", "DICOM and pictures in one table")
def test_dicom_images_of_a_table_are_read_as_its_pictures_are(case: Outcome) -> None:
    assert case.classes() == {"id0.dcm": (0,), "id1.dcm": (1,), "id2.dcm": (0,), "id3.png": (1,)}
    for one in case.read.values():
        assert one.values.shape == (20, 24)
        assert (round(one.values.min(), 1), round(one.values.max(), 1)) == (0, 1)
        assert 0.4 < one.values.mean() < 0.6
    assert (case.bad, case.left_out) == ({}, [])


# dataset.json.


@kind("json-channel-names-swapped", "a dataset.json with names and numbers swapped")
def test_swapped_channel_names_are_read(case: Outcome) -> None:
    are_phantoms(case, "imagesTr/a_001", "imagesTr/a_002", ids=BODY)
    assert (case.bad, case.label_names) == ({}, {1: "body", 2: "mark"})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(
            "json-trailing-comma",
            r"dataset\.json: not JSON \(line 1, column 81: .*; correct it there: JSON has no comma before",
            id="json-trailing-comma: a dataset.json that is no JSON",
        ),
        pytest.param(
            "nnunet-2d-png",
            r"0 studies in layout 'nnunet' .* it holds .* 6 \.png \(ingest it by --layout class_folders or csv, "
            r"without the labels",
            id="nnunet-2d-png: files of a kind that the layout does not read",
        ),
    ],
)
def test_a_folder_without_studies_is_refused_in_words(tmp_path: Path, case: str, message: str) -> None:
    config = request(case, tmp_path)
    with pytest.raises(ValueError, match=message):
        make_plan(config)


# Left out and not said, or taken and not a scan.


@kind("no-preamble-no-extension", "DICOM without preamble and suffix")
def test_bare_dicom_is_read(case: Outcome) -> None:
    are_phantoms(case, "2.25.9999.410", "2.25.9999.411")
    assert case.bad == {}


@kind("dicomdir", "a file that lists others")
def test_a_dicomdir_is_left_out(case: Outcome) -> None:
    are_phantoms(case, *(f"2.25.9999.300.{number}" for number in range(3)))
    assert case.bad == {}
    assert case.no_scans["DICOMDIR"].startswith("a DICOMDIR; ")


@kind("localizer-own-series", "an image that only plans a scan")
def test_a_localizer_is_left_out_with_its_reason(case: Outcome) -> None:
    assert {key: one.values.shape for key, one in case.read.items()} == {"2.25.9999.310": (6, 96, 96)}
    assert case.no_scans["scout.dcm"].startswith("a localizer (ImageType LOCALIZER); ")
    assert case.bad == {}


# Refused though right, accepted though unknown.


@kind("ordinary-tiff", "files as the usual libraries write them")
def test_ordinary_tiff_is_read(case: Outcome) -> None:
    low = "x/grey_height10.tif"
    assert {key: one.values.shape for key, one in case.read.items()} == {
        f"x/{name}": (10, 24) if f"x/{name}" == low else (20, 24)
        for name in ("grey.tif", "grey_height10.tif", "lzw.tif", "ok0.png", "ok1.png", "rgb.tif")
    }
    assert (case.bad, case.left_out) == ({}, [])


@kind("oblique-45-label", "rounding noise that decides between two orders of axes")
def test_a_label_turned_by_45_degrees_is_aligned(case: Outcome) -> None:
    assert is_the_phantom(case.read["good0.nii.gz"])
    for name in ("o0.nii.gz", "o1.nii.gz"):
        one = case.read[name]
        assert (sorted(one.values.shape), one.spacing_mm) == ([8, 10, 12], (2, 2, 2))
        assert one.ids == BODY
        assert one.label is not None
        assert one.values[one.label == 0].max() < one.values[one.label > 0].min()
    assert (list(case.read)[1:], case.bad) == (["o0.nii.gz", "o1.nii.gz"], {})


@kind("label-slope-rounding", "rounding of a slope")
def test_rounding_leaves_ids_whole(case: Outcome) -> None:
    assert is_the_phantom(case.read["a.nii.gz"], {1: 258})
    assert is_the_phantom(case.read["good0.nii.gz"])
    assert case.bad == {}


@kind("nrrd-unknown-space", "an orientation that is not known")
def test_a_space_without_left_and_right_is_refused(case: Outcome) -> None:
    are_phantoms(case, "good0.nii.gz")
    only_bad(case, "rh.nrrd", r"no orientation \(space 3d-right-handed, in which left and right are unknown\); .*")


# The reason given is not the reason.


@kind("jpeg-extended-12bit", "a codec that only one of the libraries decodes")
def test_twelve_bit_jpeg_extended_is_read(case: Outcome) -> None:
    lossy, whole = (case.read[f"2.25.9999.{number}"] for number in (298, 299))
    assert is_the_phantom(whole)
    assert lossy.values.shape == (8, 10, 12)
    assert np.abs(np.sort(lossy.values, axis=None) - np.sort(whole.values, axis=None)).max() < 40
    assert case.bad == {}


def _named(key: str, *good: str, reason: str, case: str, said: str):
    return pytest.param(case, key, good, reason, id=f"{case}: {said}")


@pytest.mark.parametrize(
    ("case", "key", "good", "reason"),
    [
        _named(
            "twice.nii.gz", "good0.nii.gz", case="double-gzip", said="compressed twice",
            reason=r"a file that was compressed twice \(gzip in gzip\); .*; decompress it once .*",
        ),
        _named(
            "2.25.9999.380", "2.25.9999.381", case="htj2k", said="a codec that nothing decodes",
            reason=r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.201 \(High-Throughput JPEG 2000 .*\), which nothing "
            "here decodes; .*; convert the series .*",
        ),
        _named(
            "2.25.9999.390", "2.25.9999.391", case="decimal-comma", said="a tag that is no number",
            reason=r"PixelSpacing that is no number \(2,50 and 2,50\); expected numbers with a decimal point; .*",
        ),
        _named(
            "b.nrrd", "good0.nii.gz", case="nrrd-bzip2", said="an encoding that nothing decodes",
            reason="voxels of encoding bzip2, which nothing here decodes; .*; write it again with encoding gzip",
        ),
    ],
    indirect=["case"],
)  # fmt: skip
def test_the_reason_given_is_the_reason(case: Outcome, key: str, good: Iterable[str], reason: str) -> None:
    are_phantoms(case, *good)
    only_bad(case, key, reason)
