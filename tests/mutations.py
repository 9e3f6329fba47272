"""Mutated files of every format that is read, and what becomes of each in a process that may die of it.

``python -m tests.mutations 20000`` tries that many; the tests try a few hundred.
"""

import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

SECONDS_PER_FILE = 20
_PICTURES = {"jpg": "picture", "png": "picture", "bmp": "picture", "tif": "picture"}


def seeds(folder: Path) -> list[tuple[Path, str]]:
    """Write one small sound file of every format and compression; return the path and kind of each."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
    affine = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    for name in ("a.nii", "b.nii.gz", "c.hdr"):
        nib.Nifti1Pair(voxels, affine).to_filename(folder / name) if name == "c.hdr" else nib.Nifti1Image(
            voxels, affine
        ).to_filename(folder / name)
    nib.Nifti2Image(voxels, affine).to_filename(folder / "d.nii")
    nib.MGHImage(voxels, affine).to_filename(folder / "e.mgz")
    nib.MGHImage(voxels.astype(np.float32), affine).to_filename(folder / "f.mgh")
    image = sitk.GetImageFromArray(voxels)
    for name, packed in (("g.nrrd", False), ("h.nrrd", True), ("i.mha", False), ("j.mha", True), ("k.mhd", False),
                         ("l.nhdr", False)):  # fmt: skip
        sitk.WriteImage(image, str(folder / name), useCompression=packed)
    pixels = rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)
    for name, options in (("m.jpg", {}), ("n.png", {}), ("o.bmp", {}), ("p.tif", {"compression": "tiff_lzw"}),
                          ("q.tif", {}), ("r.tif", {"compression": "jpeg"})):  # fmt: skip
        Image.fromarray(pixels).save(folder / name, **options)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "s.png")
    for number, syntax in enumerate(_syntaxes()):
        _write_dicom(folder / f"t{number}.dcm", syntax, voxels[..., 0])
    np.savez_compressed(folder / "u.npz", train_images=pixels[..., 0][None])
    names = sorted(path for path in folder.iterdir() if path.suffix not in (".img", ".raw", ".zraw"))
    return [(path, _kind(path)) for path in names]


def _kind(path: Path) -> str:
    return _PICTURES.get(path.suffix[1:]) or {".dcm": "dicom", ".npz": "array"}.get(path.suffix, "volume")


def _syntaxes() -> list[object]:
    return [
        None, RLELossless, JPEG2000Lossless, gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        gdcm.TransferSyntax.JPEGLSLossless, gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    ]  # fmt: skip


def _write_dicom(path: Path, syntax: object, pixels: np.ndarray) -> None:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, "2.25.1", "2.25.2"
    data.Modality, data.PatientID, data.ImageType = "CT", "P", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness, data.RescaleSlope, data.RescaleIntercept = [2, 2], 3, 1, -1024
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelPaddingValue = 0
    data.PixelData = ((pixels.astype(np.int32) + 1000) % 4096).astype("<u2").tobytes()
    if isinstance(syntax, str) and syntax == RLELossless:
        data.compress(RLELossless)
    elif isinstance(syntax, str):
        stream = io.BytesIO()
        Image.fromarray((pixels.astype(np.int32) + 1000).astype(np.uint16)).save(
            stream, "JPEG2000", irreversible=False
        )
        data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
    if isinstance(syntax, int):
        transcode(path, syntax)


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


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes changed as transfers, tools and fuzzers change them, mostly in the header."""
    content = bytearray(content)
    reach = len(content) if rng.random() < 0.3 else min(len(content), 600)
    for _ in range(int(rng.integers(1, 4))):
        at, way = int(rng.integers(reach)), rng.random()
        if way < 0.35:
            content[at : at + 1] = (
                bytes([content[at : at + 1][0] ^ 1 << int(rng.integers(8))]) if content[at:] else b""
            )
        elif way < 0.55:
            content[at : at + 1] = bytes([int(rng.integers(256))])
        elif way < 0.65:
            content[at : at + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"9999"])
        elif way < 0.75:
            del content[at : at + int(rng.integers(1, 9))]
        elif way < 0.85:
            content[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif way < 0.9:
            del content[at:]
        else:
            other = int(rng.integers(reach))
            content[at : at + 8] = content[other : other + 8]
    return bytes(content)


def outcomes(number: int, seed: int = 0) -> Counter[tuple[str, str]]:
    """Read that many mutated files; count them by format and outcome: read, refused, or how the process ended."""
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        done = 0
        while done < number:
            command = [sys.executable, "-m", "tests.mutations", "--read", name, str(seed), str(done), str(number)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as reader:
                assert reader.stdout is not None
                last = done
                for line in reader.stdout:
                    if line.startswith("{"):
                        said = json.loads(line)
                        last = said["number"]
                        if "fault" in said:
                            counts[f"number {last}", said["fault"]] += 1
                        if "outcome" in said:
                            counts[said["format"], said["outcome"]] += 1
                            done = last + 1
                code = reader.wait()
            if code and done < number:
                counts[f"number {last}", f"the process ended with {code}"] += 1
                done = last + 1
    return counts


def _read(folder: str, seed: int, first: int, number: int) -> Iterator[dict[str, object]]:
    import faulthandler

    from data.bundles import preprocess
    from data.quarantine import BadStudy
    from data.readers import array
    from data.recipes import RECIPES
    from data.sources import Study

    volumes = RECIPES["mri_volume"].with_fields(spacing_mm=None, modality=None, min_slices=1)
    pictures = RECIPES["natural"].with_fields(modality=None)
    originals = seeds(Path(folder))
    for at in range(first, number):
        path, kind = originals[at % len(originals)]
        yield {"number": at}
        sound = path.read_bytes()
        path.write_bytes(mutated(sound, np.random.default_rng([seed, at])))
        faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
        array._array.cache_clear()
        image = (str(path), "train_images", "0") if kind == "array" else (str(path),)
        try:
            preprocess(pictures if kind in ("picture", "array") else volumes, Study("", kind, image, "", "d"))
            outcome = "read"
        except BadStudy as fault:
            outcome = "unforeseen" if fault.found.startswith("an error when it was read") else "refused"
            if outcome == "unforeseen":
                yield {"number": at, "fault": fault.found}
        faulthandler.cancel_dump_traceback_later()
        path.write_bytes(sound)
        yield {"number": at, "format": path.name, "outcome": outcome}


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        for said in _read(sys.argv[2], *map(int, sys.argv[3:])):
            print(json.dumps(said), flush=True)
    else:
        for (kind, outcome), count in sorted(
            outcomes(int(sys.argv[1]), seed=int((sys.argv[2:] or ["0"])[0])).items()
        ):
            print(f"{count:6d} {kind:10s} {outcome}")
