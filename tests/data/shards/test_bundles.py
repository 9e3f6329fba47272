"""A bundle is a pure function of its studies: mixed, whole or absent, and silent about names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.labels import LABEL_MAP
from data.phantoms.abdomen import write_cohort
from data.quarantine import BadStudy
from data.recipes import RECIPES
from data.shards import bundles
from data.shards.bundles import Bundle, BundleJob, join_rests, run_bundle
from data.shards.index import IndexCard, ShardSet, write_index
from data.shards.manifest import duplicates, read_manifest
from data.shards.reader import ShardReader
from data.shards.writer import open_shard
from data.sources import Study, find_studies

KEY = bytes(range(32))
SLICES = RECIPES["ct_abdomen_slices"].with_fields(spacing_mm=(16.0, 8.0, 8.0), pad_to=(1, 16, 16))
VOLUMES = RECIPES["ct_volume"].with_fields(spacing_mm=(12.0, 12.0, 12.0))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, ...]:
    folder = write_cohort(tmp_path_factory.mktemp("cohort"), 4, seed=5, spacing_mm=(20.0, 10.0, 10.0))
    return tuple(find_studies(str(folder), "nnunet"))


def job(folder: Path, recipe=SLICES, rows_per_group: int = 8) -> BundleJob:
    return BundleJob(str(folder), recipe, KEY, seed=0, rows_per_group=rows_per_group)


def all_train(studies: tuple[Study, ...], number: int = 0, **excluded: str) -> Bundle:
    return Bundle(number, studies, ("train",) * len(studies), excluded)


def test_every_row_group_but_the_leftovers_has_the_same_number_of_rows(tmp_path, studies):
    manifest = run_bundle(job(tmp_path), all_train(studies))
    (file,) = manifest.files
    with open_shard(str(tmp_path), file.name) as shard:
        sizes = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
    assert set(sizes) == {8}
    assert manifest.rests["train"].num_rows < 8
    assert file.num_rows == 8 * len(sizes)


def test_row_groups_mix_the_slices_of_patients(tmp_path, studies):
    manifest = run_bundle(job(tmp_path), all_train(studies))
    with open_shard(str(tmp_path), manifest.files[0].name) as shard:
        patients = [
            len(set(shard.read_row_group(group)["patient"].to_pylist())) for group in range(shard.num_row_groups)
        ]
    assert np.mean(patients) > 2.5


def test_nothing_is_lost_between_studies_and_shards(tmp_path, studies):
    here = job(tmp_path, rows_per_group=5)
    parts = [run_bundle(here, all_train(studies[:2], 0)), run_bundle(here, all_train(studies[2:], 1))]
    rest = join_rests(here, "train", [part.rests["train"] for part in parts if part.rests])
    assert rest is not None
    write_index(str(tmp_path), [*parts[0].files, *parts[1].files, rest], IndexCard({}))
    shards = ShardSet.open(str(tmp_path))
    expected = {}
    for study in studies:
        name = bundles.volume_id(KEY, study)
        scans = bundles.preprocess(SLICES, study)
        expected |= {
            f"{name}-{scan.slice_index:04d}": (scan.voxels.tobytes(), scan.label.tobytes()) for scan in scans
        }
    table = ShardReader(shards, LABEL_MAP).read(np.arange(shards.num_samples))
    columns = [table[name].to_pylist() for name in ("sample_id", "voxels", "label")]
    assert {name: (voxels, label) for name, voxels, label in zip(*columns, strict=True)} == expected
    assert sorted(set(shards.select().group_sizes[:-1])) == [5]


def test_a_bundle_done_again_gives_the_same_files(tmp_path, studies):
    first = run_bundle(job(tmp_path / "a"), all_train(studies))
    assert run_bundle(job(tmp_path / "b"), all_train(studies)) == first
    assert read_manifest(job(tmp_path / "a").work, 0) == first
    assert read_manifest(job(tmp_path / "a").work, 1) is None


def test_a_manifest_lists_the_label_values_that_were_written(tmp_path, studies):
    found = {
        int(value)
        for study in studies
        for scan in bundles.preprocess(SLICES, study)
        for value in np.unique(scan.label)
    }
    assert len(found) > 8
    assert run_bundle(job(tmp_path), all_train(studies)).label_values == sorted(found - {0})


def test_volumes_have_a_row_group_each(tmp_path, studies):
    manifest = run_bundle(job(tmp_path, VOLUMES, rows_per_group=1), all_train(studies))
    assert manifest.rests == {}
    with open_shard(str(tmp_path), manifest.files[0].name) as shard:
        assert [shard.metadata.row_group(group).num_rows for group in range(4)] == [1, 1, 1, 1]


def test_a_bad_study_is_left_out_with_its_reason_and_the_others_go_on(tmp_path, studies):
    bad = tmp_path / "Grace Hopper 1906-12-09.nii.gz"
    bad.write_bytes(b"")
    broken = Study("Grace Hopper", "volume", (str(bad),), "Grace Hopper", "set")
    manifest = run_bundle(job(tmp_path / "out"), all_train((*studies[:2], broken)))
    assert len(manifest.contents) == 2
    (reject,) = manifest.rejects
    assert "0 bytes" in reject.found or "empty" in reject.found
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for name in (b"Grace", b"Hopper", b"1906"):
        assert name not in written


def test_what_a_library_raises_becomes_a_reason_without_its_message(monkeypatch, studies):
    def garbage(study):
        raise RuntimeError(f"cannot read {study.key}")

    monkeypatch.setattr(bundles, "read_study", garbage)
    with pytest.raises(BadStudy) as caught:
        bundles.preprocess(SLICES, studies[0])
    assert caught.value.found == "an error when it was read (RuntimeError: cannot read …)"
    assert studies[0].key not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AttributeError("'NoneType' object has no attribute 'strip'"), None),
        (ArithmeticError("3 of 4 axes"), None),
        (MemoryError(), "MemoryError"),
        (AssertionError(), "AssertionError"),
        (ValueError("could not convert string to float: 'Hopper^Grace'"), "could not convert string to float: …"),
        (KeyError("Grace Hopper"), "KeyError"),
        (RuntimeError("/home/grace/x.nii: born 19061209"), "RuntimeError: … born …"),
        (RuntimeError("no slice of Grace (Hopper) at 3"), "RuntimeError: no slice of … (…) at 3"),
        (FileNotFoundError(2, "gone", "/home/grace/x.nii"), "FileNotFoundError: No such file or directory"),
    ],
)
def test_whatever_reading_raises_is_the_study_s_fault_and_is_told_without_names(monkeypatch, studies, error, told):
    def mistake(study):
        raise error

    monkeypatch.setattr(bundles, "read_study", mistake)
    hopper = replace(studies[0], patient="hopper, grace")
    with pytest.raises(BadStudy) as caught:
        bundles.preprocess(SLICES, hopper)
    assert f"({type(error).__name__}" in caught.value.found
    assert (str(error) if told is None else told) in caught.value.found
    for name in ("grace", "hopper", "1906"):
        assert name not in str(caught.value).lower()


def test_a_study_that_ends_its_reader_is_named_and_not_read(tmp_path, studies):
    fatal = bundles.volume_id(KEY, studies[2])
    manifest = run_bundle(job(tmp_path), replace(all_train(studies), fatal=(fatal,)))
    assert [reject.study for reject in manifest.rejects] == [fatal]
    assert manifest.rejects[0].found == "a file that ended, twice, the process that read it"
    assert len(manifest.contents) == 3
    assert read_manifest(job(tmp_path).work, 0) == manifest


def test_copies_are_the_later_ones_in_the_order_given():
    assert duplicates([("v-3", "x"), ("v-1", "y"), ("v-2", "x"), ("v-4", "x")]) == {"v-2": "v-3", "v-4": "v-3"}


def test_excluded_copies_are_not_written_and_keep_their_hash(tmp_path, studies):
    whole = run_bundle(job(tmp_path / "a"), all_train(studies))
    copy = bundles.volume_id(KEY, studies[1])
    manifest = run_bundle(job(tmp_path / "b"), all_train(studies, 0, **{copy: whole.contents[copy]}))
    assert manifest.contents == whole.contents
    assert manifest.excluded == [copy]
    with open_shard(str(tmp_path / "b"), manifest.files[0].name) as shard:
        assert copy not in shard.read(columns=["volume"])["volume"].to_pylist()
