"""The same ingest again: repaired, changed and added studies are read, and no others; earlier sets stay."""

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.labels import LABEL_MAP
from data.shards import bundles
from data.shards.check import verify
from data.shards.convert import Conversion
from data.shards.index import ShardSet
from orchestrator.ingest import run as module
from orchestrator.ingest.conversion import convert
from orchestrator.ingest.run import IngestConfig, IngestReport, ingest
from tests.former_shards import into_format_2

RECIPE = {"spacing_mm": None, "crop_above": None, "pad_to": (1, 4, 4), "window": (-1000, 1000)}
READ: list[str] = []


@pytest.fixture(autouse=True)
def here(monkeypatch, without_ray):
    """Note what is read."""
    read_study = bundles.read_study

    def noted(study):
        READ.append(study.key)
        return read_study(study)

    READ.clear()
    monkeypatch.setattr(bundles, "read_study", noted)


def write(folder: Path, name: str, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-900, 900, (5, 6, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def cohort(folder: Path, *numbers: int) -> Path:
    for number in numbers:
        write(folder, f"s{number:02d}", number)
    return folder


def run(source: Path, out: Path, **fields) -> IngestReport:
    READ.clear()
    fields = {"layout": "volumes", "recipe": "ct_abdomen_slices", "changes": RECIPE, "max_bad": 1.0} | fields
    options = {"modality": "CT", "label_suffix": "_seg"} | fields.pop("options", {})
    return ingest(IngestConfig(source=str(source), out=str(out), options=options, **fields))


def digest(report: IngestReport) -> str:
    assert report.shards is not None
    return report.shards.digest


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    reading = report.reading
    assert reading is not None
    return reading.num_new, reading.num_changed, reading.num_bad, reading.num_kept


@pytest.mark.slow
def test_a_repaired_and_a_changed_file_are_read_and_no_others_and_the_shards_are_those_of_a_fresh_ingest(tmp_path):
    source, out = cohort(tmp_path / "scans", *range(10)), tmp_path / "out"
    (source / "s03.nii.gz").write_bytes(b"no scan")
    first = run(source, out)
    assert (counts(first), len(first.rejects)) == ((10, 0, 0, 0), 1)
    write(source, "s03", 3)
    write(source, "s07", 70)
    again = run(source, out)
    assert (counts(again), sorted(READ)) == ((0, 1, 1, 8), ["s03.nii.gz", "s07.nii.gz"])
    assert "2 studies read (0 new, 1 changed, 1 quarantined before), 8 kept as they were" in again.summary()
    assert digest(again) == digest(run(source, tmp_path / "fresh"))
    assert list(verify(str(out))) == []
    assert (run(source, out).bundles_written, READ) == (0, [])


@pytest.mark.slow
def test_a_file_that_only_looks_unchanged_is_told_by_its_time_and_a_label_that_appears_is_a_change(tmp_path):
    source, out = cohort(tmp_path / "scans", *range(4)), tmp_path / "out"
    first = run(source, out)
    os.utime(source / "s01.nii.gz", ns=(1, 1))
    assert (digest(run(source, out)), READ) == (digest(first), ["s01.nii.gz"])
    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4)), source / "s02_seg.nii.gz")
    labelled = run(source, out)
    assert READ == ["s02.nii.gz"]
    assert labelled.shards is not None
    assert labelled.shards.select(having=LABEL_MAP).num_samples == 7


def test_a_bad_study_is_read_again_and_nothing_is_written_where_it_stays_bad(tmp_path):
    source, out = cohort(tmp_path / "scans", *range(4)), tmp_path / "out"
    (source / "s03.nii.gz").write_bytes(b"no scan")
    first = run(source, out)
    again = run(source, out)
    assert (READ, again.bundles_written, digest(again)) == (["s03.nii.gz"], 0, digest(first))
    assert "nothing was changed" in again.summary()
    (source / "s03.nii.gz").unlink()
    without = run(source, out)
    assert (READ, without.num_studies, without.rejects) == ([], 3, ())


def test_added_studies_alone_are_read_and_the_earlier_set_can_still_be_selected(tmp_path):
    source, out = cohort(tmp_path / "scans", *range(6)), tmp_path / "out"
    first = run(source, out)
    splits = {row["volume"]: row["split"] for row in first.shards.rows.to_pylist()}
    cohort(source, 20, 21, 22)
    more = run(source, out)
    assert (counts(more), sorted(READ)) == ((3, 0, 0, 6), ["s20.nii.gz", "s21.nii.gz", "s22.nii.gz"])
    assert digest(more) != digest(first)
    assert len(more.shards.rows["volume"].unique()) == 9
    assert splits.items() <= {row["volume"]: row["split"] for row in more.shards.rows.to_pylist()}.items()
    earlier = ShardSet.open(f"{out}@{digest(first)[:16]}")
    earlier.check_files()
    assert (earlier.digest, len(earlier.rows["volume"].unique())) == (digest(first), 6)
    assert list(verify(str(out))) == list(verify(f"{out}@{digest(first)[:16]}")) == []
    with pytest.raises(ValueError, match=r"no set of digest 0{16}; expected that of index\.parquet or [0-9a-f]{16}"):
        ShardSet.open(f"{out}@{'0' * 16}")


@pytest.mark.slow
def test_an_ingest_that_is_interrupted_gives_the_digest_of_an_undisturbed_one_also_when_studies_are_read_again(
    tmp_path, monkeypatch
):
    source, out = cohort(tmp_path / "scans", *range(20)), tmp_path / "out"
    in_this_process = module.run_bundles

    def interrupted(job, todo, readers):
        yield next(in_this_process(job, todo, readers))
        raise KeyboardInterrupt

    for change in (lambda: None, lambda: [write(source, f"s{n:02d}", n + 100) for n in range(20)]):
        change()
        monkeypatch.setattr(module, "run_bundles", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
        monkeypatch.setattr(module, "run_bundles", in_this_process)
        continued = run(source, out)
        assert 0 < len(READ) < 20
        shutil.rmtree(tmp_path / "undisturbed", ignore_errors=True)
        assert digest(continued) == digest(run(source, tmp_path / "undisturbed"))
        assert list(verify(str(out))) == []


@pytest.mark.slow
def test_of_copies_the_labelled_one_stays_and_an_original_that_changes_makes_its_copy_a_study(tmp_path):
    source, out = cohort(tmp_path / "scans", 0, 1), tmp_path / "out"
    for name in ("a_pool", "b"):
        write(source, name, 5)
    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4)), source / "b_seg.nii.gz")
    first = run(source, out)
    assert first.shards.select(having=LABEL_MAP).num_samples == 7
    assert [reject.found[:14] for reject in first.rejects] == ["the same voxel"]
    write(source, "b", 6)
    apart = run(source, out)
    assert (sorted(READ), apart.rejects) == (["a_pool.nii.gz", "b.nii.gz"], ())
    assert digest(apart) == digest(run(source, tmp_path / "fresh"))


@pytest.mark.slow
def test_a_damaged_shard_is_not_copied_but_read_from_its_scans(tmp_path):
    source, out = cohort(tmp_path / "scans", *range(4)), tmp_path / "out"
    run(source, out)
    for shard in [*out.glob("*.parquet"), *(out / ".ingest").glob("*.parquet")]:
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 255
        if not shard.name.startswith("index"):
            shard.write_bytes(content)
    write(source, "s00", 50)
    assert digest(run(source, out)) == digest(run(source, tmp_path / "fresh"))


def test_a_refusal_names_the_field_the_option_or_the_studies_that_differ(tmp_path):
    source, out = cohort(tmp_path / "scans", *range(4)), tmp_path / "out"
    run(source, out)
    with pytest.raises(
        ValueError, match=r"made differently \(recipe pad_to: found \[1, 4, 4\], asked for \[1, 8, 8\]\)"
    ):
        run(source, out, changes=RECIPE | {"pad_to": (1, 8, 8)})
    with pytest.raises(ValueError, match=r"made differently \(option rescale: another one than before\)"):
        run(source, out, options={"rescale": (1.0, 5.0)})
    (source / "s02.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 studies that were written are no longer in the sources, such as v-"):
        run(source, out)


def test_a_patient_who_moves_to_another_split_of_the_source_is_refused_without_the_name(tmp_path):
    source, out = tmp_path / "scans", tmp_path / "out"
    cohort(source, 1, 2)
    table = "file,label,patient,split\ns01.nii.gz,0,Ada,train\ns02.nii.gz,1,Bob,{}\n"
    (source / "t.csv").write_text(table.format("test"))
    fields = {"layout": "csv", "options": {"label_suffix": None}}
    run(source, out, **fields)
    (source / "t.csv").write_text(table.format("val"))
    with pytest.raises(ValueError, match=r"1 studies have another patient or split .*--overwrite") as caught:
        run(source, out, **fields)
    assert "Bob" not in str(caught.value)


@pytest.mark.slow
def test_a_patient_in_two_splits_is_quarantined_until_the_table_is_corrected_and_stops_nobody(tmp_path):
    source, out = cohort(tmp_path / "scans", 1, 2, 3, 4, 5), tmp_path / "out"
    rows = "file,label,patient,split\ns01.nii.gz,0,Ada,train\ns02.nii.gz,1,Ada,{}\ns03.nii.gz,0,Bob,train\n"
    fields = {"layout": "csv", "options": {"label_suffix": None}}
    (source / "t.csv").write_text(rows.format("test") + "s04.nii.gz,1,Cid,test\n")
    first = run(source, out, **fields)
    assert [reject.found for reject in first.rejects] == ["a study of a patient who is in two splits"] * 2
    (source / "t.csv").write_text(rows.format("train") + "s04.nii.gz,1,Cid,test\n")
    corrected = run(source, out, **fields)
    assert (counts(corrected), corrected.rejects) == ((0, 0, 2, 2), ())
    (source / "t.csv").write_text(rows.format("train") + "s04.nii.gz,1,Cid,test\ns05.nii.gz,1,Bob,test\n")
    torn = run(source, out, **fields)
    assert (counts(torn), len(torn.rejects)) == ((1, 1, 0, 3), 2)
    for report, number in ((corrected, 3), (torn, 2)):
        splits = {row["patient"]: row["split"] for row in report.shards.rows.to_pylist()}
        assert sorted(splits.values()) == ["test", "train", "train"][:number]
    assert list(verify(str(out))) == []


@pytest.mark.slow
def test_an_ingest_of_the_format_before_goes_on_in_the_folder_that_it_was_converted_to(tmp_path):
    source, old, new = cohort(tmp_path / "scans", *range(4)), tmp_path / "old", tmp_path / "new"
    before = run(source, old)
    into_format_2(old)
    with pytest.raises(ValueError, match=r"format 2, expected 3; `raydiology shards convert .*goes on in the new"):
        run(source, old)
    assert len(list(convert(Conversion.of(str(old)), str(new)))) == len(list(new.glob("*-*.parquet"))) > 0
    report = run(source, new)
    assert (READ, digest(report), report.bundles_written) == ([], digest(before), 0)
    cohort(source, 4)
    more = run(source, new)
    assert (READ, counts(more)) == (["s04.nii.gz"], (1, 0, 0, 4))
    assert list(verify(str(new))) == []


def test_an_earlier_set_is_converted_without_the_work_of_later_ingests(tmp_path):
    source, old, new = cohort(tmp_path / "scans", *range(3)), tmp_path / "old", tmp_path / "new"
    run(source, old)
    into_format_2(old)
    first = Conversion.of(str(old)).digest
    (old / f"index-{first[:16]}.parquet").write_bytes((old / "index.parquet").read_bytes())
    list(convert(Conversion.of(f"{old}@{first}"), str(new)))
    assert list(verify(str(new))) == []
    assert not (new / "ingest.json").exists()
