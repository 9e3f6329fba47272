"""A file that ends the process that reads it: found by halving, quarantined, and its neighbours are written."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.phantoms.abdomen import write_cohort
from data.recipes import RECIPES
from data.shards.bundles import Bundle, BundleJob, volume_id
from data.shards.manifest import read_manifest
from data.sources import Study, find_studies
from orchestrator.ingest.tasks import find_fatal, run_bundles

RECIPE = RECIPES["ct_abdomen_slices"].with_fields(spacing_mm=(16.0, 8.0, 8.0), pad_to=(1, 16, 16))


@dataclass(frozen=True)
class Deadly(Study):
    """A study whose reading ends the process, as ITK does at a header of 93 axes."""

    @property
    def label_or_death(self) -> None:
        os.abort()

    def __getattribute__(self, name: str) -> object:
        return object.__getattribute__(self, "label_or_death" if name == "num_channels" else name)


def named(*names: str) -> list[Study]:
    return [Study(name, "volume", (), name, "d") for name in names]


@pytest.mark.parametrize("fatal", [set(), {"a"}, {"g"}, {"c", "d"}, {"a", "e", "g"}, set("abcdefg")])
def test_halving_finds_every_study_that_ends_its_reader_and_no_other(fatal: set[str]) -> None:
    asked: list[int] = []

    def can_be_read(studies) -> bool:
        asked.append(len(studies))
        return not any(study.key in fatal for study in studies)

    assert {study.key for study in find_fatal(named(*"abcdefg"), can_be_read)} == fatal
    assert len(asked) <= 2 + 3 * max(1, len(fatal)) * 2


def test_one_study_that_ends_its_reader_costs_two_questions_per_halving() -> None:
    asked: list[int] = []

    def can_be_read(studies) -> bool:
        asked.append(len(studies))
        return all(study.key != "17" for study in studies)

    assert [study.key for study in find_fatal(named(*map(str, range(32))), can_be_read)] == ["17"]
    assert asked == [16, 16, 8, 8, 4, 4, 2, 2, 1, 1]


@pytest.mark.slow
def test_a_study_that_ends_its_reader_is_quarantined_and_its_neighbours_are_written(
    ray_cluster: Path, tmp_path: Path
) -> None:
    cohort = write_cohort(tmp_path / "cohort", 5, seed=5, spacing_mm=(20.0, 10.0, 10.0))
    studies = find_studies(str(cohort), "nnunet")
    deadly = Deadly(**{**studies[3].__dict__, "num_channels": 1})
    together = (*studies[:3], deadly, studies[4])
    job = BundleJob(str(tmp_path / "out"), RECIPE, bytes(range(32)), seed=0, rows_per_group=8)
    bundle = Bundle(0, together, ("train",) * len(together))
    assert list(run_bundles(job, [bundle], readers=1)) == [0]
    manifest = read_manifest(job.work, 0)
    assert manifest is not None
    names = [volume_id(job.key, study) for study in studies]
    assert [reject.study for reject in manifest.rejects] == manifest.fatal == [names[3]]
    assert manifest.rejects[0].found == "a file that ended, twice, the process that read it"
    assert set(manifest.contents) == {*names[:3], names[4]}
