"""A stage continues from the newest checkpoint that is whole, on this machine and in a bucket."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.files import join, read_bytes
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Losses, Method, Views
from orchestrator.config.computing import Resources
from orchestrator.config.optimiser import Optimiser
from orchestrator.feed.plan import FeedPlan, SetPlan
from orchestrator.history import HISTORY, append, steps
from orchestrator.training.checkpoint import METHOD, OPTIMISER, State, Stream, restore, save
from orchestrator.training.loop import Plan, Trainee
from orchestrator.training.optimiser import Schedule
from orchestrator.training.ray_train import Job, _keep_history, _resume, launch
from orchestrator.training.resume import SNAPSHOT, STATE, DamageError, StageCheckpoints, name_of
from orchestrator.training.world import World
from tests.buckets import Bucket, served

TOTAL_STEPS = 8
STREAM = Stream(digest="d", seed=5, batch_size=3)


class Layer(Method):
    """The smallest method that has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        return Views((batch.voxels,))

    def loss(self, views: Views) -> Losses:
        return Losses(self.encoder(views.images[0]).sum())


def write(stage: Path, step: int, state: State | None = None, first: int | None = None) -> Path:
    """Write the checkpoint of a step, with the steps since ``first``, by default the two before it."""
    folder = stage / name_of(step)
    folder.mkdir(parents=True)
    layer = Layer()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(Views((torch.ones(1, 2),))).total.backward()
    optimiser.step()
    (folder / "encoder.safetensors").write_bytes(b"weights")
    save(folder, layer.state_dict(), optimiser, state or State(step=step), STREAM, entries(first or step - 2, step))
    return folder


def entries(first: int, end: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / (step + 1)} for step in range(first, end)]


def listed(stage: Path, *numbers: int) -> None:
    """Write what Ray's list says of them, in so far as we read it."""
    (stage / SNAPSHOT).write_text(json.dumps({"checkpoint_results": [name_of(number) for number in numbers]}))


def cut(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with served() as bucket:
        yield bucket


@pytest.mark.parametrize("file", [METHOD, OPTIMISER, STATE, "encoder.safetensors"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_newest_checkpoint_that_is_cut_off_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, file: str, keep: float
) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    listed(tmp_path, 2, 4, 6)
    cut(tmp_path / name_of(6) / file, keep)
    found = StageCheckpoints(str(tmp_path)).find()
    assert found.newest is not None
    assert (found.newest.name, found.newest.step) == ("step_000000004", 4)
    assert [str(damage).split(":")[0] for damage in found.damages] == ["checkpoint step_000000006"]
    assert file in str(found.damages[0])


def test_a_missing_file_and_a_missing_state_are_damages_too(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    (tmp_path / name_of(6) / STATE).unlink()
    (tmp_path / name_of(4) / METHOD).unlink()
    found = StageCheckpoints(str(tmp_path)).find()
    assert found.newest is not None
    assert found.newest.step == 2
    size = (tmp_path / name_of(2) / METHOD).stat().st_size
    assert [str(damage) for damage in found.damages] == [
        "checkpoint step_000000006: state.json is missing",
        f"checkpoint step_000000004: method.safetensors is missing, expected {size} bytes",
    ]


@pytest.mark.slow
def test_a_bucket_falls_back_as_a_folder_does_and_puts_rays_list_aside(bucket: Bucket, tmp_path: Path) -> None:
    for step in (2, 4):
        write(tmp_path, step)
    listed(tmp_path, 2, 4)
    cut(tmp_path / name_of(4) / OPTIMISER)
    uri = bucket.upload(tmp_path, "runs/pretrain")
    progress = StageCheckpoints(uri)
    newest = progress.find().newest
    assert newest is not None
    assert (newest.uri, newest.step) == (f"{uri}/step_000000002", 2)
    progress.repair()
    assert b"step_000000004" in read_bytes(join(uri, SNAPSHOT + ".broken"))
    with pytest.raises(FileNotFoundError):
        read_bytes(join(uri, SNAPSHOT))


@pytest.mark.parametrize(
    ("list_", "kept"),
    [('["step_000000002"]', True), ('["step_000000002", "step_000000004"]', False), ('["step_0000', False)],
    ids=["whole ones", "a damaged one", "torn"],
)
def test_rays_list_is_put_aside_where_it_is_torn_or_names_what_is_damaged(
    tmp_path: Path, list_: str, kept: bool
) -> None:
    for step in (2, 4):
        write(tmp_path, step)
    cut(tmp_path / name_of(4) / METHOD)
    (tmp_path / SNAPSHOT).write_text(list_)
    StageCheckpoints(str(tmp_path)).repair()
    assert (tmp_path / SNAPSHOT).exists() == kept
    assert (tmp_path / (SNAPSHOT + ".broken")).exists() != kept


def test_where_no_checkpoint_of_several_is_whole_nothing_begins_again_without_being_told_to(tmp_path: Path) -> None:
    write(tmp_path, 2)
    listed(tmp_path, 2)
    cut(tmp_path / name_of(2) / METHOD)
    with pytest.raises(DamageError, match=r"is whole: checkpoint step_000000002: .* or delete that folder to begin"):
        StageCheckpoints(str(tmp_path)).find()


def test_a_first_checkpoint_that_a_kill_left_half_written_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / name_of(2) / STATE).unlink()
    assert StageCheckpoints(str(tmp_path)).step() == 0
    assert StageCheckpoints(str(tmp_path / "nothing")).step() == 0


def test_the_best_checkpoint_is_the_one_that_the_newest_names(tmp_path: Path) -> None:
    best = State(step=4, best={"score": 0.7, "dice_mean": 0.8}, best_step=4)
    write(tmp_path, 4, best)
    write(tmp_path, 6, State(step=6, best=best.best, best_step=4))
    progress = StageCheckpoints(str(tmp_path))
    newest = progress.find().newest
    assert newest is not None
    assert progress.best(newest).step == 4
    assert progress.best(newest).state["best"] == {"score": 0.7, "dice_mean": 0.8}


def test_an_optimiser_s_state_that_a_gpu_wrote_is_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        folder = write(tmp_path, 2)
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(folder / OPTIMISER, weights_only=True)
    layer = Layer()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    assert restore(folder, layer, optimiser, STREAM, World()) == State(step=2)
    assert [state["momentum_buffer"].device.type for state in optimiser.state.values()] == ["cpu", "cpu"]


@pytest.mark.parametrize("written", [2, 3, 4])
def test_a_kill_between_checkpoint_and_history_leaves_each_step_once(tmp_path: Path, written: int) -> None:
    """The checkpoint of step 4 was saved with two steps, of which the history has none, one or both."""
    job = job_in(tmp_path)
    write(Path(job.uri), 2)
    write(Path(job.uri), 4)
    append(tmp_path / HISTORY, [{"stage": "pretrain", **entry} for entry in entries(0, written)])
    said: list[str] = []
    newest = _resume(job, StageCheckpoints(job.uri), said.append)
    assert newest is not None
    assert newest.step == 4
    assert (tmp_path / HISTORY).read_text().count("\n") == 4
    assert [(line["step"], line["loss"]) for line in steps(tmp_path, "pretrain")] == [
        (entry["step"], entry["loss"]) for entry in entries(0, 4)
    ]
    assert said == ["stage pretrain: goes on from step 4 of 8, checkpoint step_000000004"]


def test_a_stage_that_falls_back_says_so_and_from_where_it_goes_on(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    for step in (2, 4):
        write(Path(job.uri), step)
    cut(Path(job.uri) / name_of(4) / STATE, 0)
    said: list[str] = []
    _resume(job, StageCheckpoints(job.uri), said.append)
    assert said == [
        "stage pretrain: checkpoint step_000000004: state.json is cut off after 0 bytes; the checkpoint before it is "
        "used",
        "stage pretrain: goes on from step 2 of 8, checkpoint step_000000002",
    ]


def test_a_stage_that_is_done_or_begins_says_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    said: list[str] = []
    assert _resume(job, StageCheckpoints(job.uri), said.append) is None
    write(Path(job.uri), TOTAL_STEPS)
    _resume(job, StageCheckpoints(job.uri), said.append)
    assert said == []


@pytest.mark.slow
def test_a_stage_whose_folder_here_is_lost_is_found_done_in_its_bucket_with_its_best_scores_and_history(
    bucket: Bucket, tmp_path: Path
) -> None:
    best = State(step=4, best={"score": 0.7, "dice_mean": 0.8}, best_step=4)
    (local := tmp_path / "before").mkdir()
    write(tmp_path / "stage", 4, best)
    write(tmp_path / "stage", TOTAL_STEPS, State(step=TOTAL_STEPS, best=best.best, best_step=4))
    bucket.upload(tmp_path / "stage", "lost/run/pretrain")
    before = replace(job_in(local), storage=f"{bucket.uri}/lost/run", keep_best=True)
    append(local / HISTORY, [{"stage": "pretrain", **entry} for entry in entries(0, TOTAL_STEPS)])
    _keep_history(before)

    (elsewhere := tmp_path / "elsewhere").mkdir()
    lines: list[dict[str, Any]] = []
    saved = launch(replace(before, folder=elsewhere), lines.extend, print)
    assert (saved.uri, saved.step) == (f"{bucket.uri}/lost/run/pretrain/step_000000004", 4)
    assert saved.state["best"] == {"score": 0.7, "dice_mean": 0.8}
    assert [line["step"] for line in lines] == list(range(TOTAL_STEPS))
    assert (elsewhere / HISTORY).read_bytes() == (local / HISTORY).read_bytes()


def job_in(folder: Path) -> Job:
    plan = Plan(Schedule(Optimiser(name="sgd", lr=0.05), TOTAL_STEPS, warmup_steps=0), STREAM, num_samples=6)
    feed = FeedPlan((SetPlan("shards", "d", "train"),), seed=5, batch_size=3, world=1, last_step=TOTAL_STEPS)
    return Job(folder, "pretrain", str(folder / "checkpoints"), plan, feed, _never, Resources())


def _never() -> Trainee:
    raise AssertionError("nothing is trained here")
