"""Stages with data, encoder and start of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.labels import LABEL_MAP
from data.shards.index import ShardSet
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.runs import pretrain
from orchestrator.runs.course import Course, courses, digest_of, initial_encoder
from orchestrator.training.checkpoint import ENCODER, CheckpointError, export_encoder
from tests.experiments import UNET, tiny_experiment
from tests.shardsets import write_pictures, write_slices, write_volumes

WIDER = {**UNET, "features": [8, 4, 8, 8, 8, 4]}
SIMSIAM = {"name": "simsiam", "crops": {"size": [32, 32], "iou": [0.3, 0.6]}, "projector_dim": 16, "predictor_dim": 8}
SEGMENTATION = {"name": "segmentation", "crop_size": [32, 32]}
FLOW = {"optimiser": {"name": "sgd", "lr": 0.05}, "budget": {"steps": 3, "batch_size": 4}}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def experiment(shards: str, home: Path, *stages: dict[str, Any], **changes: Any) -> Experiment:
    given = [{**FLOW, **stage} for stage in stages]
    short = {"method": None, "optimiser": None, "budget": None, "stages": given}
    return resolve(tiny_experiment("stages", shards, home, 3, UNET, **{**(short if stages else {}), **changes}))


def test_a_stage_is_fed_its_own_data_and_trains_its_own_encoder(slices: str, films: str, tmp_path: Path) -> None:
    asked = experiment(
        slices,
        tmp_path,
        {"name": "a", "method": SIMSIAM},
        {"name": "b", "method": SIMSIAM, "data": {"shards": films}, "encoder": WIDER, "start": {}},
    )
    first, second = pretrain.check(asked)
    assert [one.shards for course in (first, second) for one in course.feed.sets] == [slices, films]
    assert [course.encoder.model_dump()["features"][0] for course in (first, second)] == [4, 8]
    assert asked.pretrained_encoder == asked.downstream_encoder == second.encoder
    assert second.feed.seed != first.feed.seed == asked.seed


def test_stages_on_the_same_samples_see_them_in_other_orders(slices: str, tmp_path: Path) -> None:
    asked = experiment(slices, tmp_path, {"name": "a", "method": SIMSIAM}, {"name": "b", "method": SIMSIAM})
    assert len({course.feed.seed for course in pretrain.check(asked)}) == 2


def test_a_stage_takes_over_the_encoder_of_the_stage_that_it_names(slices: str, tmp_path: Path) -> None:
    asked = experiment(
        slices,
        tmp_path,
        {"name": "a", "method": SIMSIAM},
        {"name": "b", "method": SIMSIAM},
        {"name": "c", "method": SIMSIAM, "start": {"encoder": "a"}},
        {"name": "d", "method": SIMSIAM, "start": {}},
    )
    addresses = {}
    for number, name in enumerate("abc"):
        torch.manual_seed(number)
        encoder = initial_encoder(asked.model_copy(update={"seed": number + 10}), asked.encoder)
        export_encoder(tmp_path, encoder, {})
        (tmp_path / name).mkdir()
        (tmp_path / ENCODER).rename(tmp_path / name / ENCODER)
        addresses[name] = str(tmp_path / name)

    def weights(index: int) -> dict[str, torch.Tensor]:
        return Course.open(asked, index).build(addresses).encoder.state_dict()

    initial = initial_encoder(asked, asked.encoder).state_dict()
    expected = [initial, load_file(tmp_path / "a" / ENCODER), load_file(tmp_path / "a" / ENCODER), initial]
    for index, wanted in enumerate(expected):
        found = weights(index)
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), index


def test_a_pretraining_begins_with_the_weights_of_a_file_which_its_key_holds(slices: str, tmp_path: Path) -> None:
    plain = experiment(slices, tmp_path)
    file, other = tmp_path / "weights.safetensors", tmp_path / "weights.pt"
    state = {key: value + 1 for key, value in initial_encoder(plain, plain.encoder).state_dict().items()}
    save_file(state, file)
    torch.save(state, other)
    for path in (file, other):
        asked = experiment(slices, tmp_path, start={"weights": str(path)})
        (course,) = pretrain.check(asked)
        found = course.build({}).encoder.state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items())
    assert digest_of(courses(plain)) == ShardSet.open(slices).digest != digest_of(courses(asked))
    before = pretrain.folder_of(asked)
    torch.save({key: value + 1 for key, value in state.items()}, other)
    assert pretrain.folder_of(asked) != before


def test_a_part_of_an_encoder_begins_with_the_weights_of_a_file(tmp_path: Path) -> None:
    volumes, file = write_volumes(tmp_path / "volumes"), tmp_path / "weights.safetensors"
    holding = {"name": "slices", "slices": {**UNET, "spatial_dims": 2}}
    crops = {**SIMSIAM, "crops": {"size": [16, 32, 32], "iou": [0.3, 0.6]}}
    changes = {"encoder": holding, "method": crops, "start": {"weights": str(file), "part": "slices"}}
    asked = resolve({**tiny_experiment("stages", volumes, tmp_path, 3), **changes})
    learnt = {key: value + 1 for key, value in initial_encoder(asked, asked.encoder).slices.state_dict().items()}
    save_file(learnt, file)
    (course,) = pretrain.check(asked)
    started = course.build({}).encoder.slices.state_dict()
    assert all(torch.equal(started[key], value) for key, value in learnt.items())


def test_weights_that_do_not_fit_or_could_run_code_are_refused(slices: str, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('run')",)

    file = tmp_path / "weights.pt"
    cut = tmp_path / "cut.safetensors"
    save_file({"a": torch.zeros(9)}, cut)
    cut.write_bytes(cut.read_bytes()[:-8])
    for content, path, said in (
        ({"conv": torch.zeros(2)}, file, r"weights weights\.pt: \d+ of \d+ keys do not match \(conv, "),
        (Harmful(), file, r"weights weights\.pt: cannot be read .*holds nothing but tensors"),
        (None, cut, r"weights cut\.safetensors: cannot be read .*expected a whole safetensors file"),
        (None, tmp_path / "none.pt", r"encoder none\.pt: no encoder\.safetensors there"),
    ):
        if content is not None:
            torch.save(content, path)
        with pytest.raises(CheckpointError, match=said):
            pretrain.check(experiment(slices, tmp_path, start={"weights": str(path)}))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            [{"name": "a", "method": SIMSIAM}, {"name": "b", "method": SIMSIAM, "encoder": WIDER}],
            r"stage b: its encoder is not that of stage a; say where it begins, by start",
        ),
        (
            [{"name": "a", "method": SIMSIAM, "start": {"encoder": "b"}}, {"name": "b", "method": SIMSIAM}],
            r"stage a: start names 'b', which is no stage before it; expected one of none: it is the first",
        ),
        (
            [{"name": "a", "method": SIMSIAM}, {"name": "b", "method": {"name": "scratch"}}],
            r"stage b: its method trains nothing; leave it out",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(
    slices: str, tmp_path: Path, stages: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        experiment(slices, tmp_path, *stages)


def test_an_encoder_that_cannot_take_over_another_s_weights_is_refused_before_anything_starts(
    slices: str, tmp_path: Path
) -> None:
    stages = [
        {"name": "a", "method": SIMSIAM},
        {"name": "b", "method": SIMSIAM, "encoder": WIDER, "start": {"encoder": "a"}},
    ]
    with pytest.raises(CheckpointError, match=r"stage b, start from a: \d+ of \d+ keys do not match \(conv_0"):
        pretrain.check(experiment(slices, tmp_path, *stages))


def test_a_supervised_stage_asks_for_labels(slices: str, films: str, tmp_path: Path) -> None:
    (course,) = pretrain.check(experiment(slices, tmp_path, {"method": SEGMENTATION}))
    assert course.feed.having == LABEL_MAP
    with pytest.raises(
        ValueError, match=r"0 samples with a label map in shards .*, expected at least 1; name labelled"
    ):
        pretrain.check(experiment(films, tmp_path, {"method": SEGMENTATION}))


def test_a_part_that_the_encoder_does_not_have_is_refused_by_name(slices: str, tmp_path: Path) -> None:
    stages = [{"name": "a", "method": SIMSIAM}, {"name": "b", "method": SIMSIAM, "start": {"slices": "a"}}]
    with pytest.raises(ValueError, match=r"the encoder has no part 'slices' that is an encoder"):
        pretrain.check(experiment(slices, tmp_path, *stages))


def test_a_supervised_pretraining_counts_as_one_that_trains(slices: str, tmp_path: Path) -> None:
    assert experiment(slices, tmp_path, {"method": SEGMENTATION}).trains
    assert not experiment(slices, tmp_path, {"method": {"name": "scratch"}}).trains
