"""Shards of the format before are refused with the command that converts them, and hold the same afterwards."""

from pathlib import Path

import numpy as np
import pytest

from data.labels import CLASSES, LABEL_MAP
from data.shards.check import verify
from data.shards.convert import Conversion, copy_shard
from data.shards.index import ShardSet
from data.shards.reader import ShardReader
from data.shards.writer import ShardError
from tests.former_shards import into_format_2
from tests.shardsets import write_pictures, write_slices


def converted(old: Path, new: Path) -> str:
    conversion = Conversion.of(str(old))
    conversion.check_new(str(new))
    return conversion.finish(str(new), [copy_shard(str(old), file, str(new)) for file in conversion.files])


@pytest.mark.parametrize("write", [write_slices, write_pictures])
def test_converted_shards_are_those_that_would_be_written_now(tmp_path: Path, write) -> None:
    now = ShardSet.open(write(tmp_path / "now"))
    into_format_2(Path(write(tmp_path / "old")))
    digest = converted(tmp_path / "old", tmp_path / "new")
    new = ShardSet.open(str(tmp_path / "new"))
    assert digest == new.digest == now.digest
    assert new.files == now.files
    assert (new.label_names, new.class_names, new.recipe) == (now.label_names, now.class_names, now.recipe)
    assert new.rows["boxes"].null_count == new.rows["box_classes"].null_count == new.num_samples
    assert list(verify(str(tmp_path / "new"))) == []
    ids = np.arange(new.num_samples)
    labels = LABEL_MAP if write is write_slices else CLASSES
    assert ShardReader(new, labels).read(ids).equals(ShardReader(now, labels).read(ids))


def test_shards_of_the_format_before_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    old = tmp_path / "old shards"
    into_format_2(Path(write_slices(old)))
    with pytest.raises(ShardError) as refusal:
        ShardSet.open(str(old))
    assert str(refusal.value) == (
        f"shards {old}: format 2, expected 3; `raydiology shards convert '{old}' --out '{old}-format3'` copies them "
        "without reading a scan again"
    )


def flip(shard: Path, at: int) -> None:
    content = bytearray(shard.read_bytes())
    content[at] ^= 0xFF
    shard.write_bytes(content)


def test_no_byte_that_was_damaged_is_copied(tmp_path: Path) -> None:
    into_format_2(Path(write_slices(tmp_path / "old")))
    shard = next((tmp_path / "old").glob("train-*"))
    before = shard.read_bytes()
    footer = int.from_bytes(before[-8:-4], "little") + 8
    for share in (0.05, 0.3, 0.6, 0.95):
        shard.write_bytes(before)
        flip(shard, int(share * (len(before) - footer)))
        with pytest.raises(ShardError, match=rf"shard {shard.name}: .*shards verify"):
            converted(tmp_path / "old", tmp_path / f"new {share}")
        assert list((tmp_path / f"new {share}").glob("*.parquet")) == []
    shard.unlink()
    with pytest.raises(ShardError, match=rf"shard {shard.name}: missing"):
        converted(tmp_path / "old", tmp_path / "new")


def test_only_shards_of_the_format_before_are_converted_and_only_into_a_new_folder(tmp_path: Path) -> None:
    now, old = write_slices(tmp_path / "now"), Path(write_slices(tmp_path / "old"))
    into_format_2(old)
    with pytest.raises(ShardError, match=r"now: format 3, expected 2; use them as they are"):
        Conversion.of(now)
    before = ShardSet.open(now).digest
    with pytest.raises(ValueError, match=r"now: index.parquet is there; expected a new folder; choose another --out"):
        converted(old, Path(now))
    assert ShardSet.open(now).digest == before
