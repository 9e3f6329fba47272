"""What is written into shards comes back bit for bit, and what was damaged since is named."""

import json
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data.boxes import Boxes
from data.labels import CLASSES, KINDS, LABEL_MAP
from data.scan import Scan
from data.shards.check import describe, doubts, verify
from data.shards.index import IndexCard, ShardSet, write_index
from data.shards.reader import MOST_OPEN_FILES, ShardReader
from data.shards.writer import (
    LABEL_DTYPES,
    STORED_DTYPES,
    Sample,
    ShardError,
    from_row,
    open_shard,
    remove_unfinished,
    to_row,
    write_shard,
)
from tests.shardsets import write_pictures


def slice_(
    number: int,
    patient: int = 0,
    split: str = "train",
    labelled: bool = True,
    size: int = 12,
    classes: tuple[int, ...] | None = None,
    dtype: type[np.generic] = np.uint16,
) -> dict:
    rng = np.random.default_rng(number)
    voxels = rng.integers(0, 60_000, (1, size, size + 1)).astype(dtype)
    label = rng.integers(0, 9, (size, size + 1)).astype(np.uint8) if labelled else None
    scan = Scan(voxels, (1.0, 1.5), "CT", np.eye(4), label, scale=1 / 65535, slice_index=number)
    return to_row(Sample(scan, f"v-a-{number:04d}", f"p-{patient}", f"v-{patient}", "set", split, classes))


def write_set(folder: Path, rows: list[dict], rows_per_group: int = 4, prefix: str = "train-00000") -> ShardSet:
    groups = [rows[at : at + rows_per_group] for at in range(0, len(rows), rows_per_group)]
    file = write_shard(str(folder), prefix, groups)
    assert file is not None
    write_index(str(folder), [file], IndexCard({"name": "test"}, {1: "liver"}))
    return ShardSet.open(str(folder))


def voxels_of(table, row: int) -> np.ndarray:
    dtype, shape = table["dtype"][row].as_py(), table["shape"][row].as_py()
    return np.frombuffer(table["voxels"][row].as_py(), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def boxes_from(spans: list[tuple[tuple[int, int], ...]], dims: int) -> Boxes:
    """Boxes of one voxel, from the first and the last of each axis."""
    corners = np.array(spans, np.int64).reshape(-1, dims, 2).transpose(0, 2, 1)
    return Boxes(corners, np.arange(len(spans)))


@st.composite
def samples(draw) -> tuple[dict, dict]:
    """Draw the fields of a scan and of its sample."""
    dims = draw(st.sampled_from([2, 3]))
    size = draw(st.lists(st.integers(1, 5), min_size=dims, max_size=dims).map(tuple))
    dtype = np.dtype(draw(st.sampled_from(STORED_DTYPES))).newbyteorder(draw(st.sampled_from("<>")))
    voxels = draw(arrays.arrays(dtype, (draw(st.integers(1, 3)), *size)))
    label = draw(st.none() | st.sampled_from(LABEL_DTYPES).flatmap(lambda kind: arrays.arrays(kind, size)))
    scan = {
        "voxels": voxels,
        "spacing_mm": tuple(draw(st.floats(0.25, 8, width=32)) for _ in range(dims)),
        "modality": "MR",
        "affine": draw(st.none() | arrays.arrays(np.float64, (4, 4), elements=st.floats(-1e3, 1e3))),
        "label": label,
        "scale": draw(st.floats(1e-6, 2)),
        "offset": draw(st.floats(-1024, 0)),
        "slice_index": draw(st.none() | st.integers(0, 999)),
    }
    corners = st.tuples(*[st.integers(0, extent - 1).map(lambda a: (a, a + 1)) for extent in size])
    findings = draw(st.none() | st.lists(corners, max_size=3))
    scan["boxes"] = None if findings is None else boxes_from(findings, dims)
    classes = draw(st.none() | st.lists(st.integers(0, 9), max_size=3).map(tuple))
    return scan, {"classes": classes}


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(samples())
def test_a_sample_comes_back_as_it_was_written(fields):
    sample = Sample(Scan(**fields[0]), "v-1", "p-1", "v-1", "set", "test", **fields[1])
    with tempfile.TemporaryDirectory() as folder:
        file = write_shard(folder, "test-00000", [[to_row(sample)]])
        assert file is not None
        with open_shard(folder, file.name) as shard:
            found = from_row(shard.read().to_pylist()[0])
    np.testing.assert_array_equal(found.scan.voxels, sample.scan.voxels)
    assert found.scan.voxels.dtype == sample.scan.voxels.dtype.newbyteorder("<")
    for name in ("affine", "label"):
        np.testing.assert_equal(getattr(found.scan, name), getattr(sample.scan, name))
    for name in ("spacing_mm", "modality", "scale", "offset", "slice_index"):
        assert getattr(found.scan, name) == getattr(sample.scan, name)
    found_boxes, boxes = found.scan.boxes, sample.scan.boxes
    assert (found_boxes is None) == (boxes is None)
    if found_boxes and boxes:
        np.testing.assert_array_equal(found_boxes.corners, boxes.corners)
        np.testing.assert_array_equal(found_boxes.classes, boxes.classes)
    assert (found.sample_id, found.split, found.classes) == ("v-1", "test", sample.classes)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 21), max_size=30))
def test_rows_are_read_in_the_order_they_are_asked_for(ids):
    kinds = (np.uint16, np.uint8, np.float32)
    rows = [slice_(number, size=12 + number % 5, dtype=kinds[number % 3]) for number in range(22)]
    with tempfile.TemporaryDirectory() as folder:
        table = ShardReader(write_set(Path(folder), rows), LABEL_MAP).read(np.array(ids, np.int64))
    assert table["sample_id"].to_pylist() == [rows[i]["sample_id"] for i in ids]
    assert table["voxels"].to_pylist() == [rows[i]["voxels"] for i in ids]
    assert table["label"].to_pylist() == [rows[i]["label"] for i in ids]


def test_each_row_group_is_read_once_for_a_batch(tmp_path, monkeypatch):
    shards = write_set(tmp_path, [slice_(number) for number in range(12)])
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda f, i, **k: reads.append(i) or read(f, i, **k))
    ShardReader(shards).read(np.array([0, 5, 1, 4, 2, 7]))
    assert reads == [0, 1]


@pytest.mark.slow
def test_little_more_memory_is_taken_than_the_rows_need(tmp_path):
    write_set(tmp_path, [slice_(number, size=100, labelled=False) for number in range(64)])
    code = """
        import sys
        import numpy as np, pyarrow as pa
        from data.shards.reader import ShardReader
        from data.shards.index import ShardSet
        table = ShardReader(ShardSet.open(sys.argv[1])).read(np.random.default_rng(0).permutation(64))
        print(table["voxels"].nbytes, pa.default_memory_pool().max_memory())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    needed, taken = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert 64 * 100 * 101 * 2 <= needed <= taken < 1.5 * needed


def test_labels_are_read_only_when_asked_for(tmp_path):
    shards = write_set(tmp_path, [slice_(0)])
    columns = [set(ShardReader(shards, labels).read(np.array([0])).column_names) for labels in (None, *KINDS)]
    assert [names - columns[0] for names in columns[1:]] == [{"label"}, {"classes"}, {"boxes", "box_classes"}]
    assert columns[0] & {"label", "classes", "boxes", "box_classes"} == set()


def num_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.slow
def test_no_more_files_are_open_than_allowed(tmp_path):
    num_files = MOST_OPEN_FILES + 5
    files = [write_shard(str(tmp_path), f"train-{n:05d}", [[slice_(n)]]) for n in range(num_files)]
    write_index(str(tmp_path), [file for file in files if file], IndexCard({}))
    shards = ShardSet.open(str(tmp_path))
    reader = ShardReader(shards)
    before = num_open_files()
    for number in range(num_files):
        reader.read(np.array([number]))
    assert num_open_files() - before <= MOST_OPEN_FILES


def test_the_same_rows_give_the_same_digest_and_one_other_voxel_another(tmp_path):
    rows = [slice_(number) for number in range(9)]
    first, second = (write_set(tmp_path / name, rows).digest for name in ("a", "b"))
    changed = dict(rows[3], voxels=b"\x01" + rows[3]["voxels"][1:])
    assert first == second != write_set(tmp_path / "c", [*rows[:3], changed, *rows[4:]]).digest


def test_selections_take_split_patients_and_labels(tmp_path):
    train = [slice_(n, patient=n % 3, labelled=n % 2 == 0) for n in range(10)]
    files = [
        write_shard(str(tmp_path), "train-00000", [train[:4], train[4:8], train[8:]]),
        write_shard(str(tmp_path), "val-00000", [[slice_(90, patient=7, split="val", size=20)]]),
    ]
    write_index(str(tmp_path), [file for file in files if file], IndexCard({"name": "test"}, {1: "liver"}))
    shards = ShardSet.open(str(tmp_path))
    assert (shards.num_samples, shards.spatial_dims, shards.num_channels) == (11, 2, 1)
    assert shards.label_names == {1: "liver"}
    assert shards.select("train").group_sizes.tolist() == [4, 4, 2]
    assert shards.select("val").extents.tolist() == [[20, 21]]
    chosen = shards.select("train", patients={"p-1"}, having=LABEL_MAP)
    assert chosen.row_ids.tolist() == [4]
    assert chosen.group_of.tolist() == [1]
    assert shards.select(patients=[]).num_samples == 0


def test_shards_are_read_through_addresses_too(tmp_path):
    write_set(tmp_path, [slice_(n) for n in range(3)])
    shards = ShardSet.open(tmp_path.as_uri())
    assert ShardReader(shards).read(np.array([2]))["sample_id"].to_pylist() == ["v-a-0002"]


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_no_shard(tmp_path):
    program = f"""
        import time
        from tests.data.shards.test_shards import slice_, write_shard
        def groups():
            yield [slice_(0)]
            print("half", flush=True)
            time.sleep(60)
        write_shard({str(tmp_path)!r}, "train-00000", groups())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    assert [path.suffix for path in tmp_path.iterdir()] != []
    assert list(tmp_path.glob("*.parquet")) == []
    remove_unfinished(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_nothing_in_sound_shards(tmp_path):
    write_set(tmp_path, [slice_(n) for n in range(6)])
    assert list(verify(str(tmp_path))) == []


def damage(folder: Path) -> Path:
    """Flip one byte of some voxels."""
    shard = next(folder.glob("train-*"))
    content = bytearray(shard.read_bytes())
    needle = slice_(5)["voxels"][40:80]  # noise: lz4 keeps it as it is
    content[content.index(needle) + 3] ^= 0xFF
    shard.write_bytes(content)
    return shard


def test_a_flipped_byte_is_found_with_its_sample(tmp_path):
    shards = write_set(tmp_path, [slice_(n) for n in range(8)])
    shard = damage(tmp_path)
    findings = list(verify(str(tmp_path)))
    assert f"shard {shard.name}: content hash" in findings[0]
    assert f"shard {shard.name}: voxels of sample v-a-0005: checksum" in findings[1]
    with pytest.raises(ShardError, match=rf"{shard.name}.*v-a-0005.*expected {slice_(5)['crc32']}.*shards verify"):
        ShardReader(shards).read(np.array([4]))
    assert ShardReader(shards).read(np.array([0])).num_rows == 1


def test_a_missing_a_cut_and_a_foreign_shard_are_findings(tmp_path):
    rows = [slice_(n) for n in range(4)]
    files = [write_shard(str(tmp_path), f"train-0000{n}", [[row]]) for n, row in enumerate(rows[:2])]
    write_index(str(tmp_path), [file for file in files if file], IndexCard({}))
    write_shard(str(tmp_path), "train-00009", [[rows[2]]])
    missing, cut, foreign = sorted(tmp_path.glob("train-*"))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-100])
    findings = list(verify(str(tmp_path)))
    assert f"{missing.name}: missing" in findings[0]
    assert f"{cut.name}: {cut.stat().st_size:,} bytes, expected {cut.stat().st_size + 100:,}" in findings[1]
    assert f"{foreign.name}: not in the index" in findings[2]
    reader = ShardReader(ShardSet.open(str(tmp_path)))
    with pytest.raises(ShardError, match=f"{missing.name}: missing.*run the same ingest again"):
        reader.read(np.array([0]))
    with pytest.raises(ShardError, match=f"{cut.name}.*expected a whole Parquet file"):
        reader.read(np.array([1]))


def test_a_patient_in_two_splits_is_a_finding(tmp_path):
    files = [write_shard(str(tmp_path), f"{s}-00000", [[slice_(1, 5, s)]]) for s in ("train", "test")]
    write_index(str(tmp_path), [file for file in files if file], IndexCard({}))
    assert "1 patients are in both train (1 patients) and test (1), such as p-5" in next(verify(str(tmp_path)))


def test_a_folder_without_an_index_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ShardError, match=r"no index.parquet.*run the same ingest again: it continues"):
        ShardSet.open(str(tmp_path))
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ShardError, match=r"21 bytes is no whole Parquet file; delete it"):
        ShardSet.open(str(tmp_path))


def test_types_that_cannot_be_stored_are_refused():
    scan = Scan(np.zeros((1, 2, 2), np.float64), (1.0, 1.0), "CT")
    with pytest.raises(ValueError, match=r"v-9: voxels of type float64; expected one of .*uint16"):
        to_row(Sample(scan, "v-9", "p", "v-9", "set", "train"))
    labelled = scan.with_(voxels=np.zeros((1, 2, 2), np.int16), label=np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match=r"v-9: label of type int64; expected one of .*uint8"):
        to_row(Sample(labelled, "v-9", "p", "v-9", "set", "train"))


def test_what_shards_hold_is_described_in_numbers(tmp_path):
    shards = write_set(tmp_path, [slice_(n, patient=n % 2) for n in range(6)])
    lines = dict(describe(shards))
    assert lines["samples"] == "6 in 2 row groups of 1 shards"
    assert lines["train"] == "6 samples of 2 volumes of 2 patients, 6 with a label map"
    assert lines["sizes"] == "2D, 1 channel, 12 x 13 to 12 x 13"
    assert lines["labels"] == "1 liver"


def test_what_shards_lack_is_said_with_what_to_do(tmp_path):
    alone = write_set(tmp_path / "one", [slice_(n) for n in range(3)])
    (doubt,) = doubts(alone)
    assert doubt.startswith("all samples (3) are of one patient, so no patient can be held out")
    assert dict(describe(alone))["note"] == doubt
    several = write_set(tmp_path / "two", [slice_(n, patient=n) for n in range(3)])
    assert doubts(several) == [
        "no sample of split val has a label map, but 3 samples of other splits do; to judge a fine-tuning, "
        "cross-validate by downstream.num_folds, or ingest with a larger val_fraction"
    ]
    assert dict(describe(several))["val"] == "no samples"
    whole = ShardSet.open(write_pictures(tmp_path / "whole", 4))
    assert (doubts(whole), whole.is_labelled) == ([], True)


def test_samples_with_classes_are_selected_and_their_patients_told_apart_by_them(tmp_path):
    rows = [slice_(n, patient=n // 2, classes=c) for n, c in enumerate([(2,), (0, 2), (), None, None, (1,)])]
    shards = write_set(tmp_path, rows)
    chosen = shards.select(having=CLASSES)
    assert chosen.row_ids.tolist() == [0, 1, 2, 5]
    assert shards.patients(chosen) == {"p-0": (0, 2), "p-1": (), "p-2": (1,)}


def test_classes_are_described_with_how_many_samples_have_each(tmp_path):
    rows = [slice_(n, classes=c) for n, c in enumerate([(2,), (0, 2), (), None, (1,)])]
    file = write_shard(str(tmp_path), "train-00000", [rows])
    assert file is not None
    write_index(str(tmp_path), [file], IndexCard({}, class_names={0: "mass", 2: "nodule", 5: "hernia"}))
    lines = dict(describe(ShardSet.open(str(tmp_path))))
    assert lines["classes"] == "0 mass (1), 1 ? (1), 2 nodule (2), 5 hernia (0)"
    assert lines["train"].endswith("5 with a label map, 4 with classes")


def test_shards_of_another_format_are_refused_with_the_way_to_renew_them(tmp_path):
    write_set(tmp_path, [slice_(0)])
    index = tmp_path / "index.parquet"
    table = pq.read_table(index)
    card = json.loads(table.schema.metadata[b"raydiology"]) | {"format": 1}
    pq.write_table(table.replace_schema_metadata({b"raydiology": json.dumps(card)}), index)
    with pytest.raises(ShardError, match=r"format 1, expected 3; run ingest again with --overwrite"):
        ShardSet.open(str(tmp_path))
