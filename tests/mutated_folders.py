"""Folders of every layout and format in which one file is mutated, ingested in a process that may die of it.

``python -m tests.mutated_folders 20000`` (``make mutations``) tries that many files; a test tries a few. Whatever the
mutated file does, its neighbours must come out as without it, and it must be read or refused in words.
"""

import csv
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SECONDS_PER_FILE = 30
MOST_BYTES = 8 * 2**30
_ROOT = Path(__file__).resolve().parents[1]
_PLANS = (".csv", ".json")
_AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Folder:
    """A folder of sound studies and how it is ingested."""

    name: str
    layout: str
    options: dict[str, object]
    pictures: bool


FOLDERS = (
    Folder("nnunet", "nnunet", {"modality": "CT"}, False),
    Folder("nifti", "volumes", {"label_suffix": "_seg"}, False),
    Folder("itk", "volumes", {"label_suffix": "_seg"}, False),
    Folder("neuro", "volumes", {}, False),
    Folder("dicom", "dicom", {}, False),
    Folder("csv", "csv", {}, True),
    Folder("classes", "class_folders", {}, True),
    Folder("npz", "npz", {}, True),
)


def write_folders(root: Path) -> None:
    """Write every folder with a few small sound studies."""
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (root / folder.name).mkdir(parents=True)
    for number in range(3):
        voxels = rng.integers(-1000, 1000, (8, 7, 6)).astype(np.int16)
        label = (voxels > 0).astype(np.uint8)
        _write_volumes(root, number, voxels, label)
        _write_series(root / "dicom" / f"s{number}", number, voxels)
        pixels = rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)
        for name in ("a.png", "b.jpg", "c.tif", "d.bmp"):
            for home in ("csv", f"classes/c{number}"):
                (root / home).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(root / home / f"{number}{name}")
        np.savez_compressed(
            root / "npz" / f"n{number}.npz", train_images=pixels[..., 0][None], train_labels=[[number]]
        )
    with (root / "csv" / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        rows.writerows([path.name, path.name[1]] for path in sorted((root / "csv").glob("?[abcd].*")))


def _write_volumes(root: Path, number: int, voxels: np.ndarray, label: np.ndarray) -> None:
    for kind in ("imagesTr", "labelsTr"):
        (root / "nnunet" / kind).mkdir(exist_ok=True)
    images, labels = root / "nnunet/imagesTr", root / "nnunet/labelsTr"
    nib.Nifti1Image(voxels, _AFFINE).to_filename(images / f"p{number}_0000.nii.gz")
    nib.Nifti1Image(label, _AFFINE).to_filename(labels / f"p{number}.nii.gz")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (root / "nnunet/dataset.json").write_text(json.dumps(described))
    nib.Nifti1Image(voxels, _AFFINE).to_filename(root / f"nifti/a{number}.nii")
    nib.Nifti1Image(label, _AFFINE).to_filename(root / f"nifti/a{number}_seg.nii")
    nib.Nifti1Pair(voxels[::-1], _AFFINE).to_filename(root / f"nifti/b{number}.hdr")
    nib.Nifti2Image(voxels[:, ::-1], _AFFINE).to_filename(root / f"nifti/c{number}.nii.gz")
    for suffix, packed in ((".nrrd", number > 0), (".mha", number > 0), (".mhd", False), (".nhdr", False)):
        for name, array in (("", voxels + len(suffix)), ("_seg", label)):
            image = sitk.GetImageFromArray(array)
            sitk.WriteImage(image, str(root / f"itk/{suffix[1:]}{number}{name}{suffix}"), useCompression=packed)
    nib.MGHImage(voxels, _AFFINE).to_filename(root / f"neuro/a{number}.mgz")
    nib.MGHImage(voxels[::-1].astype(np.float32), _AFFINE).to_filename(root / f"neuro/b{number}.mgh")


def _write_series(folder: Path, number: int, voxels: np.ndarray) -> None:
    folder.mkdir()
    for d in range(4):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"2.25.{number}{d}"
        data.StudyInstanceUID, data.SeriesInstanceUID = f"2.25.7{number}", f"2.25.8{number}"
        data.Modality, data.PatientID, data.ImageType = "CT", f"P{number}", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 3 * d], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness, data.RescaleSlope, data.RescaleIntercept = [2, 2], 3, 1, 0
        data.Rows, data.Columns, data.SamplesPerPixel = 7, 6, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelData = np.ascontiguousarray(voxels[d]).tobytes()
        data.save_as(folder / f"{d}.dcm", enforce_file_format=True)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes changed in one to three places; half of the gzip streams inside, so that their CRC is right."""
    if content[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        return gzip.compress(mutated(gzip.decompress(content), rng), mtime=0)
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(changed) if rng.random() < 0.3 else min(len(changed), 600))) if changed else 0
        _change(changed, at, rng)
    return bytes(changed)


def _change(content: bytearray, at: int, rng: np.random.Generator) -> None:
    way = int(rng.integers(8))
    if way == 0:
        content[at : at + 1] = bytes([rng.integers(256)])
    elif way == 1:
        content[at : at + 1] = bytes(byte ^ 1 << int(rng.integers(8)) for byte in content[at : at + 1])
    elif way == 2:
        extremes = (
            b"\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"\xff\xff\xff\x7f",
            b"\0\0\x80\x7f",
            b"\xff\xff\x7f\x7f",
            b"-999",
        )
        content[at : at + 4] = extremes[int(rng.integers(len(extremes)))]
    elif way == 3:
        digits = [place for place, byte in enumerate(content[:2000]) if 48 <= byte <= 57] or [at]
        place = digits[int(rng.integers(len(digits)))]
        content[place : place + 1] = rng.choice([b"0", b"9", b"-", b".", b",", b"99", b"e9", b" "])
    elif way == 4:
        del content[at : at + int(rng.integers(1, 9))]
    elif way == 5:
        content[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif way == 6:
        del content[at:]
    else:
        other = int(rng.integers(max(len(content), 1)))
        content[at : at + 8] = content[other : other + 8]


def outcomes(number: int, seed: int = 0) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Try that many mutated files; count them by folder, suffix and outcome, and list what must not be."""
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    done = 0
    with tempfile.TemporaryDirectory(prefix="mutated-") as root:
        while done < number:
            shutil.rmtree(root)
            began, what = -1, ""
            with _process(root, seed, done, number) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.startswith('{"number"'):
                        continue
                    said = json.loads(line)
                    if "outcome" not in said:
                        began = said["number"]
                        what = said["what"]
                        continue
                    counts[said["what"], said["outcome"]] += 1
                    faults += [f"number {said['number']}, {said['what']}: {fault}" for fault in said["faults"]]
                    done = said["number"] + 1
            if done < number:
                if began < done:
                    raise RuntimeError(f"the process ended with {process.returncode} before number {done} was begun")
                # A library that ends its process ends a reader, whose bundle is read again without the study.
                ending = "hung" if process.returncode == 1 else f"ended its process ({process.returncode})"
                counts[what, ending] += 1
                faults += [f"number {began}, {what}: hung"] if ending == "hung" else []
                done = began + 1
    return counts, faults


def _process(root: str, seed: int, first: int, number: int) -> subprocess.Popen[str]:
    """Start a process that tries the mutations from ``first`` on, and says what it begins and how it ends."""
    command = [sys.executable, "-m", "tests.mutated_folders", "--try", root, str(seed), str(first), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=_ROOT)


def _tries(root: Path, seed: int, first: int, number: int) -> Iterator[dict[str, object]]:
    import faulthandler
    import resource

    from data.readers import array

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    write_folders(root)
    sound = {folder.name: _results(root, folder) for folder in FOLDERS}
    assert all(outcome.startswith("read") for results in sound.values() for outcome, _ in results.values()), sound
    for at in range(first, number):
        rng = np.random.default_rng([seed, at])
        folder = FOLDERS[at % len(FOLDERS)]
        files = sorted(path for path in (root / folder.name).rglob("*") if path.is_file())
        path = files[int(rng.integers(len(files)))]
        what = f"{folder.name} {''.join(path.suffixes)}"
        yield {"number": at, "what": what}
        content = path.read_bytes()
        path.write_bytes(mutated(content, rng))
        array._array.cache_clear()
        faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
        outcome, faults = _judged(root, folder, path, sound[folder.name])
        faulthandler.cancel_dump_traceback_later()
        path.write_bytes(content)
        yield {"number": at, "what": what, "outcome": outcome, "faults": faults}


def _judged(
    root: Path, folder: Folder, path: Path, sound: dict[str, tuple[str, frozenset[str]]]
) -> tuple[str, list[str]]:
    """Return what became of the mutated file's study, and the faults: neighbours lost or changed, tracebacks."""
    is_plan = path.suffix in _PLANS
    try:
        results = _results(root, folder)
    except ValueError as refusal:
        return "refused", [] if is_plan else [f"one file refuses the whole folder: {refusal}"]
    except Exception as error:  # noqa: BLE001 (this is what is looked for)
        return "traceback", [f"planning raises {type(error).__name__}: {error}"]
    faults = [outcome for outcome, _ in results.values() if outcome.startswith("traceback")]
    if is_plan:
        return "planned", faults
    own = [key for key, (_, files) in sound.items() if _touches(path, files)]
    for key, result in sound.items():
        if key not in own and results.get(key, ("lost", frozenset()))[0] != result[0]:
            faults.append(f"a neighbour: {results.get(key, ('lost', 0))[0]}")
    after = [outcome for key, (outcome, _) in results.items() if key in own or key not in sound]
    if not after:
        faults.append("its study vanished without a word")
    return "read" if any(outcome.startswith("read") for outcome in after) else "refused", faults


def _touches(path: Path, files: frozenset[str]) -> bool:
    """Tell whether a study uses a file, itself or as the voxels of its header."""
    return any(Path(file) == path or Path(file).with_suffix("") == path.with_suffix("") for file in files)


def _results(root: Path, folder: Folder) -> dict[str, tuple[str, frozenset[str]]]:
    """Plan a folder and preprocess its studies; return each one's outcome and files by its key."""
    from data.bundles import preprocess
    from data.quarantine import BadStudy
    from data.recipes import RECIPES
    from data.sources import SourceOptions, find_studies

    volumes = RECIPES["mri_volume"].with_fields(spacing_mm=(2, 2, 2), modality=None, min_slices=1)
    pictures = RECIPES["natural"].with_fields(modality=None, short_side=16)
    results = {}
    for study in find_studies(str(root / folder.name), folder.layout, SourceOptions(**folder.options)):
        try:
            (scan,) = preprocess(pictures if folder.pictures else volumes, study)
            digest = hashlib.blake2b(np.ascontiguousarray(scan.voxels).tobytes(), digest_size=8)
            digest.update(b"" if scan.label is None else np.ascontiguousarray(scan.label).tobytes())
            outcome = f"read {digest.hexdigest()}"
        except BadStudy as fault:
            outcome = "refused" if fault.found and fault.expected and fault.remedy else "traceback: no reason"
        except Exception as error:  # noqa: BLE001 (this is what is looked for)
            outcome = f"traceback: {type(error).__name__}: {error}"
        files = [*study.image, *([study.label] if study.label else [])]
        key = study.key
        results[key] = (outcome, frozenset(files))
    return results


def main(arguments: list[str]) -> int:
    if arguments[0] == "--try":
        for said in _tries(Path(arguments[1]), *map(int, arguments[2:])):
            print(json.dumps(said), flush=True)
        return 0
    counts, faults = outcomes(int(arguments[0]), seed=int((arguments[1:] or ["0"])[0]))
    for (what, outcome), count in sorted(counts.items()):
        print(f"{count:6d} {what:20s} {outcome}")
    print("\n".join(faults) or f"{counts.total()} mutated files: no traceback, no hang, no neighbour lost")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
