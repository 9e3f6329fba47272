"""Folders of every layout and format in which one file is mutated, ingested in a process that may die of it.

``python -m tests.mutations 20000`` (``make mutations``) tries that many files; a test tries a few. Whatever the
mutated file does, its neighbours must come out as without it, and its study must be read or refused in words.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.small_folders import FOLDERS, Folder, write_folders

SECONDS_PER_FILE = 30
MOST_BYTES = 8 * 2**30
_ROOT = Path(__file__).resolve().parents[1]
_PLANS = (".csv", ".json")
_BOXES = ".xml"
_HUNG = 1  # the exit code of a process that faulthandler ends

Results = dict[str, tuple[str, frozenset[str]]]
"""What became of each study, by its key, and its files."""


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


@dataclass
class Outcomes:
    """What became of mutated files: counts by folder, suffix and outcome, and a list of what must not be."""

    counts: Counter[tuple[str, str]]
    faults: list[str]

    def describe(self) -> str:
        """Return the counts of each kind of file, their sums and the faults."""
        lines = [f"{count:6d} {what:20s} {outcome}" for (what, outcome), count in sorted(self.counts.items())]
        sums: Counter[str] = Counter()
        for (_, outcome), count in self.counts.items():
            sums[outcome] += count
        lines.append(f"{sums.total()} mutated files: {', '.join(f'{n} {name}' for name, n in sums.most_common())}")
        return "\n".join([*lines, *(self.faults or ["no traceback, no hang, no neighbour lost"])])


def outcomes(number: int, seed: int = 0) -> Outcomes:
    """Try that many mutated files, in processes that go on behind a file that ended one of them.

    A library that ends its process ends a reader, whose bundle is read again without the study; planning must not.
    """
    found = Outcomes(Counter(), [])
    done = 0
    with tempfile.TemporaryDirectory(prefix="mutated-") as root:
        while done < number:
            shutil.rmtree(root)
            at, what, is_planned = -1, "", False
            with _process(root, seed, done, number) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.startswith('{"number"'):
                        continue
                    said = json.loads(line)
                    at, what, is_planned = said["number"], said["what"], said["is_planned"]
                    if "outcome" in said:
                        found.counts[what, said["outcome"]] += 1
                        found.faults += [f"number {at}, {what}: {fault}" for fault in said["faults"]]
                        done = at + 1
            if done < number:
                if at < done:
                    raise RuntimeError(f"the process ended with {process.returncode} before number {done} was begun")
                ending = "hung" if process.returncode == _HUNG else f"ended its process ({process.returncode})"
                found.counts[what, ending] += 1
                if ending == "hung" or not is_planned:
                    found.faults.append(f"number {at}, {what}: {ending}{'' if is_planned else ', in planning'}")
                done = at + 1
    return found


def _process(root: str, seed: int, first: int, number: int) -> subprocess.Popen[str]:
    """Start a process that tries the mutations from ``first`` on, and says what it begins and how it ends."""
    command = [sys.executable, "-m", "tests.mutations", "--try", root, str(seed), str(first), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=_ROOT)


def _try_all(root: Path, seed: int, first: int, number: int) -> None:
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
        what = f"{folder.name} {''.join(path.suffixes) or path.parent.name}"
        _say(number=at, what=what, is_planned=False)
        content = path.read_bytes()
        path.write_bytes(mutated(content, rng))
        array._array.cache_clear()
        faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
        outcome, faults = _judged(
            root,
            folder,
            path,
            sound[folder.name],
            lambda at=at, what=what: _say(number=at, what=what, is_planned=True),
        )
        faulthandler.cancel_dump_traceback_later()
        path.write_bytes(content)
        _say(number=at, what=what, is_planned=True, outcome=outcome, faults=faults)


def _say(**said: object) -> None:
    print(json.dumps(said), flush=True)


def _judged(
    root: Path, folder: Folder, path: Path, sound: Results, is_planned: Callable[[], None]
) -> tuple[str, list[str]]:
    """Return what became of the mutated file's study, and the faults: neighbours lost or changed, tracebacks."""
    is_plan = path.suffix in _PLANS
    try:
        results = _results(root, folder, is_planned)
    except ValueError as refusal:
        is_told = is_plan and "; " in str(refusal)
        return "refused", [] if is_told else [
            f"one file refuses the whole folder: {type(refusal).__name__}: {refusal}"
        ]
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
    """Tell whether a study uses a file, itself, as the voxels of its header, or as the boxes on its picture."""
    own = _stem(path) if path.suffix != _BOXES else (path.parents[1] / "JPEGImages", path.stem)
    return any(_stem(Path(file)) == own for file in files)


def _stem(path: Path) -> tuple[Path, str]:
    return path.parent, path.name.partition(".")[0]


def _results(root: Path, folder: Folder, is_planned: Callable[[], None] = lambda: None) -> Results:
    """Plan a folder and preprocess its studies; return each one's outcome and files by its key."""
    from data.quarantine import BadStudy
    from data.recipes import RECIPES
    from data.shards.bundles import preprocess
    from data.sources import SourceOptions, find_studies

    volumes = RECIPES["mri_volume"].with_fields(spacing_mm=(2, 2, 2), modality=None, min_slices=1)
    pictures = RECIPES["natural"].with_fields(modality=None, short_side=16)
    results = {}
    studies = find_studies(str(root / folder.name), folder.layout, SourceOptions(**folder.options))
    is_planned()
    for study in studies:
        try:
            (scan,) = preprocess(pictures if folder.pictures else volumes, study)
            digest = hashlib.blake2b(np.ascontiguousarray(scan.voxels).tobytes(), digest_size=8)
            digest.update(b"" if scan.label is None else np.ascontiguousarray(scan.label).tobytes())
            outcome = f"read {digest.hexdigest()}"
        except BadStudy as fault:
            outcome = "refused" if fault.found and fault.expected and fault.remedy else "traceback: no reason"
        except Exception as error:  # noqa: BLE001 (this is what is looked for)
            outcome = f"traceback: {type(error).__name__}: {error}"
        results[study.key] = (outcome, frozenset([*study.image, *([study.label] if study.label else [])]))
    return results


def main(arguments: list[str]) -> int:
    if arguments[0] == "--try":
        _try_all(Path(arguments[1]), *map(int, arguments[2:]))
        return 0
    began = time.monotonic()
    found = outcomes(int(arguments[0]), seed=int((arguments[1:] or ["0"])[0]))
    print(f"{found.describe()}\n{time.monotonic() - began:.0f} s")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
