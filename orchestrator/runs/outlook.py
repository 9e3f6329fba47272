"""Outlook: the forecasts of the trainings that an experiment still lacks."""

from contextlib import nullcontext

from orchestrator.config.experiment import Experiment
from orchestrator.runs import pretrain
from orchestrator.runs.course import courses
from orchestrator.runs.finetune import downstream_of, labelled_samples
from orchestrator.runs.forecast import PROBE, Forecast, Work, finetuning_work, forecast, probe_forecast, stage_work
from orchestrator.runs.run import RESULT
from orchestrator.runs.work import finetuning_folder
from orchestrator.terminal.progress import phase


def missing(experiment: Experiment, finetuned: bool, probed: bool, measured: bool) -> list[Forecast]:
    """Return what each training takes that the command for the experiment would run, and the probe after them.

    A training that is done takes nothing, and one that has begun counts in full. With ``measured``, steps are timed;
    raises RunError if they could not be.
    """
    pretrained = (pretrain.folder_of(experiment) / RESULT).exists()
    found = [] if pretrained and not probed else pretraining(experiment, measured, probed)
    if pretrained:
        found = [one for one in found if one.name == PROBE]
    if finetuned and not (finetuning_folder(experiment) / RESULT).exists():
        found.append(finetuning(experiment, measured))
    return found


def pretraining(experiment: Experiment, measured: bool, probed: bool = False) -> list[Forecast]:
    """Return what each stage takes that trains; with ``probed``, also the probe of two encoders after the last."""
    works: list[Work] = []
    for course in courses(experiment):
        if course.trains:
            with phase(f"timing steps of stage {course.stage.name}") if measured else nullcontext():
                works.append(stage_work(course, measured, probed))
    found = [forecast(work, experiment) for work in works]
    return [*found, probe_forecast(works[-1])] if works and probed else found


def finetuning(experiment: Experiment, measured: bool) -> Forecast:
    """Return what the fine-tuning takes."""
    labelled = labelled_samples(downstream_of(experiment))
    with phase("timing steps of the fine-tuning") if measured else nullcontext():
        return forecast(finetuning_work(experiment, labelled, measured), experiment)
