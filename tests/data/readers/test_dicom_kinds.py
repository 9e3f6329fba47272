"""DICOM as other people's scanners, archives and tools write it: read right, or refused by name."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from gdcm import TransferSyntax
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from data.quarantine import BadStudy, NoScan
from data.readers import read_study
from data.recipes import RECIPES
from data.recipes.apply import apply
from data.sources import SourceOptions, Study, find_studies
from tests.data.readers.test_readers import PLANTED, VOXELS, change, study, write_series
from tests.small_folders import transcode

UPRIGHT = np.diag([2.0, 2, 3, 1])
CT = RECIPES["ct_volume"].with_fields(spacing_mm=None, crop_above=None, window=(-1024, 3072))


def found(folder: Path, **options: str | bool) -> list[Study]:
    return find_studies(str(folder), "dicom", SourceOptions.model_validate(options))


def refusal(one: Study) -> str:
    with pytest.raises(BadStudy) as caught:
        read_study(one)
    assert not any(secret in str(caught.value) for secret in PLANTED)
    return str(caught.value)


def stored(num_slices: int = 5) -> np.ndarray:
    return VOXELS[..., :num_slices].transpose()


def test_two_patients_under_one_series_uid_are_two_studies(tmp_path: Path) -> None:
    uid = "2.25.7"
    for number, patient in enumerate(("P0", "P1")):
        shifted = UPRIGHT.copy()
        shifted[2, 3] = 1.5 * number
        write_series(tmp_path / patient, shifted, SeriesInstanceUID=uid, PatientID=patient)
    first, second = found(tmp_path)
    assert (first.patient, second.patient) == ("P0", "P1")
    assert len({first.key, second.key}) == 2
    for one in (first, second):
        scan = read_study(one)
        assert scan.spacing_mm == (3, 2, 2)
        np.testing.assert_array_equal(scan.voxels[0], stored())


def test_two_geometries_or_modalities_under_one_series_uid_are_studies_of_their_own(tmp_path: Path) -> None:
    turned = np.array([[0.0, 0, 3, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    for name, affine, tags in (
        ("axial", UPRIGHT, {}),
        ("sagittal", turned, {}),
        ("coarse", UPRIGHT @ np.diag([2, 2, 1, 1]), {}),
        ("pet", UPRIGHT, {"Modality": "PT"}),
    ):
        write_series(tmp_path / name, affine, SeriesInstanceUID="2.25.7", **tags)
    studies = found(tmp_path)
    assert sorted(Path(one.image[0]).parent.name for one in studies) == ["axial", "coarse", "pet", "sagittal"]
    for one in studies:
        np.testing.assert_array_equal(read_study(one).voxels[0], stored())
    assert len(found(tmp_path, modality="CT")) == 3


def test_slices_that_lack_a_tag_stay_with_their_series_and_the_tag_is_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT)
    data = pydicom.dcmread(paths[0])
    del data.ImageOrientationPatient
    data.save_as(paths[0])
    (one,) = found(tmp_path)
    assert "no ImageOrientationPatient" in refusal(one)


@pytest.mark.parametrize("tags", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",), ("RescaleSlope",)])
def test_a_series_of_which_some_slices_have_no_rescale_is_refused(tmp_path: Path, tags: tuple[str, ...]) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT)
    data = pydicom.dcmread(paths[3])
    for tag in tags:
        delattr(data, tag)
    data.save_as(paths[3])
    assert "1 of 5 slices without RescaleSlope and RescaleIntercept" in refusal(study(*paths, kind="dicom"))


def padded(folder: Path, value: int, padding: int, **tags: object) -> list[Path]:
    """Write a series whose first rows are ``value``, and which says that ``padding`` is padding."""
    paths = write_series(folder, UPRIGHT, **{"PixelRepresentation": 0, **tags})
    signed = bool(tags.get("PixelRepresentation"))
    for path in paths:
        data = pydicom.dcmread(path)
        pixels = np.frombuffer(data.PixelData, "<i2").reshape(6, 7).astype(np.int32)
        pixels = np.where(np.arange(6)[:, None] < 2, value, pixels if signed else pixels + 1000)
        data.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
        data.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
        data.save_as(path)
    return paths


@pytest.mark.parametrize(
    ("value", "padding", "tags"),
    [
        (63536, 63536, {}),
        (-2000, -2000, {"PixelRepresentation": 1}),
        (-2000, 63536, {"PixelRepresentation": 1}),  # written as unsigned by mistake
        (63536, -2000, {}),
        (63530, 63536, {"PixelPaddingRangeLimit": 63500}),
        (5, 5, {}),  # in the midst of the others
    ],
)
def test_padding_is_the_lowest_intensity(tmp_path: Path, value: int, padding: int, tags: dict[str, int]) -> None:
    scan = read_study(study(*padded(tmp_path / "s", value, padding, **tags), kind="dicom"))
    scanned = scan.voxels[:, :, 2:]
    scanned = scanned[scanned != value]
    assert set(scan.voxels[:, :, :2].flat) == {scanned.min()}
    assert scan.voxels.max() == scanned.max()
    (volume,) = apply(CT, scan)
    assert volume.voxels[:, :, -2:].max() == volume.voxels.min()  # H runs to anterior: the first rows are the last


def test_padding_alone_does_not_make_hu_of_intensities(tmp_path: Path) -> None:
    paths = padded(tmp_path / "s", -2000, -2000, PixelRepresentation=1)
    for path in paths:
        data = pydicom.dcmread(path)
        pixels = np.frombuffer(data.PixelData, "<i2")
        data.PixelData = np.where(pixels == -2000, pixels, np.abs(pixels)).astype("<i2").tobytes()
        del data.RescaleSlope, data.RescaleIntercept
        data.save_as(path)
    with pytest.raises(BadStudy, match=r"CT intensities from \d+ up, none below 0; expected HU"):
        apply(CT, read_study(study(*paths, kind="dicom")))


def test_padding_of_an_x_ray_is_dark_in_both_ways_of_showing_it(tmp_path: Path) -> None:
    for shown in ("MONOCHROME1", "MONOCHROME2"):
        path = padded(tmp_path / shown, 9000, 9000, Modality="DX", PhotometricInterpretation=shown)[0]
        scan = read_study(study(path, kind="dicom"))
        assert set(scan.voxels[0, :2].flat) == {scan.voxels.min()}
        assert scan.voxels.max() < 2100


@pytest.mark.parametrize(("bits", "signed"), [(12, 0), (12, 1), (16, 0)])
def test_an_x_ray_is_the_share_of_its_levels_as_a_picture_is(tmp_path: Path, bits: int, signed: int) -> None:
    """Kind: DICOM and PNG in one table; a window of [0, 1] made every DICOM image all white."""
    pixels = (np.arange(42) * 40).reshape(6, 7)
    (path,) = write_series(tmp_path / "s", UPRIGHT, 1, Modality="DX", BitsStored=bits, PixelRepresentation=signed)
    change(path, PixelData=pixels.astype("<u2").tobytes())
    data = pydicom.dcmread(path)
    del data.RescaleSlope, data.RescaleIntercept
    data.save_as(path)
    scan = read_study(study(path, kind="dicom"))
    np.testing.assert_array_equal(scan.voxels[0] * scan.scale + scan.offset, pixels / 2**bits)
    scan = read_study(replace(study(path, kind="dicom"), rescale=(2.0, -100.0)))
    np.testing.assert_array_equal(scan.voxels[0] * scan.scale + scan.offset, pixels * 2.0 - 100)


@pytest.mark.parametrize(
    ("tag", "value", "found", "remedy"),
    [
        *((name, None, f"no {name}", "add the tag") for name in (
            "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
            "PixelSpacing", "ImageOrientationPatient",
        )),
        ("BitsStored", 99, "BitsStored 99 in BitsAllocated 16", "correct the tag"),
        ("BitsAllocated", 12, "BitsStored 16 in BitsAllocated 12", "correct the tag"),
        ("RescaleSlope", 0, "RescaleSlope 0", "correct the tag"),
        ("PixelSpacing", [0, 2], "PixelSpacing that is not above 0", "correct the tag"),
        ("SamplesPerPixel", 136, "SamplesPerPixel 136 of grey pixels", "correct the tag"),
        ("NumberOfFrames", 3, "3 frames in one file", "split it into a file for each frame"),
        ("PhotometricInterpretation", "RGB", "RGB colour pixels", "convert it to grey"),
    ],
)  # fmt: skip
def test_a_tag_that_is_missing_or_wrong_is_named_with_what_to_do(
    tmp_path: Path, tag: str, value: object, found: str, remedy: str
) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT)
    data = pydicom.dcmread(paths[2])
    delattr(data, tag) if value is None else setattr(data, tag, value)
    data.save_as(paths[2])
    text = refusal(study(*paths, kind="dicom"))
    assert text.startswith(found)
    assert remedy in text
    assert "copy" not in text


def test_a_file_that_ends_within_its_header_is_copied_again(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "s", UPRIGHT, 1)
    end = path.read_bytes().index(b"\x20\x00\x32\x00")  # ImagePositionPatient
    path.write_bytes(path.read_bytes()[:end])
    assert refusal(study(path, kind="dicom")).startswith("a DICOM file that ends within its header; expected a whole")


def test_what_is_in_a_gzipped_file_beside_dicom_is_named(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "s", UPRIGHT, 1)
    for number, (content, said) in enumerate((
        (gzip.compress(path.read_bytes()), "a file that was compressed twice"),
        (b"<html>Sign in</html>", "a web page under"),
    )):  # fmt: skip
        other = tmp_path / f"{number}.dcm.gz"
        other.write_bytes(gzip.compress(content))
        assert refusal(study(other, kind="dicom")).startswith(said)


def test_decimal_commas_are_named(tmp_path: Path) -> None:
    for number, tag in enumerate(("PixelSpacing", "RescaleSlope", "ImagePositionPatient")):
        paths = write_series(tmp_path / str(number), UPRIGHT)
        content = {"PixelSpacing": "2,50\\2,50", "RescaleSlope": "1,5", "ImagePositionPatient": "1,5\\2\\3"}[tag]
        for path in paths:
            data = pydicom.dcmread(path)
            raw = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(tag), "DS", len(content), content.encode(), 0, False, True
            )
            data._dict[raw.tag] = raw
            data.save_as(path)
        (one,) = found(tmp_path / str(number))
        shown = content.replace("\\", " and ")
        assert refusal(one).startswith(f"{tag} that is no number ({shown}); expected numbers with a decimal point")


def test_a_tag_that_holds_words_is_named_and_the_words_are_not(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT)
    data = pydicom.dcmread(paths[0])
    tag = pydicom.tag.Tag("SliceThickness")
    data._dict[tag] = pydicom.dataelem.RawDataElement(tag, "DS", 8, b"Doe^Jane", 0, False, True)
    data.save_as(paths[0])
    assert refusal(study(*paths, kind="dicom")).startswith("SliceThickness that is no number; expected")


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        ("1.2.840.10008.1.2.4.201", r"transfer syntax 1.2.840.10008.1.2.4.201 (High-Throughput JPEG 2000"),
        ("1.2.840.10008.1.2.4.102", r"transfer syntax 1.2.840.10008.1.2.4.102 (MPEG-4"),
        ("1.2.3.4", "a transfer syntax that DICOM does not define"),
    ],
)
def test_a_codec_that_nothing_here_decodes_is_named(tmp_path: Path, syntax: str, named: str) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT)
    for path in paths:
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path)
    text = refusal(study(*paths, kind="dicom"))
    assert text.startswith(named)
    assert "which nothing here decodes" in text
    assert "convert the series" in text


def test_twelve_bit_jpeg_extended_is_read(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT, BitsStored=12, HighBit=11, PixelRepresentation=0)
    ramp = (np.arange(42).reshape(6, 7) * 90 + 100).astype("<u2")
    for path in paths:
        change(path, PixelData=ramp.tobytes())
        transcode(path, TransferSyntax.JPEGExtendedProcess2_4)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.51"
    scan = read_study(study(*paths, kind="dicom"))
    assert scan.voxels.dtype == np.uint16
    assert np.abs(scan.voxels[0].astype(int) - ramp).max() < 80  # JPEG Extended is lossy


@pytest.mark.parametrize("marker", [b"\xff\xc3", b"\xff\xc4", b"\xff\xda"])
def test_a_jpeg_stream_without_one_of_its_headers_is_refused_before_gdcm_dies_of_it(
    tmp_path: Path, marker: bytes
) -> None:
    paths = write_series(tmp_path / "s", UPRIGHT, 1, BitsStored=12, HighBit=11, PixelRepresentation=0)
    change(paths[0], PixelData=(np.arange(42) * 90).astype("<u2").tobytes(), SliceThickness=3)
    transcode(paths[0], TransferSyntax.JPEGLosslessProcess14_1)
    assert read_study(study(*paths, kind="dicom")).voxels.max() == 41 * 90
    content = paths[0].read_bytes()
    start = content.index(b"\xff\xd8")
    at = content.index(marker, start)
    paths[0].write_bytes(content[:at] + b"\xff\x00" + content[at + 2 :])
    assert refusal(study(*paths, kind="dicom")).startswith("a JPEG stream whose headers are not whole; ")


def bare(path: Path, target: Path, **how: object) -> None:
    """Write a file's data set alone: no preamble, no mark, no meta information."""
    data = pydicom.dcmread(path)
    data.file_meta = FileMetaDataset()
    plain = Dataset()
    plain.update(data)
    pydicom.dcmwrite(target, plain, **how)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("implicit", [True, False])
def test_a_series_without_preamble_and_suffix_is_read(tmp_path: Path, implicit: bool) -> None:
    (tmp_path / "bare").mkdir()
    for path in write_series(tmp_path / "s", UPRIGHT):
        bare(path, tmp_path / "bare" / path.stem, implicit_vr=implicit, little_endian=True)
        path.unlink()
    (tmp_path / "bare" / "notes").write_text("a text of more than twelve letters, and no DICOM")
    (one,) = found(tmp_path)
    assert len(one.image) == 5
    np.testing.assert_array_equal(read_study(one).voxels[0], stored())


def test_a_gzipped_series_is_read(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    for number, path in enumerate(write_series(tmp_path / "s", UPRIGHT)):
        name = f"{number}.dcm.gz" if number % 2 else f"{number}.gz"
        (tmp_path / "z" / name).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (tmp_path / "z" / "notes.txt.gz").write_bytes(gzip.compress(b"no DICOM" * 40))
    (one,) = found(tmp_path)
    np.testing.assert_array_equal(read_study(one).voxels[0], stored())
    cut = Path(one.image[2])
    cut.write_bytes(cut.read_bytes()[:-9])
    assert "cannot be decoded (EOFError" in refusal(one)


def test_single_frame_enhanced_images_are_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "s", UPRIGHT):
        data = pydicom.dcmread(path)
        shared, frame = Dataset(), Dataset()
        for group, macro, names in (
            (shared, "PixelMeasuresSequence", ("PixelSpacing",)),
            (shared, "PlaneOrientationSequence", ("ImageOrientationPatient",)),
            (shared, "PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")),
            (frame, "PlanePositionSequence", ("ImagePositionPatient",)),
        ):
            item = Dataset()
            for name in names:
                item[name] = data[name]
                delattr(data, name)
            setattr(group, macro, Sequence([item]))
        data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = (
            Sequence([shared]),
            Sequence([frame]),
        )
        data.NumberOfFrames = 1
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
        data.save_as(path)
    (one,) = found(tmp_path)
    scan = read_study(one)
    np.testing.assert_array_equal(scan.voxels[0], stored())
    assert (scan.spacing_mm, scan.scale, scan.offset) == ((3, 2, 2), 2, -1024)


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture (SOPClassUID)"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a secondary capture (ImageType)"),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "DOSE_INFO"]}, "a secondary capture (ImageType)"),
        ({"ConversionType": "WSD", "ImagePositionPatient": None}, "a secondary capture (ConversionType, and no"),
        ({"BurnedInAnnotation": "YES"}, "an image with burned-in text"),
    ],
)
@pytest.mark.parametrize("same_series", [True, False])
def test_what_is_no_scan_is_left_out_by_name_also_within_a_series(
    tmp_path: Path, tags: dict[str, object], named: str, same_series: bool
) -> None:
    write_series(tmp_path / "s", UPRIGHT, SeriesInstanceUID="2.25.7")
    other = "2.25.7" if same_series else "2.25.8"
    write_series(tmp_path / "t", UPRIGHT, 1, SeriesInstanceUID=other, **tags)
    scan, scout = sorted(found(tmp_path, modality="CT"), key=lambda one: one.fault is not None)
    assert isinstance(scout.fault, NoScan)
    assert scout.fault.found.startswith(named)
    np.testing.assert_array_equal(read_study(scan).voxels[0], stored())


def test_secondary_captures_are_scans_where_the_option_says_so_but_screens_are_not(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", UPRIGHT, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", SeriesInstanceUID="2.25.7")
    screen = {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
    write_series(tmp_path / "screen", UPRIGHT, 1, SeriesInstanceUID="2.25.8", **screen)
    assert len(named_by(tmp_path)) == 6
    kept, shown = sorted(found(tmp_path, secondary_captures=True), key=lambda one: one.fault is not None)
    assert isinstance(shown.fault, NoScan)
    np.testing.assert_array_equal(read_study(kept).voxels[0], stored())


def named_by(folder: Path) -> list[str]:
    return [one.fault.found for one in found(folder) if isinstance(one.fault, NoScan)]


def test_a_localizer_without_image_type_is_told_by_its_planes(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", UPRIGHT, SeriesInstanceUID="2.25.7", Modality="MR")
    write_series(tmp_path / "mpr", UPRIGHT[[1, 2, 0, 3]], SeriesInstanceUID="2.25.7", Modality="MR")
    for number, axes in enumerate(([0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3])):
        write_series(tmp_path / f"plane{number}", UPRIGHT[axes], 2, SeriesInstanceUID="2.25.8", Modality="MR")
    assert named_by(tmp_path) == ["a localizer (a few planes that are not parallel)"] * 3
    assert sum(one.fault is None for one in found(tmp_path)) == 2


def test_a_single_ct_image_that_is_not_axial_is_a_localizer_and_one_of_mr_or_of_an_axial_plane_is_not(
    tmp_path: Path,
) -> None:
    coronal = np.array([[2.0, 0, 0, 0], [0, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    write_series(tmp_path / "scout", coronal, 1)
    write_series(tmp_path / "mr", coronal, 1, Modality="MR")
    write_series(tmp_path / "reformat", coronal, 4)
    write_series(tmp_path / "axial", UPRIGHT, 1)
    assert named_by(tmp_path) == ["a localizer (a single CT image that is not axial)"]


def test_a_dicomdir_is_left_out_by_name(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "s", UPRIGHT, 1)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "2.25.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    directory.FileSetID, directory.DirectoryRecordSequence = "X", Sequence([])
    directory.save_as(tmp_path / "DICOMDIR")
    scan, left = sorted(found(tmp_path, modality="CT"), key=lambda one: one.fault is not None)
    assert scan.image == (str(path),)
    assert isinstance(left.fault, NoScan)
    assert left.fault.found == "a DICOMDIR"
