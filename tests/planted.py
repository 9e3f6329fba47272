"""Scans full of one patient's details, and a search for these details in everything that was written."""

import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
from nibabel.nifti1 import Nifti1Extension
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data.phantoms.abdomen import write_cohort

NAME, PATIENT_ID, BIRTH_DATE, STUDY_DATE = "Lovelace^Augusta", "PAT-70431-X", "18151210", "20190317"
PHYSICIAN, ACCESSION = "Babbage^Charles", "ACC5503817"
SERIES_UID, STUDY_UID = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["study"])
FOLDER = f"Lovelace_Augusta_{PATIENT_ID}"
TEXTS = [
    text.lower().encode()
    for text in (
        *("Lovelace", "Augusta", "PAT-70431", "Babbage", ACCESSION, SERIES_UID[:50], STUDY_UID[:50]),
        *(BIRTH_DATE, "1815-12-10", STUDY_DATE, "2019-03-17"),
    )
]


def write_volumes(parent: Path, spacing_mm: tuple[float, float, float]) -> Path:
    """Write an nnU-Net folder: two labelled volumes, a truncated one and a report; each says whose it is."""
    names = ["Lovelace Augusta 1815-12-10", "lovelace_augusta_PAT-70431-X"]
    folder = write_cohort(parent / FOLDER, 2, seed=4, spacing_mm=spacing_mm, names=names)
    for path in sorted(folder.rglob("*.nii.gz")):
        _sign(path)
    whole = (folder / "imagesTr" / f"{names[0]}_0000.nii.gz").read_bytes()
    (folder / "imagesTr" / "Lovelace_2019-03-17_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "report of Lovelace.pdf").write_bytes(b"%PDF " + NAME.encode())
    return folder


def _sign(path: Path) -> None:
    """Put the patient into every field of a NIfTI header that takes text."""
    image = nib.Nifti1Image.from_filename(path)
    signed = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header)
    signed.header["descrip"] = f"{NAME} {PATIENT_ID} {BIRTH_DATE}".encode()
    signed.header["aux_file"], signed.header["db_name"] = PATIENT_ID.encode(), b"Lovelace"
    signed.header["intent_name"] = b"Babbage"
    signed.header.extensions.append(Nifti1Extension("comment", f"{NAME} {STUDY_DATE} {ACCESSION}".encode()))
    nib.save(signed, path)


def write_dicom(parent: Path, num_slices: int = 8, **tags: object) -> Path:
    """Write a CT series, and a file that cannot be read, below a folder named after the patient."""
    folder = parent / f"{PATIENT_ID} {STUDY_DATE}"
    series = folder / f"CT of {NAME}"
    series.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(num_slices):
        data = _slice(rng, number, 5.0 * number)
        for name, value in tags.items():
            setattr(data, name, value)
        data.save_as(series / f"{NAME.replace('^', '_')}_{number}.dcm", enforce_file_format=True)
    (folder / "Lovelace_broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40 + NAME.encode())
    return folder


def _slice(rng: np.random.Generator, number: int, position_mm: float) -> pydicom.Dataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{SERIES_UID[:50]}.{number}"
    ds = pydicom.Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = SERIES_UID, STUDY_UID, "CT"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, PATIENT_ID, BIRTH_DATE
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = STUDY_DATE
    ds.ReferringPhysicianName, ds.AccessionNumber = PHYSICIAN, ACCESSION
    ds.StudyDescription, ds.PatientComments = f"follow-up of {NAME}", f"born {BIRTH_DATE}"
    ds.add_new((0x0011, 0x0010), "LO", NAME)
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, position_mm], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [4, 4], 5, number + 1
    ds.Rows = ds.Columns = 48
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = rng.integers(900, 1300, (48, 48)).astype("<u2").tobytes()
    return ds


def leaks(texts: dict[str, bytes], *more: bytes) -> list[tuple[str, str]]:
    """Return (where, what) for every planted text, or one of ``more``, that stands in some bytes, in either case."""
    wanted = [*TEXTS, *(text.lower() for text in more)]
    lowered = {where: content.lower() for where, content in texts.items()}
    return [
        (where, text.decode("latin-1")) for where, content in lowered.items() for text in wanted if text in content
    ]


def texts_below(folder: Path) -> dict[str, bytes]:
    """Return the relative path of every file below a folder, with its bytes and what is compressed or split in it."""
    texts = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            texts[name] = b"\n".join([name.encode(), path.read_bytes(), *_inside(path)])
        elif not path.is_dir():
            texts[name] = name.encode()  # a socket or a broken link
    return texts


def _inside(path: Path) -> Iterator[bytes]:
    """Yield what a search of a file's plain bytes could miss."""
    content = path.read_bytes()
    if content.startswith(b"PAR1"):
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode()
        for cell in (cell for column in table.columns for cell in column.to_pylist()):
            yield cell if isinstance(cell, bytes) else repr(cell).encode()
    elif content.startswith(b"SQLite format 3"):
        yield from _rows(path)
    elif content.startswith(b"\x89PNG"):
        with Image.open(path) as picture:
            picture.load()
            yield repr(picture.info).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    elif content.startswith(b"\x1f\x8b"):
        yield zlib.decompressobj(wbits=31).decompress(content)  # a truncated stream too, unlike the gzip module
    elif content.startswith(b"\x28\xb5\x2f\xfd"):
        raise ValueError(f"{path}: zstd, which this search does not open")


def _rows(path: Path) -> Iterator[bytes]:
    """Yield every cell of a SQLite database: long ones lie in several places of the file."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            for row in database.execute(f'SELECT * FROM "{name}"'):
                yield repr(row).encode()
