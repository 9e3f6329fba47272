"""A stage that is fed several shard sets."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.shards.index import ShardSet
from data.shards.mixture import joint_digest
from orchestrator.cli import main
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.runs import pretrain
from orchestrator.runs.course import Course
from tests.experiments import UNET, tiny_experiment
from tests.shardsets import write_pictures, write_slices, write_volumes


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def experiment(home: Path, *sets: dict[str, Any], **changes: Any) -> Experiment:
    return resolve({**tiny_experiment("mixed", "", home, 3, UNET, **changes), "data": list(sets)})


def supervised(home: Path, *uris: str) -> Experiment:
    """A stage that learns organs from two sets."""
    tree = experiment(home, *({"shards": uri} for uri in uris)).model_dump(mode="json")
    organs = {"name": "organs", "method": {"name": "segmentation", "crop_size": [32, 32]}}
    flow = {name: tree[name] for name in ("optimiser", "budget")}
    return resolve({**tree, "method": None, "optimiser": None, "budget": None, "stages": [{**organs, **flow}]})


def test_a_stage_sees_all_samples_of_its_sets_and_is_told_their_number(
    slices: str, films: str, tmp_path: Path
) -> None:
    (course,) = pretrain.check(experiment(tmp_path, {"shards": slices}, {"shards": films}))
    assert course.samples.num_samples == course.facts.num_samples == course.plan.num_samples == 36 + 18
    assert course.samples.digest == joint_digest([ShardSet.open(uri).digest for uri in (slices, films)])
    health, *_ = pretrain.watches_of(course)
    assert [len(rows) for _, rows in health.samples] == [36, 18]
    read = course.samples.rows(np.array([0, 35, 36, 53]))
    expected = [ShardSet.open(uri).select("train").row_ids[[0, -1]].tolist() for uri in (slices, films)]
    assert [rows.tolist() for _, rows in read] == expected


def test_sets_that_do_not_go_together_are_refused(slices: str, films: str, tmp_path: Path) -> None:
    volumes = write_volumes(tmp_path / "volumes")
    for sets, said in (
        (({"shards": slices}, {"shards": volumes}), "have 2 spatial dimensions, shards .* have 3; a stage is fed"),
        (({"shards": slices}, {"shards": films, "split": "test"}), r"data.split 'test': 0 samples in shards "),
        (({"shards": slices, "keep": {"min_size": 99}}, {"shards": films}), "data.keep leaves out all 36 samples"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrain.check(experiment(tmp_path, *sets))


def test_sets_of_other_channels_or_names_of_labels_are_refused(slices: str, films: str, tmp_path: Path) -> None:
    colours = write_pictures(tmp_path / "colours", num_channels=3)
    with pytest.raises(ValueError, match=r"have 1 channels, shards \S+colours have 3; a stage is fed samples of one"):
        pretrain.check(experiment(tmp_path, {"shards": films}, {"shards": colours}))
    others = write_slices(tmp_path / "others", label_names={1: "liver", 2: "spleen"})
    with pytest.raises(ValueError, match=r"shards \S+others: 2 is 'spleen', of the sets before it 'kidney'; ingest"):
        pretrain.check(supervised(tmp_path, slices, others))
    (course,) = pretrain.check(supervised(tmp_path, slices, slices))
    assert course.facts.names == {1: "liver", 2: "kidney"}


@pytest.mark.parametrize("sets", [[3, None], [3]])
def test_weights_are_for_all_sets_or_none(sets: list[float | None], tmp_path: Path) -> None:
    given = [{"shards": f"s{place}", "weight": weight} for place, weight in enumerate(sets)]
    with pytest.raises(
        ConfigError, match=f"data: 1 of {len(sets)} shard sets with a weight; expected two sets or more"
    ):
        experiment(tmp_path, *given)


def test_samples_that_a_method_cannot_use_are_named_by_their_set(slices: str, films: str, tmp_path: Path) -> None:
    small = {"shards": write_slices(tmp_path / "small", num_patients=4, size=20)}
    mixed = experiment(tmp_path, {"shards": slices}, small)
    with pytest.raises(ValueError, match=r"data\.1: 18 of 18 samples cannot be used: crop size"):
        pretrain.check(mixed)


@pytest.mark.slow
def test_a_dry_run_shows_each_sets_share(
    slices: str, films: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = experiment(tmp_path, {"shards": slices, "weight": 3}, {"shards": films, "weight": 1})
    path = tmp_path / "mixed.yaml"
    path.write_text(mixed.model_dump_json())
    main(["pretrain", str(path), "--dry-run"])
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"shards \w{12}: 48 samples, 0 MiB on disk, 75% of what is seen", said)
    assert re.search(r"shards \w{12}: 24 samples, 0 MiB on disk, 25% of what is seen", said)


def test_one_set_in_a_list_is_that_set(slices: str, tmp_path: Path) -> None:
    alone = Course.open(resolve(tiny_experiment("mixed", slices, tmp_path, 3, UNET)))
    listed = Course.open(experiment(tmp_path, {"shards": slices}))
    assert alone.feed == listed.feed
    assert alone.plan == listed.plan
