"""What an experiment says of its optimiser reaches the training: milestones, and memory for what is remembered."""

from pathlib import Path

import pytest

from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.course import Course
from orchestrator.runs.memory import stage_memory
from tests.experiments import tiny_experiment
from tests.shardsets import write_pictures


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("pictures"), num_patients=16)


def experiment(shards: str, *overrides: str) -> Experiment:
    """Return a pretraining and a fine-tuning of 4 steps each, with 1.5 and 3 steps per epoch."""
    task = {
        "shards": shards,
        "task": {"name": "classification", "size": [32, 32]},
        "optimiser": {"lr": 0.01},
        "budget": {"steps": 4, "batch_size": 4},
    }
    return resolve(tiny_experiment("tiny", shards, Path("runs"), 4, downstream=task), overrides)


def stepped(milestone: float, at: str = "") -> str:
    return f"{at}optimiser={{name: larc, lr: 0.1, schedule: step, milestone_epochs: [{milestone}]}}"


def test_milestones_in_epochs_become_steps_of_the_pretraining_and_those_beyond_it_are_refused(shards: str) -> None:
    for milestone, said in ((2, None), (3, r"optimiser\.milestone_epochs 3: the milestone is at step 4, .* 4 steps")):
        asked = experiment(shards, stepped(milestone))
        if said is None:
            pretrain.check(asked)
            plan = Course.open(asked).plan
            assert [plan.schedule.rate(step) for step in range(4)] == pytest.approx([0.1, 0.1, 0.1, 0.01])
        else:
            with pytest.raises(ValueError, match=said):
                pretrain.check(asked)


def test_milestones_in_epochs_become_steps_of_the_fine_tuning_and_those_beyond_it_are_refused(shards: str) -> None:
    asked = experiment(shards, stepped(1, "downstream."))
    plan = finetune.plan_of(asked, finetune.check(asked))
    assert [plan.schedule.rate(step) for step in range(4)] == pytest.approx([0.1, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match=r"optimiser\.milestone_epochs 2: the milestone is at step 6, .* 4 steps"):
        finetune.check(experiment(shards, stepped(2, "downstream.")))


def test_memory_counts_what_each_optimiser_remembers_of_a_parameter(shards: str) -> None:
    def fixed_bytes(fields: str) -> int:
        asked = experiment(shards, f"optimiser={{lr: 0.1, {fields}}}")
        return stage_memory(Course.open(asked)).fixed_bytes

    one, two, three = fixed_bytes("name: sgd"), fixed_bytes("name: adamw"), fixed_bytes("name: adamw, amsgrad: true")
    assert fixed_bytes("name: lars") == fixed_bytes("name: larc") == one
    assert three - two == two - one > 0
