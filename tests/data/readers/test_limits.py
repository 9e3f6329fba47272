"""A study whose reading does not end is bad, by its time; its neighbours are written."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.limits import limited
from data.phantoms.abdomen import write_cohort
from data.quarantine import BadStudy
from data.recipes import RECIPES
from data.shards.bundles import Bundle, BundleJob, preprocess, run_bundle, volume_id
from data.sources import Study, find_studies

RECIPE = RECIPES["ct_abdomen_slices"].with_fields(spacing_mm=(16.0, 8.0, 8.0), pad_to=(1, 16, 16))


@dataclass(frozen=True)
class Endless(Study):
    """A study whose reading does not end, and whose library lets no error out."""

    def __getattribute__(self, name: str) -> object:
        while name == "num_channels":
            try:
                time.sleep(0.01)
            except Exception:  # noqa: BLE001 (as libraries do)
                continue
        return object.__getattribute__(self, name)


@pytest.mark.slow
def test_a_study_that_is_read_without_end_is_quarantined_and_its_neighbours_are_written(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", 3, seed=5, spacing_mm=(20.0, 10.0, 10.0))
    studies = find_studies(str(cohort), "nnunet")
    preprocess(RECIPE, studies[0])  # what reads is imported at the first study
    studies[1] = Endless(**studies[1].__dict__)
    job = BundleJob(str(tmp_path / "out"), RECIPE, bytes(range(32)), seed=0, rows_per_group=8, seconds_per_study=5.0)
    manifest = run_bundle(job, Bundle(0, tuple(studies), ("train",) * 3))
    names = [volume_id(job.key, study) for study in studies]
    assert [(reject.study, reject.found) for reject in manifest.rejects] == [(names[1], "more than 5 s of reading")]
    assert set(manifest.contents) == {names[0], names[2]}


@pytest.mark.slow
def test_a_limit_leaves_no_clock_behind_and_lets_other_errors_through() -> None:
    with limited(0.05):
        pass
    with pytest.raises(ZeroDivisionError), limited(0.05):
        print(1 / 0)
    time.sleep(0.15)
    with pytest.raises(BadStudy, match=r"more than 0\.05 s of reading"), limited(0.05):
        time.sleep(60)


@pytest.mark.slow
def test_a_process_that_cannot_be_interrupted_is_ended_and_says_nothing() -> None:
    code = """if True:
        import threading
        from data.limits import limited
        def read():
            with limited(0.2):
                threading.Event().wait()
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
