"""Volumes and pictures as other people's tools write them: read right, or refused for their true reason."""

import bz2
import gzip
import io
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from PIL import Image, TiffImagePlugin

from data.quarantine import BadStudy
from data.readers import read_study
from data.readers.labels import label_ids
from data.sources import SourceOptions, find_studies
from data.sources.study import Study
from tests.data.readers.test_readers import OBLIQUE, VOXELS, save_nifti, study

PIXELS = np.random.default_rng(3).integers(0, 255, (20, 24, 3), dtype=np.uint8)


def refusal(one: Study) -> str:
    with pytest.raises(BadStudy) as caught:
        read_study(one)
    assert "/" not in str(caught.value).replace("NaN or", "")
    return str(caught.value)


@pytest.mark.parametrize(
    ("offset", "where"),
    [(float("nan"), "no place in a file"), (float("inf"), "no place in a file"), (-352.0, "inside the header")],
)
def test_an_offset_that_is_no_place_in_a_file_is_refused(tmp_path: Path, offset: float, where: str) -> None:
    content = bytearray(nib.Nifti1Image(VOXELS, OBLIQUE).to_bytes())
    content[108:112] = struct.pack("<f", offset)
    (tmp_path / "a.nii").write_bytes(content)
    assert refusal(study(tmp_path / "a.nii")).startswith(f"vox_offset {offset:g}, {where}; expected 352 or more")


@pytest.mark.parametrize(("qfac", "sign"), [(0.0, 1), (1.0, 1), (-1.0, -1), (7.0, 1), (-2.0, -1)])
def test_every_qfac_but_a_negative_one_counts_as_one(tmp_path: Path, qfac: float, sign: int) -> None:
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_zooms((2, 3, 4))
    image.set_qform(np.diag([2.0, 3, 4, 1]), code=1)
    content = bytearray(image.to_bytes())
    content[76:80] = struct.pack("<f", qfac)
    (tmp_path / "a.nii").write_bytes(content)
    scan = read_study(study(tmp_path / "a.nii"))
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine[:3, :3], [[0, 0, 2], [0, 3, 0], [4 * sign, 0, 0]])


def write_metaimage(path: Path, **fields: str | None) -> Path:
    lines = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
        "ElementSpacing": "2 2 3", "DimSize": "7 6 5", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    } | fields  # fmt: skip
    lines["ElementDataFile"] = lines.pop("ElementDataFile")  # it ends the header
    header = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None)
    path.write_bytes(header.encode() + np.ascontiguousarray(VOXELS.transpose()).tobytes())
    return path


def write_nrrd(path: Path, body: bytes | None = None, **fields: str | None) -> Path:
    lines = {
        "type": "int16", "dimension": "3", "space": "left-posterior-superior", "sizes": "7 6 5",
        "space directions": "(2,0,0) (0,2,0) (0,0,3)", "endian": "little", "encoding": "raw",
        "space origin": "(0,0,0)",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    header = "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None)
    voxels = np.ascontiguousarray(VOXELS.transpose()).tobytes()
    path.write_bytes(f"NRRD0005\n{header}\n".encode() + (voxels if body is None else body))
    return path


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"NDims": "93"}, "93 axes of (7, 6, 5) voxels"),
        ({"NDims": "-1"}, "no number of axes"),
        ({"NDims": "4", "DimSize": "7 6 5 2"}, "4 axes of (7, 6, 5, 2) voxels"),
        ({"DimSize": "7 6"}, "3 axes of (7, 6) voxels"),
        ({"DimSize": "7 0 5"}, "axes of (7, 0, 5) voxels"),
        ({"DimSize": "70000 60000 50000"}, "420 bytes of voxels; expected 420000000000000 bytes"),
        ({"CompressedData": "True", "DimSize": "700 600 500"}, "420 bytes of voxels; expected 420000000 bytes"),
        ({"ElementSpacing": None}, "no voxel size (neither ElementSpacing nor ElementSize)"),
        ({"ElementSpacing": "2 0 3"}, "ElementSpacing 2 x 0 x 3"),
        ({"ElementSpacing": "2 -2 3"}, "ElementSpacing 2 x -2 x 3"),
        ({"ElementSpacing": "2 2"}, "ElementSpacing that is not 3 finite numbers"),
        ({"TransformMatrix": "1 0 0 0 1 0"}, "TransformMatrix that is not 9 finite numbers"),
        ({"Offset": "0 nan 0"}, "Offset that is not 3 finite numbers"),
        ({"ElementType": "MET_STRING"}, "an ElementType that MetaImage does not define"),
        ({"ElementDataFile": None}, "no field ElementDataFile in the header"),
        ({"ElementDataFile": "x.raw"}, "a header without its voxels, which lie in another file"),
    ],
)
def test_a_metaimage_header_is_refused_before_itk_dies_of_it_or_guesses(
    tmp_path: Path, fields: dict[str, str | None], found: str
) -> None:
    assert refusal(study(write_metaimage(tmp_path / "a.mha", **fields))).startswith(found)


def test_a_sound_metaimage_is_read_also_with_element_size_alone(tmp_path: Path) -> None:
    for name, fields in (("a", {}), ("b", {"ElementSpacing": None, "ElementSize": "2 2 3"})):
        scan = read_study(study(write_metaimage(tmp_path / f"{name}.mha", **fields)))
        assert scan.spacing_mm == (3, 2, 2)
        np.testing.assert_array_equal(scan.voxels[0], VOXELS.transpose())


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"space": "3D-right-handed"}, "no orientation (space 3d-right-handed, in which left and right are unknown)"),
        ({"space": "scanner-xyz"}, "no orientation (space scanner-xyz"),
        ({"space": "unheard-of"}, "no orientation (a space that NRRD does not define)"),
        ({"space": None, "space_dimension": "3"}, "no orientation (no 'space' field)"),
        ({"space_directions": None}, "no voxel size (neither 'space directions' nor 'spacings')"),
        ({"space_directions": "none (0,2,0) (0,0,3)"}, "'space directions' that are not three vectors"),
        ({"space_directions": "(nan,0,0) (0,2,0) (0,0,3)"}, "'space directions' of nan x 2 x 3 mm"),
        ({"space_directions": "(0,0,0) (0,2,0) (0,0,3)"}, "'space directions' of 0 x 2 x 3 mm"),
        ({"space_directions": "(2,0) (0,2) (0,0)"}, "'space directions' that are not three vectors"),
        ({"space_directions": "(a,0,0) (0,2,0) (0,0,3)"}, "'space directions' that are not three vectors"),
        ({"space_units": '"um" "um" "um"'}, "'space units' other than mm"),
        ({"encoding": "zrl"}, "no encoding that NRRD defines"),
        ({"sizes": "70000 60000 50000"}, "420 bytes of voxels; expected 420000000000000 bytes"),
        ({"sizes": "7 6"}, "2 sizes beside another dimension"),
        ({"type": "block"}, "a type of voxels that is no number"),
        ({"data_file": "x.raw"}, "a header without its voxels, which lie in another file"),
    ],
)
def test_a_nrrd_header_that_leaves_something_to_guess_is_refused(
    tmp_path: Path, fields: dict[str, str | None], found: str
) -> None:
    assert refusal(study(write_nrrd(tmp_path / "a.nrrd", **fields))).startswith(found)


@pytest.mark.parametrize("name", ["%02d.raw 1 5 1", "LIST\n1.raw\n2.raw"])
def test_a_header_of_several_files_of_which_one_is_missing_says_so(tmp_path: Path, name: str) -> None:
    for path in (
        write_metaimage(tmp_path / "a.mhd", ElementDataFile=name),
        write_nrrd(tmp_path / "a.nhdr", data_file=name.replace("\n", " 2\n", 1)),
    ):
        text = refusal(study(path))
        assert text.startswith("a header whose voxels lie in several files, one of which is missing"), path.name
        assert text.endswith("add the files that the header lists")


def test_a_bzip2_nrrd_names_its_codec(tmp_path: Path) -> None:
    for encoding in ("bzip2", "bz2"):
        path = write_nrrd(tmp_path / "a.nrrd", bz2.compress(VOXELS.tobytes()), encoding=encoding)
        assert refusal(study(path)).startswith(f"voxels of encoding {encoding}, which nothing here decodes")


@pytest.mark.parametrize(
    ("space", "signs"),
    [("LPS", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("RAS", (1, 1, 1)), ("LAS", (-1, 1, 1))],
)
def test_known_nrrd_spaces_are_obeyed(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    scan = read_study(study(write_nrrd(tmp_path / "a.nrrd", space=space)))
    assert scan.affine is not None
    right, anterior, superior = scan.affine[0, 2], scan.affine[1, 1], scan.affine[2, 0]
    assert (right, anterior, superior) == (2 * signs[0], 2 * signs[1], 3 * signs[2])


def test_a_file_that_was_compressed_twice_is_named(tmp_path: Path) -> None:
    nifti = gzip.compress(gzip.compress(nib.Nifti1Image(VOXELS, OBLIQUE).to_bytes()))
    for name in ("a.nii.gz", "b.nii", "c.mgz"):
        (tmp_path / name).write_bytes(nifti)
        assert refusal(study(tmp_path / name)).startswith("a file that was compressed twice (gzip in gzip)")


PAGE = b"<!DOCTYPE html>\n<html><body>404 not found: Doe, Jane</body></html>" * 9
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("a.txt", "x" * 600)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (PAGE, "a web page under another format's suffix"),
        (b"\xef\xbb\xbf\r\n" + PAGE, "a web page under another format's suffix"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>' * 9, "an XML text under"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n" * 9, "a Git LFS pointer under"),
        (ZIP.getvalue(), "a ZIP archive under"),
        (bz2.compress(bytes(range(256)) * 20), "a bzip2 stream under"),
        (b"", "an empty file (0 bytes)"),
        (bytes(5000), "nothing but zeros"),
        (b'{"labels": {"1": "Doe"}}' * 30, "a JSON text under"),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mgz", "a.dcm"])
def test_a_file_of_another_kind_is_named_whatever_its_suffix(
    tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    (tmp_path / name).write_bytes(content)
    kind = "dicom" if name.endswith("dcm") else "picture" if name[-3:] in ("jpg", "png") else "volume"
    text = refusal(study(tmp_path / name, kind=kind))
    assert text.startswith(found)
    assert "Doe" not in text
    assert "export" not in text


def test_absurd_intensities_are_refused(tmp_path: Path) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[3, 3, 3] = 3e38
    assert refusal(study(save_nifti(tmp_path / "a.nii", voxels, OBLIQUE))).startswith("intensities from")
    image = nib.Nifti1Image(VOXELS, OBLIQUE)
    image.header.set_slope_inter(1e30, 0)
    image.to_filename(tmp_path / "b.nii")
    (tmp_path / "b.nii").write_bytes(_with_slope(image, 1e30))
    assert "at most 1e+12" in refusal(study(tmp_path / "b.nii"))
    assert (
        read_study(study(save_nifti(tmp_path / "c.nii", VOXELS.astype(np.float32) * 1e6, OBLIQUE))).voxels.max() > 1e8
    )


def _with_slope(image: nib.Nifti1Image, slope: float) -> bytes:
    content = bytearray(image.to_bytes())
    content[112:116] = struct.pack("<f", slope)
    return bytes(content)


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (0, 1, 0)])
@pytest.mark.parametrize("off", [-1e-6, 1e-6])
def test_a_label_of_an_image_turned_by_45_degrees_is_aligned(
    tmp_path: Path, axis: tuple[int, int, int], off: float
) -> None:
    turned = [_turned(axis, np.pi / 4 + angle) for angle in (off, -off)]
    ids = np.abs(VOXELS) // 100
    image = save_nifti(tmp_path / "a.nii", VOXELS, turned[0])
    label = save_nifti(tmp_path / "b.nii", ids.astype(np.uint8), turned[1])
    np.testing.assert_array_equal(read_study(study(image, label=label)).label, ids.transpose())


def _turned(axis: tuple[int, int, int], angle: float) -> np.ndarray:
    image = sitk.VersorTransform(axis, angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetMatrix()).reshape(3, 3) * 2.0
    return affine


@pytest.mark.parametrize("top", [255, 254, 117, 65535])
def test_a_slope_s_rounding_leaves_ids_whole(tmp_path: Path, top: int) -> None:
    slope = np.float32(1 / top)
    ids = label_ids(np.array([[[0, top]]], np.uint16), float(slope))
    assert ids.tolist() == [[[0, 1]]]
    assert label_ids(np.array([[[0, 2.0000004]]], np.float32)).tolist() == [[[0, 2]]]
    with pytest.raises(BadStudy, match=r"not integers, such as 0\.5"):
        label_ids(np.array([[[0, 0.5]]], np.float32))
    with pytest.raises(BadStudy, match=r"not integers, such as 1\.01"):
        label_ids(np.array([[[0, 1.01]]], np.float32))


def picture(path: Path) -> np.ndarray:
    scan = read_study(study(path, kind="picture"))
    return scan.voxels


@pytest.mark.parametrize("how", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}])
def test_ordinary_tiff_files_are_read(tmp_path: Path, how: dict[str, str]) -> None:
    for name, pixels in (("rgb", PIXELS), ("grey", PIXELS[..., 0]), ("low", PIXELS[:10, :, 0])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif", **how)
        expected = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        np.testing.assert_array_equal(picture(tmp_path / f"{name}.tif"), expected)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_tiff_in_which_zero_is_white_is_shown_as_it_is_meant(tmp_path: Path, dtype: type, white: int) -> None:
    values = (PIXELS[..., 0].astype(np.uint32) * (white // 255)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=_photometric(1))
    np.testing.assert_array_equal(picture(tmp_path / "a.tif")[0], values)
    content = (tmp_path / "a.tif").read_bytes()
    assert content.count(struct.pack("<HHIHH", 262, 3, 1, 1, 0)) == 1
    inverted = content.replace(struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    (tmp_path / "a.tif").write_bytes(inverted)
    np.testing.assert_array_equal(picture(tmp_path / "a.tif")[0], white - values)


def _photometric(value: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = value
    return info


def _exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return an EXIF block of (tag, type, count, 4 bytes of value or offset) entries."""
    table = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + struct.pack("<II", 1, 3)


TURN = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    "other",
    [
        (0x010F, 5, 1, struct.pack("<I", 38)),  # Make as RATIONAL
        (0x010F, 3, 1, struct.pack("<HH", 9, 0)),  # as SHORT
        (0x8769, 2, 4, b"abc\0"),  # the place of a further table as text
        (0x0131, 12, 1, struct.pack("<I", 38)),  # Software as DOUBLE
    ],
)
def test_a_picture_with_odd_exif_types_is_read_and_turned(tmp_path: Path, other: tuple[int, int, int, bytes]) -> None:
    entries = sorted((other, TURN))
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=_exif(*entries), quality=95)
    upright = picture(tmp_path / "a.jpg")
    assert upright.shape == (3, 24, 20)
    with Image.open(tmp_path / "a.jpg") as image:
        lying = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(upright, np.rot90(lying, -1, (1, 2)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_way_a_camera_is_held_is_obeyed(tmp_path: Path, suffix: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", exif=exif)
    flipped = {1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1]}
    upright = flipped[turn] if turn < 5 else {
        5: PIXELS.transpose(1, 0, 2), 6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[turn]  # fmt: skip
    np.testing.assert_array_equal(picture(tmp_path / f"a.{suffix}"), upright.transpose(2, 0, 1))


def test_a_picture_cut_in_its_header_is_damaged_not_of_another_kind(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    assert "copy the file again" in refusal(study(tmp_path / "a.png", kind="picture"))


def test_a_label_map_without_an_image_is_told_by_its_voxels_and_a_coarse_scan_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = np.indices((12, 14, 16))
    blocks = (places[0] // 4) * 30 + (places[1] // 5) * 9 + places[2] // 4
    scan = np.clip(rng.normal(30, 20, (12, 14, 16)), 0, 63).astype(np.uint8)
    for name, values, slope in (
        ("organs", blocks, 1.0),
        ("few", rng.integers(0, 4, (12, 14, 16)), 1.0),
        ("scaled", blocks * 2, 0.5),
        ("scan", np.where(places[0] < 10, 0, scan), 1.0),
        ("hu", blocks - 1000, 1.0),
    ):
        image = nib.Nifti1Image(values.astype(np.int16), np.eye(4))
        image.header.set_slope_inter(slope, 0)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    refused = {}
    for one in find_studies(str(tmp_path), "volumes"):
        try:
            read_study(one)
        except BadStudy as fault:
            refused[one.key] = str(fault)
    assert sorted(refused) == ["few.nii.gz", "organs.nii.gz", "scaled.nii.gz"]
    assert refused["few.nii.gz"].startswith(
        "a label map (4 whole numbers from 0 to 3) that is paired with no image; "
    )


@pytest.mark.parametrize(
    ("files", "bad"),
    [
        (("a.nii.gz", "a_seg.nii.gz", "a_seg.nii"), {"a.nii.gz"}),
        (("a.nii.gz", "a_seg.mha", "a_seg.nrrd", "b.nii", "b_seg.mha"), {"a.nii.gz"}),
        (("a.nii.gz", "a_seg.nii.gz", "a.mha", "a_seg.mha"), set()),
        (("a.nii.gz", "a_seg.mha"), set()),
    ],
)
def test_two_labels_of_one_name_are_a_fault_of_their_image(
    tmp_path: Path, files: tuple[str, ...], bad: set[str]
) -> None:
    for name in files:
        (tmp_path / name).touch()
    studies = find_studies(str(tmp_path), "volumes", SourceOptions(label_suffix="_seg"))
    assert {one.key for one in studies if one.fault is not None} == bad
    assert all(one.label for one in studies)
