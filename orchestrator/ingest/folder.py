"""The folder that an ingest writes: claim it for a request, find its finished bundles, and complete it."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pyarrow import fs

from data.files import is_file, join, locate, reaching, read_bytes
from data.shards.bundles import REST, BundleJob, join_rests
from data.shards.earlier import EARLIER_INDEX, INDEX, earlier_indices
from data.shards.index import EARLIER_FORMAT as EARLIER_SHARDS
from data.shards.index import IndexCard, ShardSet, renewal, write_index
from data.shards.manifest import Manifest, Reject, are_whole, read_manifest
from data.shards.writer import ShardError, ShardFile, remove_unfinished, write_atomically
from data.splits import SPLITS
from orchestrator.ingest.plan import EARLIER_FORMAT, IngestPlan

IDENTITY = "ingest.json"
QUARANTINE = "quarantine.jsonl"
_FINISHED = "finished"
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-(\d{{5}}|{REST})-[0-9a-f]{{16}}\.parquet")


def claim(plan: IngestPlan, overwrite: bool) -> None:
    """Mark the folder as the plan's own; raise ValueError if it holds shards of another plan."""
    out = plan.job.out
    found = identity(out)
    if found is None and is_file(join(out, INDEX)) and not overwrite:
        raise ValueError(
            f"shards {out}: {INDEX} is there but no {IDENTITY}; expected an empty folder or one of this ingest; "
            "choose another --out, or replace the shards with --overwrite"
        )
    if found and found.get("format") == str(EARLIER_FORMAT) and is_file(join(out, INDEX)) and not overwrite:
        raise ValueError(f"{renewal(out, EARLIER_SHARDS)}, and the same ingest goes on in the new folder")
    differing = _differences(found, plan.identity) if found else []
    if differing and not overwrite:
        changes = "; ".join(differing)
        raise ValueError(
            f"shards {out} were made differently ({changes}); expected the same request; choose another --out, or "
            "replace them with --overwrite"
        )
    if found is None or differing:
        _delete(plan.job)
    for folder in (out, plan.job.work):
        remove_unfinished(folder)
    write_atomically(join(out, IDENTITY), json.dumps(plan.identity, indent=1).encode())


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Name what differs between two requests: fields of the recipe with their values, options of sources without.

    Sources may be added behind the others.
    """
    said = [_difference(name, found, asked) for name in asked if name not in ("recipe", "sources")]
    if found.get("format") != asked["format"]:
        return [text for text in said if text]
    said += [_difference(field, found["recipe"], asked["recipe"], "recipe ") for field in asked["recipe"]]
    for number, (before, now) in enumerate(zip(found["sources"], asked["sources"], strict=False), 1):
        where = f" of source {number}" if len(asked["sources"]) > 1 else ""
        said += [
            f"{name}{where}: another one than before"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
    return [text for text in said if text]


def _difference(name: str, found: Mapping[str, Any], asked: Mapping[str, Any], kind: str = "") -> str:
    same = found.get(name) == asked[name]
    return "" if same else f"{kind}{name}: found {found.get(name)}, asked for {asked[name]}"


def identity(out: str) -> dict[str, Any] | None:
    """Return what was asked for when a folder was written; None where no ingest wrote it."""
    try:
        return json.loads(read_bytes(join(out, IDENTITY)))
    except FileNotFoundError:
        return None


def _delete(job: BundleJob) -> None:
    """Delete the files that an ingest writes, the index first, and no others."""
    filesystem, base = locate(job.out)
    there = _sizes(job.out)
    indices = [INDEX, *(name for name in there if EARLIER_INDEX.fullmatch(name))]
    ours = [name for name in there if _SHARD.fullmatch(name) or name in (IDENTITY, QUARANTINE)]
    for name in (*indices, *ours):
        if is_file(join(job.out, name)):
            filesystem.delete_file(f"{base}/{name}")
    _, work = locate(job.work)
    if filesystem.get_file_info(work).type == fs.FileType.Directory:
        filesystem.delete_dir(work)


def _sizes(folder: str) -> dict[str, int]:
    """Return the sizes of the files of a folder by name."""
    filesystem, base = locate(folder)
    with reaching(folder):
        infos = filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
    return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}


def done_bundles(job: BundleJob, numbers: Iterable[int]) -> dict[int, Manifest]:
    """Return the manifests of the bundles whose shards and leftovers are all there."""
    shards, leftovers = _sizes(job.out), _sizes(job.work)
    manifests = {number: read_manifest(job.work, number) for number in numbers}
    return {
        number: manifest
        for number, manifest in manifests.items()
        if manifest and are_whole(manifest.files, shards) and are_whole(list(manifest.rests.values()), leftovers)
    }


def finished(plan: IngestPlan, manifests: Mapping[int, Manifest]) -> ShardSet | None:
    """Return the shards if the index is that of these manifests, and every shard that it names is there."""
    try:
        shards = ShardSet.open(plan.job.out)
        mark = read_bytes(join(plan.job.work, _FINISHED)).decode()
    except (ShardError, FileNotFoundError):
        return None
    is_same = mark == _mark(shards.digest, plan, manifests)
    return shards if is_same and are_whole(shards.files, _sizes(plan.job.out)) else None


def _mark(digest: str, plan: IngestPlan, manifests: Mapping[int, Manifest]) -> str:
    """Return a text that changes with the index and with what the bundles wrote, but not with files read in vain."""
    outputs = [asdict(replace(manifests[bundle.number], stamps={})) for bundle in plan.bundles]
    names = [plan.class_names, *([plan.box_names] if plan.box_names else [])]
    made = json.dumps([len(plan.studies), *names, outputs], sort_keys=True)
    return f"{digest} {hashlib.sha256(made.encode()).hexdigest()}"


def finish(plan: IngestPlan, manifests: Mapping[int, Manifest], num_rejects: int) -> ShardSet:
    """Join the leftovers, write the index, and delete shards that a bundle wrote before its copies were known."""
    files: list[ShardFile] = []
    ordered = [manifests[bundle.number] for bundle in plan.bundles]
    for split in SPLITS:
        files += [file for manifest in ordered for file in manifest.files if file.name.startswith(f"{split}-")]
        rest = join_rests(plan.job, split, [m.rests[split] for m in ordered if split in m.rests])
        files += [rest] if rest else []
    counts = {"studies_found": len(plan.studies), "studies_quarantined": num_rejects}
    held = {value: f"label {value}" for manifest in ordered for value in manifest.label_values}
    label_names = dict(sorted({**held, **plan.label_names}.items()))
    boxed = {
        value: name for value, name in label_names.items() if any(rule.takes(value) for rule in plan.label_boxes)
    }
    box_names = {**boxed, **plan.box_names}
    card = IndexCard(plan.job.recipe.model_dump(mode="json"), label_names, plan.class_names, counts, box_names)
    write_index(plan.job.out, files, card)
    filesystem, base = locate(plan.job.out)
    shards = ShardSet.open(plan.job.out)
    earlier = [ShardSet.open(f"{plan.job.out}@{digest}") for digest in earlier_indices(plan.job.out)]
    needed = {file.name for one in (shards, *earlier) for file in one.files}
    for name in set(_sizes(plan.job.out)) - needed:
        if _SHARD.fullmatch(name):
            filesystem.delete_file(f"{base}/{name}")
    write_atomically(join(plan.job.work, _FINISHED), _mark(shards.digest, plan, manifests))
    return shards


def write_quarantine(job: BundleJob, rejects: Sequence[Reject], names: Mapping[str, str]) -> None:
    """Write one JSON line per rejected study; ``names`` gives the paths that are kept, by pseudonym."""
    lines = [
        json.dumps(asdict(reject) | ({"path": names[reject.study]} if reject.study in names else {}))
        for reject in rejects
    ]
    write_atomically(join(job.out, QUARANTINE), "".join(f"{line}\n" for line in lines).encode())
