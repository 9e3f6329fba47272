"""What a folder of results holds, and that no two files of ``experiments/`` write the same folder."""

from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from orchestrator.config.files import read
from orchestrator.ingest import request
from orchestrator.runs import identity
from orchestrator.sweeps import sweep as sweeps
from orchestrator.tables import table as tables
from tests.clusters import ROOT

FILES = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.slow
def test_no_two_files_of_experiments_write_the_same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDIOLOGY_TEST_DATA", "scans")
    written = defaultdict(list)
    for path in FILES:
        fields = yaml.safe_load(path.read_text())
        if "reference" in fields:
            for cohort in (None, *fields.get("cohorts", {})):
                table = tables.load(path, cohort=cohort)
                written["table", table.base.home, table.base.name, table.config.name].append(path)
        elif "space" in fields:
            sweep = sweeps.load(path)
            written["sweep", sweep.base.home, sweep.base.name, sweep.config.name].append(path)
        elif "source" in fields:
            written["shards", request.load({}, str(path)).out].append(path)
    assert len(written) > 40
    assert {where: paths for where, paths in written.items() if len(paths) > 1} == {}


@pytest.mark.slow
def test_titles_of_tables_and_sweeps_tell_their_runs_in_mlflow_apart() -> None:
    titles = [(read(path.parent / fields["experiment"])["name"], fields["title"])
              for path in FILES if "title" in (fields := read(path))]  # fmt: skip
    assert len(titles) > 20
    assert len(set(titles)) == len(titles)


def test_a_folder_is_owned_once_and_by_the_same_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    identity.own(folder, {"run": "a", "names": ("x", "y")}, "give another --out")
    identity.own(folder, {"run": "a", "names": ("x", "y")}, "give another --out")
    assert identity.held(folder) == {"run": "a", "names": ["x", "y"]}


def test_a_folder_of_something_else_is_refused_with_what_differs_and_the_remedy(tmp_path: Path) -> None:
    identity.own(tmp_path, {"run": "a", "metric": "dice", "old": 1}, "give another --out")
    with pytest.raises(ValueError, match=r"holds something else \(run: found a, asked for b; old: found 1, asked fo"):
        identity.own(tmp_path, {"run": "b", "metric": "dice"}, "give another --out")
    with pytest.raises(ValueError, match=r"which would be overwritten; give another --out$"):
        identity.own(tmp_path, {"run": "b", "metric": "dice"}, "give another --out")
    assert identity.held(tmp_path) == {"run": "a", "metric": "dice", "old": 1}
