"""Every odd or broken file is read right, or refused for its true reason. TABLE says which."""

from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data.quarantine import BadStudy
from data.readers import read_study
from data.recipes import RECIPES, Recipe
from data.recipes.apply import apply
from data.scan import Scan
from data.sources import find_studies
from data.sources.study import VOLUME_SUFFIXES, Study, suffix_of

READ = "read"
NO_STUDY = "no study"  # the voxels of a pair, found through its header

# A file, or a folder that is one DICOM series, below odd/ -> READ, NO_STUDY or a part of what was found.
TABLE = {
    "empty.nii.gz": "an empty file (0 bytes)",
    # The same CT in many guises.
    "derived/UPPER.NII.GZ": READ,
    "derived/all_nan.nii.gz": "48840 of 48840 voxels that are NaN or infinite",
    "derived/all_zero.nii.gz": "constant intensities (every voxel is 0)",
    "derived/axes_permuted.nii.gz": READ,
    "derived/bad_datatype.nii.gz": "datatype code 9999",
    "derived/bad_magic.nii.gz": "the magic word 0x787878",
    "derived/big_endian.nii.gz": READ,
    "derived/bitpix_mismatch.nii.gz": "bitpix 32 beside datatype int16",
    "derived/bool_like_uint8.nii.gz": "only 2 distinct intensities (0 and 1)",
    "derived/complex64.nii.gz": "complex64 voxels",
    "derived/constant.nii.gz": "constant intensities (every voxel is 7)",
    "derived/dim_negative.nii.gz": "axes of (40, -33, 37) voxels",
    "derived/dim_too_large.nii.gz": "97680 bytes of voxels",
    "derived/dim_zero.nii.gz": "axes of (40, 33, 0) voxels",
    "derived/five_d.nii.gz": "5 axes of (10, 9, 10, 1, 3) voxels",
    "derived/flip_x_same_anatomy.nii.gz": READ,
    "derived/float64.nii.gz": READ,
    "derived/gzip_bad_crc.nii.gz": "a damaged gzip stream (CRC check failed",
    "derived/gzip_corrupt.nii.gz": "a damaged gzip stream",
    "derived/gzip_named.nii": READ,
    "derived/gzip_truncated.nii.gz": "a truncated gzip stream",
    "derived/header_only.nii": "0 bytes of voxels",
    "derived/int32.nii.gz": READ,
    "derived/labels_300.nii.gz": "a label map (62 whole numbers from 0 to 417)",
    "derived/labels_float.nii.gz": "a label map (62 whole numbers from 0 to 117)",
    "derived/labels_negative.nii.gz": READ,
    "derived/labels_noninteger.nii.gz": READ,
    "derived/labels_shifted_origin.nii.gz": "a label map (62 whole numbers from 0 to 117)",
    "derived/labels_wrong_shape.nii.gz": "a label map (56 whole numbers from 0 to 117)",
    "derived/mm_as_metres.nii.gz": "voxels of 9000 x 9000 x 9000 mm",
    "derived/name with space é.nii.gz": READ,
    "derived/nan_affine.nii.gz": "1 values of the affine that are NaN",
    "derived/nan_inf.nii.gz": "54 of 48840 voxels that are NaN or infinite",
    "derived/nifti2.nii.gz": READ,
    "derived/no_orientation.nii.gz": "no orientation",
    "derived/not_gzip.nii.gz": READ,
    "derived/oblique.nii.gz": READ,
    "derived/ok.nii.gz": READ,
    "derived/ok_labels.nii.gz": "a label map (by its name or folder) that is paired with no image",
    "derived/one_slice_3d.nii.gz": READ,
    "derived/pair.hdr": READ,
    "derived/pair.img": NO_STUDY,
    "derived/pair_without_img.hdr": "a header (.hdr) without its voxels (.img)",
    "derived/qform_sform_disagree.nii.gz": "sform and qform that disagree: voxels of 9 x 9 x 9 and of 2 x 3 x 4 mm",
    "derived/random_bytes.nii.gz": "no NIfTI header",
    "derived/raw_truncated.nii": "48840 bytes of voxels",
    "derived/rgb.nii.gz": "RGB voxels",
    "derived/sheared.nii.gz": READ,
    "derived/singleton_4d.nii.gz": READ,
    "derived/singular_affine.nii.gz": "a singular affine",
    "derived/slope_nan.nii.gz": READ,
    "derived/slope_zero_inter.nii.gz": READ,
    "derived/text.nii": "no NIfTI header",
    "derived/thin_2vox.nii.gz": READ,
    "derived/time_4d.nii.gz": "4 axes of (20, 17, 19, 3) voxels",
    "derived/two_d.nii.gz": "2 axes of (40, 33) voxels",
    "derived/uint16_slope1_inter-1024.nii.gz": READ,
    "derived/uint8_scaled.nii.gz": READ,
    "derived/vox_offset_zero.nii.gz": "vox_offset 0, inside the header",
    "derived/zero_pixdim_no_affine.nii.gz": "no orientation",
    # Test files of other readers.
    "nibabel/0.dcm": "a mosaic of slices in one frame",
    "nibabel/anatomical.nii": READ,
    "nibabel/csa_slice_norm.dcm": "no pixel data",
    "nibabel/decimal_rescale.dcm": "constant intensities (every voxel is 0)",
    "nibabel/example4d.nii.gz": "4 axes of (128, 96, 24, 2) voxels",
    "nibabel/example_nifti2.nii.gz": "4 axes of (32, 20, 12, 2) voxels",
    "nibabel/functional.nii": "4 axes of (17, 21, 3, 20) voxels",
    "nibabel/nifti1.hdr": "a header (.hdr) without its voxels (.img)",
    "nibabel/reoriented_anat_moved.nii": READ,
    "nibabel/resampled_anat_moved.nii": "153 of 1071 voxels that are NaN or infinite",
    "nibabel/row_major.dconn.nii": "CIFTI-2 data (intent 3001)",
    "nibabel/slicethickness_empty_string.dcm": "1 slice without SliceThickness",
    "nibabel/standard.nii.gz": "only 2 distinct intensities (0 and 255)",
    "nibabel/test.mgz": "4 axes of (3, 4, 5, 2) voxels",
    "nibabel/tiny.mnc": READ,
    "nifti-rs/27_float64.nii": READ,
    "nifti-rs/27_int8.nii": READ,
    "nifti-rs/27_uint64.nii": READ,
    "nifti-rs/complex_complex64.nii": "complex128 voxels",
    "nifti-rs/fuzz_artifacts_crash-1.nii": "no NIfTI header",
    "nifti-rs/fuzz_artifacts_crash-ed7d46344d7efb3b9f0c374d66d2e02f66cc447d.nii": "no NIfTI header",
    "nifti-rs/minimal.nii": "no orientation",
    "nifti-rs/minimal2.hdr": "a header (.hdr) without its voxels (.img)",
    "nifti-rs/minimal_extended_hdr.nii": "2 axes of (8, 8) voxels",
    "nifti-rs/rgb_3D.nii": "RGB voxels",
    "nifti-rs/rgb_4D.nii": "RGB voxels",
    "nifti-rs/rgba_4D.nii": "RGBA voxels",
    "nifti-rs/zstat1.nii.gz": READ,
    "niivue/axes_AIL.nii.gz": READ,
    "niivue/axes_IAR.nii.gz": READ,
    "niivue/axes_LAS.nii.gz": READ,
    "niivue/axes_PSR.nii.gz": READ,
    "niivue/axes_RPI.nii.gz": READ,
    "niivue/axes_SLP.nii.gz": READ,
    "niivue/complex_image.nii.gz": "complex64 voxels",
    "niivue/ct_perfusion.nii.gz": "RGB voxels",
    "niivue/low_res.nii.gz": "only 2 distinct intensities (0 and 1)",
    "niivue/shear.nii.gz": READ,
    # DICOM, each file as a series of its own.
    "cornerstone_ct/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": "2 frames in one file (multi-frame)",
    "cornerstone_ct/CTImage.dcm_DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm": READ,
    "cornerstone_ct/CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm": READ,
    "cornerstone_ct/CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm": READ,
    "cornerstone_ct/CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm": READ,
    "cornerstone_ct/CTImage.dcm_JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm": READ,
    "cornerstone_ct/CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm": READ,
    "cornerstone_ct/no-pixel-data.dcm": "DICOM of modality SR, not an image series",
    "cornerstone_ct/no-pixel-spacing.dcm": "no PixelSpacing",
    "pydicom/CT_small.dcm": READ,
    "pydicom/ExplVR_BigEnd.dcm": "RGB colour pixels",
    "pydicom/J2K_pixelrep_mismatch.dcm": READ,
    "pydicom/JPEG-lossy.dcm": "no ImagePositionPatient",
    "pydicom/JPGExtended.dcm": "no ImagePositionPatient",
    "pydicom/MR_small.dcm": READ,
    "pydicom/MR_small_RLE.dcm": READ,
    "pydicom/MR_small_bigendian.dcm": READ,
    "pydicom/MR_small_expb.dcm": READ,
    "pydicom/MR_small_implicit.dcm": READ,
    "pydicom/MR_small_jp2klossless.dcm": READ,
    "pydicom/MR_small_jpeg_ls_lossless.dcm": READ,
    "pydicom/MR_small_padded.dcm": READ,
    "pydicom/MR_truncated.dcm": "8130 bytes of pixel data (truncated)",
    "pydicom/SC_rgb_jpeg_gdcm.dcm": "RGB colour pixels",
    "pydicom/SC_rgb_rle_32bit_2frame.dcm": "2 frames in one file (multi-frame); RGB colour pixels",
    "pydicom/badVR.dcm": "DICOM of modality RTDOSE, not an image series",
    "pydicom/examples_palette.dcm": "PALETTE COLOR colour pixels",
    "pydicom/image_dfl.dcm": "no ImagePositionPatient",
    "pydicom/liver_1frame.dcm": "DICOM of modality SEG, not an image series",
    "pydicom/meta_missing_tsyntax.dcm": "no pixel data",
    "pydicom/no_meta.dcm": "no DICOM header ('DICM' mark missing)",
    "pydicom/no_meta_group_length.dcm": "no pixel data",
    "pydicom/rtdose.dcm": "DICOM of modality RTDOSE, not an image series",
    "pydicom/rtplan_truncated.dcm": "DICOM of modality RTPLAN, not an image series",
    "pydicom/test-SR.dcm": "DICOM of modality SR, not an image series",
    # Folders of one series; dicom2nifti refuses two slices, here recipes for volumes do (see THIN).
    "dicom2nifti_slicecount": READ,
    "dicom2nifti_sliceincrement": "gaps of 5 to 10 mm between 4 slices (missing slices?)",
    "dicom2nifti_sliceorientation": "mixed orientations (2 of 4 slices differ from the first)",
}

# Read as they are, but too thin for a recipe of volumes: slices along the thinnest axis.
THIN = {"derived/one_slice_3d.nii.gz": 1, "derived/thin_2vox.nii.gz": 2, "dicom2nifti_slicecount": 2}

# As the label of derived/ok.nii.gz: READ with its largest id, or what was found.
LABELS = {
    "ok_labels": 117,
    "labels_float": 117,
    "labels_300": 417,
    "labels_negative": "values from -1 to 116",
    "labels_noninteger": "values that are not integers, such as",
    # 37 mm along each of three axes.
    "labels_shifted_origin": "an affine that puts it 64.1 mm off its image",
    "labels_wrong_shape": "shape (34, 33, 40)",
    "gzip_truncated": "a truncated gzip stream",
}

VOLUME = Recipe(name="odd", kind="volume", spacing_mm=(9, 9, 9), window=(0.5, 99.5), window_kind="percentile")
# Stored in other ways than derived/ok.nii.gz, with the same anatomy and values.
SAME_AS_OK = (
    "UPPER.NII.GZ", "axes_permuted.nii.gz", "big_endian.nii.gz", "flip_x_same_anatomy.nii.gz", "gzip_named.nii",
    "int32.nii.gz", "name with space é.nii.gz", "nifti2.nii.gz", "not_gzip.nii.gz", "singleton_4d.nii.gz",
    "slope_nan.nii.gz", "slope_zero_inter.nii.gz", "uint16_slope1_inter-1024.nii.gz",
)  # fmt: skip


@cache
def _volumes(odd: Path) -> dict[str, Study]:
    return {study.key: study for study in find_studies(str(odd), "volumes")}


def _study(odd: Path, name: str) -> Study:
    if (odd / name).is_dir():
        return Study(name, "dicom", tuple(str(file) for file in sorted((odd / name).glob("*.dcm"))), "", "odd")
    if suffix_of(name, VOLUME_SUFFIXES):
        return _volumes(odd)[name]
    return Study(name, "dicom", (str(odd / name),), "", "odd")


def _volume(scan: Scan) -> Scan:
    (volume,) = apply(VOLUME, scan)
    return volume


def _affine(scan: Scan) -> np.ndarray:
    assert scan.affine is not None
    return scan.affine


@pytest.fixture
def odd(scans: Path) -> Path:
    return scans / "odd"


def test_the_table_says_something_about_every_odd_file(odd: Path) -> None:
    files = {file.relative_to(odd).as_posix() for file in odd.rglob("*") if file.is_file()}
    files = {name for name in files if "LICENSE" not in name}
    told = {name for name in files if name in TABLE or Path(name).parent.as_posix() in TABLE}
    assert files - told == set()
    assert {name for name in TABLE if not (odd / name).exists()} == set()


@pytest.mark.parametrize("name", [name for name, verdict in TABLE.items() if verdict == READ])
def test_an_odd_but_sound_file_comes_out_of_a_recipe(odd: Path, name: str) -> None:
    scan = read_study(_study(odd, name))
    assert scan.voxels.shape[0] == 1
    assert scan.affine is not None
    tiny = max(scan.size) * max(scan.spacing_mm) < 9
    (volume,) = apply(VOLUME.with_fields(spacing_mm=scan.spacing_mm) if tiny else VOLUME, scan)
    np.testing.assert_allclose(volume.spacing_mm, scan.spacing_mm if tiny else (9, 9, 9), rtol=1e-5)
    assert (volume.voxels.min(), volume.voxels.max()) == (0, 65535)


@pytest.mark.parametrize("name", [name for name, verdict in TABLE.items() if verdict not in (READ, NO_STUDY)])
def test_a_damaged_file_is_refused_for_its_true_reason_and_tells_no_name(odd: Path, name: str) -> None:
    with pytest.raises(BadStudy) as caught:
        read_study(_study(odd, name))
    assert TABLE[name] in caught.value.found
    assert caught.value.expected
    assert caught.value.remedy
    assert Path(name).name not in str(caught.value)
    for secret in _identifiers(odd / name):
        assert secret not in str(caught.value)


def _identifiers(path: Path) -> list[str]:
    """List the names, ids and dates of a DICOM file."""
    if path.suffix != ".dcm":
        return []
    data = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    tags = ("PatientName", "PatientID", "StudyDate", "SeriesInstanceUID", "SOPInstanceUID", "InstitutionName")
    return [text for text in (str(data.get(tag, "")) for tag in tags) if len(text) > 2]


def test_the_voxels_of_a_pair_are_no_study_of_their_own(odd: Path) -> None:
    assert [name for name, verdict in TABLE.items() if verdict == NO_STUDY and name in _volumes(odd)] == []


@pytest.mark.parametrize("name", THIN)
def test_a_thin_volume_is_refused_by_a_recipe_of_volumes_only(odd: Path, name: str) -> None:
    scan = read_study(_study(odd, name)).with_(modality="MR")
    with pytest.raises(BadStudy, match=f"only {THIN[name]} voxels thick.*at least 4.*recipe for slices"):
        apply(RECIPES["mri_volume"], scan)
    slices = RECIPES["ct_abdomen_slices"].with_fields(
        modality=None, window=(0, 100), window_kind="percentile", spacing_mm=None
    )
    assert len(apply(slices, scan)) > 0


@pytest.mark.parametrize("name", SAME_AS_OK)
def test_the_same_anatomy_stored_in_another_way_comes_out_the_same(odd: Path, name: str) -> None:
    ok = _volume(read_study(_study(odd, "derived/ok.nii.gz")))
    other = _volume(read_study(_study(odd, f"derived/{name}")))
    np.testing.assert_array_equal(other.voxels, ok.voxels)
    np.testing.assert_allclose(_affine(other), _affine(ok), atol=1e-4)


def test_eight_bit_storage_with_a_slope_differs_by_half_a_level_at_most(odd: Path) -> None:
    ok = read_study(_study(odd, "derived/ok.nii.gz"))
    scaled = read_study(_study(odd, "derived/uint8_scaled.nii.gz"))
    values = scaled.voxels * scaled.scale + scaled.offset
    assert np.abs(values - ok.voxels).max() <= scaled.scale / 2 + 1e-3


@pytest.mark.parametrize("name", LABELS)
def test_a_label_keeps_its_values_or_is_refused_for_its_true_reason(odd: Path, name: str) -> None:
    image = _study(odd, "derived/ok.nii.gz")
    study = Study("", "volume", image.image, "", "odd", label=str(odd / f"derived/{name}.nii.gz"))
    verdict = LABELS[name]
    if isinstance(verdict, int):
        label = read_study(study).label
        assert label is not None
        assert label.max() == verdict
        assert label.dtype == (np.uint8 if verdict <= 255 else np.uint16)
        return
    with pytest.raises(BadStudy) as caught:
        read_study(study)
    assert caught.value.found.startswith("label: ")
    assert verdict in caught.value.found


@pytest.mark.slow
def test_the_head_stored_in_six_axis_orders_comes_out_as_one_volume(odd: Path) -> None:
    """Voxels are equal bit for bit; affines to 1e-5 mm, the precision of the files' float32 headers.

    The files hold the same bytes in another order, flips and swaps are exact, and so the resampling grids agree.
    """
    names = [name for name in TABLE if name.startswith("niivue/axes_")]
    assert len(names) == 6
    for spacing in (None, (2.0, 2.0, 2.0)):
        recipe = RECIPES["mri_volume"].with_fields(spacing_mm=spacing)
        volumes = [apply(recipe, read_study(_study(odd, name)))[0] for name in names]
        assert volumes[0].size == ((67, 79, 64) if spacing is None else (79, 94, 76))
        for volume in volumes[1:]:
            np.testing.assert_array_equal(volume.voxels, volumes[0].voxels)
            np.testing.assert_allclose(_affine(volume), _affine(volumes[0]), atol=1e-5)


@pytest.mark.parametrize(("folder", "pattern"), [("pydicom", "MR_small*.dcm"), ("cornerstone_ct", "CTImage*.dcm")])
def test_one_slice_in_many_lossless_transfer_syntaxes_has_the_same_pixels(
    odd: Path, folder: str, pattern: str
) -> None:
    files = [file for file in sorted((odd / folder).glob(pattern)) if "JPEGProcess1Transfer" not in file.name]
    scans = [read_study(Study("", "dicom", (str(file),), "", "odd")) for file in files]
    assert len(scans) >= 5
    for scan in scans[1:]:
        np.testing.assert_array_equal(scan.voxels, scans[0].voxels)
        assert (scan.scale, scan.offset, scan.spacing_mm) == (scans[0].scale, scans[0].offset, scans[0].spacing_mm)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_a_compressed_slice_of_another_size_than_its_header_is_refused(odd: Path, tmp_path: Path, name: str) -> None:
    """GDCM ends the process on such a file, so that the size is compared before it decodes."""
    data = pydicom.dcmread(odd / "pydicom" / name)
    data.Columns = 640
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(BadStudy, match=r"JPEG frame of 64 x 64.*64 x 640|cannot be decoded"):
        read_study(Study("", "dicom", (str(tmp_path / "a.dcm"),), "", "odd"))
