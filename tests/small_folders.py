"""Folders of a few small sound studies in every layout, format and compression that is read."""

import gzip
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from tests.boxed_folders import lesion, write_coco, write_deeplesion, write_picture, write_slices_of, write_voc

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
_MINC = Path(nib.__file__).parent / "tests/data/tiny.mnc"


@dataclass(frozen=True)
class Folder:
    """A folder of sound studies and how it is ingested."""

    name: str
    layout: str
    options: dict[str, object]
    pictures: bool = False


FOLDERS = (
    Folder("nnunet", "nnunet", {"modality": "CT"}),
    Folder("nifti", "volumes", {"label_suffix": "_seg"}),
    Folder("itk", "volumes", {"label_suffix": "_seg"}),
    Folder("neuro", "volumes", {}),
    Folder("dicom", "dicom", {}),
    Folder("packed", "dicom", {}),
    Folder("csv", "csv", {}, pictures=True),
    Folder("classes", "class_folders", {}, pictures=True),
    Folder("npz", "npz", {}, pictures=True),
    Folder("coco", "coco", {}, pictures=True),
    Folder("voc", "voc", {}, pictures=True),
    Folder("deeplesion", "deeplesion", {}),
)


def write_folders(root: Path) -> None:
    """Write every folder with a few small sound studies."""
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (root / folder.name).mkdir(parents=True)
    for number in range(3):
        voxels = rng.integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
        label = (voxels > 0).astype(np.uint8)
        _write_nnunet(root / "nnunet", number, voxels, label)
        _write_nifti(root / "nifti", number, voxels, label)
        _write_itk(root / "itk", number, voxels, label)
        _write_neuro(root / "neuro", number, voxels)
        _write_pictures(root, number, rng.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    _write_boxed(root)
    _write_all_dicom(root, rng.integers(-1000, 1000, (4, 7, 6)).astype(np.int16))
    rows = [f"{path.name},{path.name[1]}\n" for path in sorted((root / "csv").iterdir())]
    (root / "csv" / "table.csv").write_text("file,label\n" + "".join(rows))


def _write_nnunet(folder: Path, number: int, voxels: np.ndarray, label: np.ndarray) -> None:
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(exist_ok=True)
    nib.Nifti1Image(voxels, AFFINE).to_filename(folder / f"imagesTr/p{number}_0000.nii.gz")
    nib.Nifti1Image(label, AFFINE).to_filename(folder / f"labelsTr/p{number}.nii.gz")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))


def _write_nifti(folder: Path, number: int, voxels: np.ndarray, label: np.ndarray) -> None:
    nib.Nifti1Image(voxels, AFFINE).to_filename(folder / f"a{number}.nii")
    nib.Nifti1Image(label, AFFINE).to_filename(folder / f"a{number}_seg.nii")
    nib.Nifti1Pair(voxels[::-1], AFFINE).to_filename(folder / f"b{number}.hdr")
    nib.Nifti2Image(voxels[:, ::-1], AFFINE).to_filename(folder / f"c{number}.nii{'.gz' if number else ''}")


def _write_itk(folder: Path, number: int, voxels: np.ndarray, label: np.ndarray) -> None:
    for suffix, packed in ((".nrrd", number > 0), (".mha", number > 0), (".mhd", number > 1), (".nhdr", number > 1)):
        for name, array in (("", voxels + len(suffix)), ("_seg", label)):
            image = sitk.GetImageFromArray(array)
            sitk.WriteImage(image, str(folder / f"{suffix[1:]}{number}{name}{suffix}"), useCompression=packed)


def _write_neuro(folder: Path, number: int, voxels: np.ndarray) -> None:
    nib.MGHImage(voxels, AFFINE).to_filename(folder / f"a{number}.mgz")
    nib.MGHImage(voxels[::-1].astype(np.float32), AFFINE).to_filename(folder / f"b{number}.mgh")
    shutil.copy(_MINC, folder / f"c{number}.mnc")


def _write_pictures(root: Path, number: int, pixels: np.ndarray) -> None:
    forms: dict[str, dict[str, Any]] = {
        "a.png": {}, "b.jpg": {}, "c.tif": {"compression": "tiff_lzw"}, "d.bmp": {}, "f.tif": {},
        "g.tif": {"compression": "jpeg"}, "h.tiff": {"compression": "tiff_deflate"},
    }  # fmt: skip
    for home in (root / "csv", root / "classes" / f"c{number}"):
        home.mkdir(exist_ok=True)
        for name, options in forms.items():
            Image.fromarray(pixels).save(home / f"{number}{name}", **options)
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(home / f"{number}i.png")
    film = _data_set(pixels[..., 0].astype(np.uint16), f"2.25.9{number}", 0)
    film.SOPClassUID, film.Modality, film.RescaleIntercept = ComputedRadiographyImageStorage, "CR", 0
    film.save_as(root / "csv" / f"{number}e.dcm", enforce_file_format=True)
    labels = np.array([[number]])
    np.savez_compressed(root / "npz" / f"n{number}.npz", train_images=pixels[..., 0][None], train_labels=labels)


def _write_boxed(root: Path) -> None:
    sizes = {f"{number}.png": (24, 20) for number in range(3)}
    boxes = [{"image_id": 10 * n, "category_id": 10 * (n % 2), "bbox": [n, 2.5, 8, 4]} for n in range(3)]
    write_coco(root / "coco" / "train.json", sizes, ["a", "b"], boxes)
    rows = [lesion(f"{number:06d}_01_01_005.png") for number in range(3)]
    write_deeplesion(root / "deeplesion" / "DL_info.csv", rows)
    for number, name in enumerate(sizes):
        write_picture(root / "coco" / name, (24, 20), number)
        write_picture(root / "voc" / "JPEGImages" / name, (24, 20), 10 + number)
        write_voc(root / "voc" / "Annotations" / f"{number}.xml", (24, 20), [("a", (1, 2, 9, 8 + number))])
        write_slices_of(root / "deeplesion", f"{number:06d}_01_01", range(4, 8), (8, 9))


def _write_all_dicom(root: Path, voxels: np.ndarray) -> None:
    """Write a series in each form: plain ones into ``dicom``, those that a codec has to unpack into ``packed``."""
    for number, form in enumerate((_explicit, _implicit, _big_endian, _bare, _gzipped)):
        _write_series(root / "dicom", number, voxels, form)
    for number, form in enumerate((_rle, _jpeg_2000, *map(_by_gdcm, _GDCM_SYNTAXES)), 5):
        _write_series(root / "packed", number, voxels, form)


def _write_series(folder: Path, number: int, voxels: np.ndarray, form: Callable[[Dataset, Path], None]) -> None:
    home = folder / f"s{number}"
    home.mkdir()
    for d, plane in enumerate(voxels):
        form(
            _data_set((plane.astype(np.int32) + 1000 + number).astype(np.uint16), f"2.25.{number}", d),
            home / f"{d}.dcm",
        )


def _data_set(pixels: np.ndarray, series: str, d: int) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{series}.{d}"
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{series}.7", f"{series}.8"
    data.Modality, data.PatientID, data.ImageType = "CT", series, ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 3 * d], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness, data.RescaleSlope, data.RescaleIntercept = [2, 2], 3, 1, -1024
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
    data.PhotometricInterpretation, data.PixelPaddingValue = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = np.ascontiguousarray(pixels % 4096, "<u2").tobytes()
    return data


def _explicit(data: Dataset, path: Path) -> None:
    data.save_as(path, enforce_file_format=True)


def _implicit(data: Dataset, path: Path) -> None:
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


def _big_endian(data: Dataset, path: Path) -> None:
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    data.save_as(path, enforce_file_format=True)


def _bare(data: Dataset, path: Path) -> None:
    """Write a data set alone: no suffix, preamble, mark or meta information."""
    del data.file_meta
    data.save_as(path.with_suffix(""), implicit_vr=False, little_endian=True)


def _gzipped(data: Dataset, path: Path) -> None:
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    path.with_suffix(".dcm.gz").write_bytes(gzip.compress(stream.getvalue(), mtime=0))


def _rle(data: Dataset, path: Path) -> None:
    data.compress(UID(RLELossless))
    _explicit(data, path)


def _jpeg_2000(data: Dataset, path: Path) -> None:
    stream = io.BytesIO()
    pixels = np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns)
    Image.fromarray(pixels).save(stream, "JPEG2000", irreversible=False)
    data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    _explicit(data, path)


_GDCM_SYNTAXES = (
    gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    gdcm.TransferSyntax.JPEGLSLossless,
    gdcm.TransferSyntax.JPEGExtendedProcess2_4,
)


def _by_gdcm(syntax: int) -> Callable[[Dataset, Path], None]:
    def form(data: Dataset, path: Path) -> None:
        _explicit(data, path)
        transcode(path, syntax)

    return form


def transcode(path: Path, syntax: int) -> None:
    """Compress the pixels of a DICOM file by GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
