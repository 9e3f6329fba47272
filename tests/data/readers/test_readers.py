"""Readers: world points keep their intensity through every format, and damaged files are told from healthy ones."""

import gzip
import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its own documents use)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.affines import from_matvec
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data.quarantine import BadStudy
from data.readers import content_digest, read_study, read_volume
from data.readers.gzipped import inflate
from data.scan import Scan, is_sheared
from data.sources import find_studies
from data.sources.study import Study

RNG = np.random.default_rng(7)
VOXELS = RNG.integers(-1000, 1000, (7, 6, 5)).astype(np.int16)  # x, y, z
PLANTED = ("Doe^Jane", "ID-4711", "19501224", "General Hospital")


def at(scan: Scan, world: np.ndarray) -> float:
    """The intensity at a world point that is the centre of a voxel."""
    assert scan.affine is not None
    d, h, w, _ = np.rint(np.linalg.inv(scan.affine) @ [*world, 1]).astype(int)
    return float(scan.voxels[0, d, h, w] * scan.scale + scan.offset)


def study(*images: Path, kind: Literal["volume", "dicom", "picture"] = "volume", label: Path | None = None) -> Study:
    return Study("", kind, tuple(str(image) for image in images), "", "tests", label=str(label) if label else None)


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.Nifti1Image(voxels, affine).to_filename(path)
    return path


OBLIQUE = from_matvec(
    np.array([[0.9, -0.3, 0.1], [0.3, 0.95, -0.05], [-0.08, 0.08, 0.99]]) @ np.diag([-2, 1.5, 3]), [10, -20, 30]
)


def test_a_nifti_voxel_lies_where_its_affine_says(tmp_path: Path) -> None:
    scan = read_study(study(save_nifti(tmp_path / "a.nii.gz", VOXELS, OBLIQUE)))
    assert scan.voxels.shape == (1, 5, 6, 7)
    for i, j, k in itertools.product((0, 6), (0, 5), (0, 4)):
        assert at(scan, (OBLIQUE @ [i, j, k, 1])[:3]) == VOXELS[i, j, k]


def test_a_nrrd_voxel_lies_where_itk_says_after_lps_becomes_ras(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(VOXELS.transpose()))
    image.SetSpacing((2.0, 1.5, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        scan = read_study(study(tmp_path / name))
        assert scan.spacing_mm == pytest.approx((3, 1.5, 2))
        for index in itertools.product((0, 6), (0, 5), (0, 4)):
            x, y, z = image.TransformIndexToPhysicalPoint(index)
            assert at(scan, np.array([-x, -y, z])) == VOXELS[index]


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_truncated_itk_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path), useCompression=True)
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(BadStudy, match=r"cannot read.*whole NRRD or MetaImage"):
        read_study(study(path))


def test_a_nrrd_without_a_space_has_no_orientation(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + VOXELS.tobytes())
    with pytest.raises(BadStudy, match=r"no orientation \(no 'space' field\)"):
        read_study(study(tmp_path / "a.nrrd"))


def test_an_mgh_voxel_lies_where_its_affine_says(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 3], [0, 0, 1, -4], [0, -1, 0, 5], [0, 0, 0, 1]])
    nib.save(nib.MGHImage(VOXELS, affine), tmp_path / "a.mgz")  # pyright: ignore[reportArgumentType]
    scan = read_study(study(tmp_path / "a.mgz"))
    for i, j, k in itertools.product((0, 6), (0, 5), (0, 4)):
        assert at(scan, (affine @ [i, j, k, 1])[:3]) == VOXELS[i, j, k]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 347), byte=st.integers(0, 255))
@example(place=42, byte=1)  # a grid of one column, beside voxels of seven
def test_a_header_with_any_wrong_byte_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.nii"
    content = bytearray(nib.Nifti1Image(VOXELS, OBLIQUE).to_bytes())
    content[place] = byte
    path.write_bytes(content)
    try:
        scan = read_study(study(path))
    except BadStudy:
        return
    assert scan.voxels.size == VOXELS.size


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_gzip_stream_with_any_flipped_bit_in_its_body_is_refused(place: int, bit: int) -> None:
    content = bytearray(gzip.compress(VOXELS.tobytes(), mtime=0))
    content[10 + place % (len(content) - 10)] ^= 1 << bit
    with pytest.raises(BadStudy, match="gzip stream"):
        inflate(bytes(content))


def test_a_sform_in_another_space_than_the_qform_is_right_as_long_as_sizes_agree(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([2.0, 2, 2, 1]))
    template = np.array([[0.0, -2, 0, 50], [2, 0, 0, 60], [0, 0, 2, 70], [0, 0, 0, 1]])
    image.set_sform(template, code=4)
    image.set_qform(np.diag([2.0, 2, 2, 1]), code=1)
    image.to_filename(tmp_path / "a.nii")
    assert at(read_study(study(tmp_path / "a.nii")), (template @ [6, 5, 4, 1])[:3]) == VOXELS[6, 5, 4]
    image.set_qform(np.diag([2.0, 2, 2, 1]), code=4)
    image.to_filename(tmp_path / "b.nii")
    with pytest.raises(BadStudy, match=r"disagree.*far corners \d+ mm apart"):
        read_study(study(tmp_path / "b.nii"))


def test_metres_become_millimetres(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([0.002, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    assert read_study(study(tmp_path / "a.nii")).spacing_mm == pytest.approx((3, 2, 2))


def test_a_label_stored_in_other_axes_is_laid_onto_its_image(tmp_path: Path) -> None:
    image = save_nifti(tmp_path / "a.nii", VOXELS, OBLIQUE)
    label = np.abs(VOXELS) // 100
    flipped = OBLIQUE @ np.array([[0, -1, 0, 6], [1, 0, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1]])
    other = save_nifti(tmp_path / "b.nii", label.transpose(1, 0, 2)[:, ::-1, ::-1], flipped)
    scan = read_study(study(image, label=other))
    np.testing.assert_array_equal(scan.label, label.transpose())


def test_channels_of_a_study_are_joined_and_must_share_a_grid(tmp_path: Path) -> None:
    paths = [save_nifti(tmp_path / f"a{c}.nii", VOXELS + np.int16(c), OBLIQUE) for c in range(2)]
    scan = read_study(study(*paths))
    np.testing.assert_array_equal(scan.voxels[1] - scan.voxels[0], 1)
    shifted = save_nifti(tmp_path / "c.nii", VOXELS, OBLIQUE + np.eye(4)[:, [3, 0, 1, 2]])
    with pytest.raises(BadStudy, match=r"channels.*different affines"):
        read_study(study(paths[0], shifted))


def test_one_scan_in_two_types_has_one_digest_and_another_scan_another(tmp_path: Path) -> None:
    short = read_study(study(save_nifti(tmp_path / "a.nii.gz", VOXELS, OBLIQUE)))
    real = read_study(study(save_nifti(tmp_path / "b.nii", VOXELS.astype(np.float64), np.eye(4))))
    changed = VOXELS.copy()
    changed[3, 3, 3] += 1
    other = read_study(study(save_nifti(tmp_path / "c.nii", changed, OBLIQUE)))
    assert content_digest(short) == content_digest(real)
    assert content_digest(short) != content_digest(other)


def test_a_bad_study_survives_a_trip_to_another_process() -> None:
    fault = pickle.loads(pickle.dumps(BadStudy("3 axes", "4", "add one")))
    assert (fault.found, fault.expected, fault.remedy) == ("3 axes", "4", "add one")
    assert str(fault) == "3 axes; expected 4; add one"


def test_a_rescale_of_the_source_takes_stored_values_to_hu(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", VOXELS, OBLIQUE)
    scan = read_study(Study("", "volume", (str(path),), "", "tests", rescale=(2.0, -1024.0)))
    assert at(scan, OBLIQUE[:3, 3]) == VOXELS[0, 0, 0] * 2 - 1024


@pytest.mark.parametrize(("dtype", "rescale"), [(np.uint16, (1.0, -32768.0)), (np.uint8, (4.0, -500.0))])
def test_a_rescale_takes_the_numbers_of_a_picture_to_hu(tmp_path: Path, dtype, rescale: tuple[float, float]) -> None:
    hu = np.arange(-100, 100, 4, dtype=np.int64).reshape(5, 10)
    Image.fromarray(((hu - rescale[1]) / rescale[0]).astype(dtype)).save(tmp_path / "a.png")
    scan = read_study(replace(study(tmp_path / "a.png", kind="picture"), rescale=rescale))
    np.testing.assert_array_equal(scan.voxels[0] * scan.scale + scan.offset, hu)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("I;16", 1)])
def test_pictures_of_any_mode_become_channels_first_in_unit_range(tmp_path: Path, mode: str, channels: int) -> None:
    grey = np.linspace(0, 255, 48).reshape(6, 8)
    if mode == "I;16":
        Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "a.png")
    else:
        Image.fromarray(grey.astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    scan = read_study(study(tmp_path / "a.png", kind="picture"))
    assert scan.voxels.shape == (channels, 6, 8)
    np.testing.assert_allclose(scan.voxels[0] * scan.scale, grey / 255, atol=1 / 255)
    assert scan.affine is None


def test_damaged_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1000])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (8, 8), 25).save(tmp_path / "flat.png")
    for name, text in (("cut.jpg", "truncated"), ("text.png", "no picture"), ("flat.png", "every voxel is 25")):
        with pytest.raises(BadStudy, match=text):
            read_study(study(tmp_path / name, kind="picture"))


def write_series(folder: Path, affine: np.ndarray, num_slices: int = 5, **tags: object) -> list[Path]:
    """Write VOXELS[..., k] as slices; ``affine`` takes (column, row, slice) to LPS mm. Names hide the order."""
    folder.mkdir()
    series = generate_uid()
    paths = []
    for k in range(num_slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        data.PatientName, data.PatientID, data.StudyDate, data.InstitutionName = PLANTED
        data.Modality, data.SeriesInstanceUID, data.SOPClassUID = "CT", series, CTImageStorage
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        size = np.linalg.norm(affine[:3, :3], axis=0)
        data.PixelSpacing = [float(size[1]), float(size[0])]
        data.ImageOrientationPatient = [*(affine[:3, 0] / size[0]), *(affine[:3, 1] / size[1])]
        data.ImagePositionPatient = list((affine @ [0, 0, k, 1])[:3])
        data.RescaleSlope, data.RescaleIntercept = 2, -1024
        data.Rows, data.Columns, data.SamplesPerPixel = 6, 7, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelData = np.ascontiguousarray(VOXELS[:, :, k].transpose()).tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        paths.append(folder / f"{(k * 3) % num_slices}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


ROTATED = np.array([[0.6, -0.8, 0, 11], [0.8, 0.6, 0, -7], [0, 0, 1, 5], [0, 0, 0, 1]]) @ np.diag([2, 1.5, 4, 1])
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


@pytest.mark.parametrize("reverse", [False, True])
def test_an_oblique_dicom_series_is_ordered_by_position_and_comes_in_hu(tmp_path: Path, reverse: bool) -> None:
    affine = ROTATED @ np.diag([1, 1, -1, 1]) if reverse else ROTATED
    write_series(tmp_path / "s", affine)
    (found,) = find_studies(str(tmp_path / "s"), "dicom")
    scan = read_study(found)
    assert (scan.modality, scan.voxels.shape) == ("CT", (1, 5, 6, 7))
    assert scan.spacing_mm == pytest.approx((4, 1.5, 2))
    for i, j, k in itertools.product((0, 6), (0, 5), range(5)):
        world = LPS_TO_RAS @ affine @ [i, j, k, 1]
        assert at(scan, world[:3]) == VOXELS[i, j, k] * 2 - 1024


def test_a_gantry_tilt_becomes_a_sheared_affine_that_places_every_voxel(tmp_path: Path) -> None:
    tilted = np.diag([1.0, 1, 1, 1]) + 0
    tilted[1, 2] = 0.4
    affine = tilted @ np.diag([2, 1.5, 4, 1])
    scan = read_study(study(*write_series(tmp_path / "s", affine), kind="dicom"))
    assert scan.affine is not None
    assert is_sheared(scan.affine)
    for i, j, k in itertools.product((0, 6), (0, 5), range(5)):
        assert at(scan, (LPS_TO_RAS @ affine @ [i, j, k, 1])[:3]) == VOXELS[i, j, k] * 2 - 1024


def change(path: Path, **tags: object) -> None:
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)


def test_irregular_dicom_series_are_refused_for_their_true_reason(tmp_path: Path) -> None:
    def fault(name: str, *, drop: int | None = None, **tags: object) -> str:
        paths = write_series(tmp_path / name, ROTATED)
        if tags:
            change(paths[2], **tags)
        if drop is not None:
            paths.pop(drop)
        with pytest.raises(BadStudy) as caught:
            read_study(study(*paths, kind="dicom"))
        assert not any(secret in str(caught.value) for secret in PLANTED)
        return caught.value.found

    position = [float(x) for x in (ROTATED @ [0, 0, 3, 1])[:3]]
    aside = [float(x) for x in (ROTATED @ [2, 0, 2, 1])[:3]]
    assert "gaps of 4 to 8 mm between 4 slices" in fault("missing", drop=2)
    assert "1 of 5 slices at the position of another" in fault("twice", ImagePositionPatient=position)
    assert "off a straight line" in fault("bent", ImagePositionPatient=aside)
    assert "mixed orientations (1 of 5" in fault("turned", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    assert "pixel spacings from 1.5 to 3 mm" in fault("sizes", PixelSpacing=[3, 3])
    assert "4 bytes of pixel data (truncated)" in fault("cut", PixelData=bytes(4))
    assert "MONOCHROME" not in fault("colour", PhotometricInterpretation="YBR_FULL")
    assert "modality SR" in fault("report", Modality="SR")


def test_slopes_that_differ_between_slices_are_applied_slice_by_slice(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", ROTATED)
    change(paths[1], RescaleSlope=3)
    scan = read_study(study(*paths, kind="dicom"))
    assert at(scan, (LPS_TO_RAS @ ROTATED @ [1, 1, 1, 1])[:3]) == VOXELS[1, 1, 1] * 3 - 1024
    assert at(scan, (LPS_TO_RAS @ ROTATED @ [1, 1, 2, 1])[:3]) == VOXELS[1, 1, 2] * 2 - 1024


def test_an_xray_becomes_a_picture_in_which_bones_are_bright(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "s", ROTATED, 1, Modality="DX", PhotometricInterpretation="MONOCHROME1")
    scan = read_study(study(path, kind="dicom"))
    stored = VOXELS[:, :, 0].transpose()
    assert (scan.modality, scan.affine) == ("XR", None)
    np.testing.assert_array_equal(scan.voxels[0], stored.max() - stored)


def test_nothing_of_a_dicom_header_is_kept_in_a_scan(tmp_path: Path) -> None:
    scan = read_study(study(*write_series(tmp_path / "s", ROTATED), kind="dicom"))
    assert not any(secret.encode() in pickle.dumps(scan) for secret in PLANTED)


def test_real_files_in_every_format_have_the_size_and_range_of_the_manifest(scans: Path) -> None:
    expected = {
        "vtkjs_lidc/LIDC2.mha": ((133, 256, 256), (2.5, 1.40625, 1.40625), (0, 255)),
        "pyradiomics/brain1_image.nrrd": ((25, 256, 256), (6.5, 0.78125, 0.78125), (0, 3057)),
        "ibsi_sts/STS_001/CT_image_ds.nii.gz": ((59, 101, 99), (3.27, 1.953, 1.953), (-1000, 1359)),
        "open_ms/long_patient01/study1_FLAIR.nii.gz": ((36, 320, 320), (4, 0.7188, 0.7187), (0, 658)),
    }
    for name, (size, spacing, limits) in expected.items():
        scan = read_volume(str(scans / name))
        assert scan.size == size
        assert scan.spacing_mm == pytest.approx(spacing, abs=1e-3)
        assert (scan.voxels.min(), scan.voxels.max()) == limits


@pytest.mark.slow
def test_the_organ_labels_of_a_real_dicom_series_fit_it_although_they_are_stored_mirrored(scans: Path) -> None:
    folder = scans / "totalsegmentator"
    (found,) = find_studies(str(folder / "example_ct_dicom"), "dicom")
    scan = read_study(Study("", "dicom", found.image, "", "", label=str(folder / "example_ct_dicom_labels.nii.gz")))
    assert scan.label is not None
    assert scan.voxels.shape == (1, 20, 512, 512)
    hu = scan.voxels[0] * scan.scale + scan.offset
    liver, bone = hu[scan.label == 5], hu[(scan.label >= 26) & (scan.label <= 50)]
    assert 0 < np.median(liver) < 200
    assert np.median(bone) > np.median(liver)
