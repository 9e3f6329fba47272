"""Manifest: the record of a bundle's output in an ingest. A bundle is done once its manifest exists."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field

from data.files import join, read_bytes
from data.shards.writer import ShardFile, write_atomically


@dataclass(frozen=True)
class Reject:
    """A study that was left out, by its pseudonym, and why."""

    study: str
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Manifest:
    """A bundle's output: shards, leftovers by split, rejected studies, a hash of the voxels of each study, labels.

    ``label_values`` are the values in its label maps except the background; ``fatal`` are studies that are not read,
    as they end their reader. ``stamps`` tell for each study from which state of its files, and which description of
    it, this was made.
    """

    files: list[ShardFile]
    rests: dict[str, ShardFile]
    rejects: list[Reject]
    contents: dict[str, str]
    excluded: list[str] = field(default_factory=list)
    label_values: list[int] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    stamps: dict[str, str] = field(default_factory=dict)


def write_manifest(work: str, number: int, manifest: Manifest) -> None:
    """Write a bundle's manifest into the work folder: from now on the bundle is done."""
    write_atomically(_uri(work, number), json.dumps(asdict(manifest), indent=1).encode())


def read_manifest(work: str, number: int) -> Manifest | None:
    """Return a bundle's manifest, or None where the bundle has not been finished."""
    try:
        tree = json.loads(read_bytes(_uri(work, number)))
    except FileNotFoundError:
        return None
    return Manifest(
        files=[ShardFile(**file) for file in tree["files"]],
        rests={split: ShardFile(**file) for split, file in tree["rests"].items()},
        rejects=[Reject(**reject) for reject in tree["rejects"]],
        contents=tree["contents"],
        excluded=tree["excluded"],
        label_values=tree["label_values"],
        fatal=tree.get("fatal", []),
        stamps=tree["stamps"],
    )


def _uri(work: str, number: int) -> str:
    return join(work, f"bundle-{number:05d}.json")


def duplicates(contents: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map each study with an earlier study's voxels to that study; ``contents`` are (study, hash) in order."""
    first: dict[str, str] = {}
    again = {}
    for study, content in contents:
        if first.setdefault(content, study) != study:
            again[study] = first[content]
    return again


def are_whole(files: Collection[ShardFile], sizes: Mapping[str, int]) -> bool:
    """Tell whether a folder, given as sizes by name, holds all these files with the sizes that were written."""
    return all(sizes.get(file.name) == file.num_bytes for file in files)
