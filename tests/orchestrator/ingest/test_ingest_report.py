"""What an ingest says when it ends: bad studies by reason, each with a remedy, and what the shards lack."""

from pathlib import Path

from data.shards.index import ShardSet
from data.shards.manifest import Reject
from data.sources import LeftOutFiles
from orchestrator.ingest.run import IngestConfig, IngestReport
from tests.shardsets import write_pictures

LEFT_OUT = LeftOutFiles(".txt", 2, "Ada/notes.txt", "no scan")


def report_of(shards: ShardSet | None, *rejects: Reject, **fields) -> IngestReport:
    config = IngestConfig(source="scans", layout="csv", recipe="xray", out="shards", max_bad=0.5, **fields)
    return IngestReport(config, shards, 20, rejects, (LEFT_OUT,), ("a remark",), bundles_written=1, seconds=3.2)


def test_bad_studies_are_grouped_by_reason_with_what_to_do():
    rejects = [Reject(f"v-{n:016x}", "it is empty", "voxels", "copy it again") for n in range(3)]
    rejects += [
        Reject(f"v-{n:016x}", f"the same voxels as study v-{n + 1:016x}", "each scan once", "remove one")
        for n in (7, 9)
    ]
    rejects += [Reject("v-1", "it is empty", "voxels", "add slices")]
    assert report_of(None, *rejects, *rejects).summary().splitlines() == [
        "8 of 20 studies written, 12 quarantined: quarantine.jsonl",
        "  6 x it is empty: copy it again",
        "  4 x the same voxels as another study: remove one",
        "  2 x it is empty: add slices",
        "neither read nor quarantined:",
        "  2 .txt, such as */*.txt: no scan",
        "a remark",
        "60% of the studies are bad, expected at most 50%: no index was written; repair or remove them, or raise "
        "--max-bad: finished work is kept",
    ]


def test_a_split_that_stays_empty_is_mentioned_with_the_fraction_that_was_asked_for(tmp_path: Path):
    shards = ShardSet.open(write_pictures(tmp_path, 3))
    lines = report_of(shards, val_fraction=0.1).summary().splitlines()
    assert "3 samples (3 train) in 3 s" in lines
    assert (
        "split val is empty: 0.1 of so few patients is less than half a patient; raise --val-fraction, or ingest "
        "more patients"
    ) in lines
    assert not [line for line in lines if line.startswith("split test")]
    assert [line for line in lines if line.startswith("no sample of split val has a class, but 3 samples")]
