"""Pseudonyms are stable under one key, useless without it, and the key stays private."""

import gzip
import sqlite3
import stat
import zipfile
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data.privacy import KEY_FILE, Pseudonymiser, load_key
from data.quarantine import BadStudy
from data.readers import read_study
from data.recipes import RECIPES
from data.shards.bundles import Bundle, BundleJob, run_bundle
from data.shards.writer import open_shard
from data.sources import SourceOptions, find_studies
from tests import planted

keys = st.binary(min_size=32, max_size=32)


@settings(deadline=None)
@given(keys, st.text())
def test_pseudonyms_have_a_fixed_form_and_depend_on_key_and_kind(key, name):
    one = Pseudonymiser(key)
    assert one.patient(name) == Pseudonymiser(key).patient(name)
    assert one.patient(name)[:2] == "p-"
    assert len(one.patient(name)) == len(one.study(name)) == 18
    assert len({pseudonym(name)[2:] for pseudonym in (one.patient, one.study, one.dataset)}) == 3
    other = bytes([key[0] ^ 1]) + key[1:]
    assert one.patient(name) != Pseudonymiser(other).patient(name)


def test_the_key_is_made_once_and_readable_by_its_owner_only(tmp_path):
    key = load_key(tmp_path / "home")
    path = tmp_path / "home" / KEY_FILE
    assert load_key(tmp_path / "home") == key
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert load_key(tmp_path / "other") != key


def test_the_home_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDIOLOGY_HOME", str(tmp_path))
    assert load_key().hex() == (tmp_path / KEY_FILE).read_text()


def test_a_key_that_is_none_is_an_error(tmp_path):
    (tmp_path / KEY_FILE).write_text("no key")
    with pytest.raises(ValueError, match=r"not a hexadecimal key; restore it, or delete it"):
        load_key(tmp_path)
    with pytest.raises(ValueError, match=r"key of 3 bytes; expected 32"):
        Pseudonymiser(b"abc")


@pytest.mark.parametrize(
    ("given", "written"), [("trial-7", "trial-7"), (None, Pseudonymiser(bytes(32)).dataset("PAT-70431-X 20190317"))]
)
def test_a_folder_s_name_is_written_as_a_pseudonym_and_a_given_one_as_it_is(tmp_path, given, written):
    source = planted.write_dicom(tmp_path)
    studies = find_studies(str(source), "dicom", SourceOptions(dataset=given))
    job = BundleJob(str(tmp_path / "out"), RECIPES["ct_volume"], key=bytes(32), seed=0, rows_per_group=1)
    manifest = run_bundle(job, Bundle(0, tuple(studies), ("train",) * len(studies)))
    with open_shard(job.out, manifest.files[0].name) as shard:
        assert shard.read(columns=["dataset"])["dataset"].to_pylist() == [written]
    assert planted.leaks(planted.texts_below(tmp_path / "out")) == []


def test_words_that_dicom_does_not_define_are_not_repeated_from_coded_tags(tmp_path):
    def series(**tags):
        source = planted.write_dicom(tmp_path / "-".join(tags), **tags)
        return next(study for study in find_studies(str(source), "dicom") if len(study.image) > 1)

    assert read_study(series(Modality="LOVELACE")).modality == ""
    with pytest.raises(BadStudy, match=r"^undefined colour pixels; expected single-frame grey slices"):
        read_study(series(PhotometricInterpretation="LOVELACE"))


def test_values_that_dicom_does_not_allow_are_not_logged(tmp_path, caplog, capfd):
    source = planted.write_dicom(tmp_path)
    for path in source.rglob("Lovelace_Augusta_*.dcm"):
        wrong = f"{planted.NAME} {planted.PATIENT_ID}".ljust(len(planted.SERIES_UID))
        path.write_bytes(path.read_bytes().replace(planted.SERIES_UID.encode(), wrong.encode()))
    with caplog.at_level("WARNING"):
        (series,) = (study for study in find_studies(str(source), "dicom") if len(study.image) > 1)
        assert read_study(series).voxels.shape == (1, 8, 48, 48)
    assert planted.leaks({"logged": "".join((caplog.text, *capfd.readouterr())).encode()}) == []


def test_the_search_for_planted_texts_finds_each_of_them_in_every_kind_of_file(tmp_path):
    planted.write_dicom(tmp_path / "scans")
    planted.write_volumes(tmp_path / "scans", (40.0, 20.0, 20.0))
    found = planted.leaks(planted.texts_below(tmp_path / "scans"))
    assert {text for _, text in found} == {text.decode() for text in planted.TEXTS}
    files = tmp_path / "files"
    files.mkdir()
    pq.write_table(pa.table({"name": [planted.NAME]}), files / "a.parquet", compression="zstd")
    with closing(sqlite3.connect(files / "b.db")) as database, database:
        database.execute("CREATE TABLE runs (name TEXT)")
        database.execute("INSERT INTO runs VALUES (?)", ["x" * 9000 + planted.NAME])
    words = PngInfo()
    words.add_text("Title", planted.NAME, zip=True)
    Image.new("L", (4, 4)).save(files / "c.png", pnginfo=words)
    with zipfile.ZipFile(files / "d.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", planted.NAME * 9)
    (files / "e.gz").write_bytes(gzip.compress(planted.NAME.encode() * 9))
    (files / "f Lovelace Augusta").touch()
    names = sorted(path.name for path in files.iterdir())
    assert planted.leaks(planted.texts_below(files)) == [(n, text) for n in names for text in ("lovelace", "augusta")]


def test_a_job_is_shown_without_its_key(tmp_path):
    key = b"seven planted bytes and more....."[:32]
    assert "planted" not in repr(BundleJob(str(tmp_path), RECIPES["ct_volume"], key, seed=0, rows_per_group=1))
