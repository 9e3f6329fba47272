"""Job: one trial of a table, trained in this process or in one of the pool, which imports nothing that writes."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data.spelling import did_you_mean
from orchestrator import stop
from orchestrator.config.experiment import Experiment
from orchestrator.judging.case_scores import case_scores
from orchestrator.judging.cases import CASES
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.pretrain import PretrainingResult
from orchestrator.runs.work import work_of
from orchestrator.stop import RunError
from orchestrator.tables.grid import COST, TableConfig
from orchestrator.tables.outcome import Outcome
from orchestrator.tables.table import Table, described
from orchestrator.tables.trials import TableTrial
from orchestrator.terminal import progress


@dataclass(frozen=True)
class EndedTrial:
    """A trial that ended.

    pretraining   its folder and its stages, if it is pretrained
    finetuning    its folder and the steps of an epoch, if it did not fail
    """

    outcome: Outcome
    pretraining: tuple[Path, list[str]] | None = None
    finetuning: tuple[Path, float] | None = None


def do(table: Table, place: int, number: str) -> EndedTrial:
    """Run a trial in a process of the pool, which may be asked to end."""
    from orchestrator.runs.pool import place_of

    run = partial(run_trial, table, place, int(number))
    return stop.heeding(str(place_of(table.folder, place)), run).result()


def run_trial(table: Table, place: int, taken: int) -> EndedTrial:
    """Run the missing trainings of a trial; return failures as outcomes; raise ValueError for an unknown metric."""
    trial, experiment = table.experiments[place]
    rows = [row.name for row in table.config.runnable]
    number = f"trial {taken} of {table.num_trials}"
    what = f"{number}, row {rows.index(trial.row) + 1} of {len(rows)}: {described(trial)}"
    with progress.phase(what, short=f"{number}, {trial.row}"):
        return _trained(table.config, table.folder, trial, experiment)


def _trained(config: TableConfig, folder: Path, trial: TableTrial, experiment: Experiment) -> EndedTrial:
    pretraining: tuple[Path, list[str]] | None = None
    try:
        pretrained: PretrainingResult | None = None
        if trial.pretrain_seed is not None and experiment.hands_over:
            pretrained = pretrain.pretrain(experiment, folder, trial.row)
            if experiment.trains:
                pretraining = pretrained.folder, [stage.name for stage in experiment.pretraining]
        done = finetune.finetune(experiment, pretrained, None if pretrained else folder, trial.row)
    except (RunError, ValueError) as error:
        # Trials that cannot work were refused before the first trial; a refusal now, as for a lost shard, is a
        # failure.
        return EndedTrial(Outcome(trial, None, " ".join(str(error).split())), pretraining)
    chosen_by = [config.chosen_by] if trial.tried else []
    scores = done.scores
    if COST in config.also:
        works = work_of(experiment, finetuned=True, pretrained=trial.pretrain_seed is not None)
        scores = {**scores, COST: sum(work.hours for work in works)}
    for metric in (config.metric, *config.also, *chosen_by):
        if metric not in scores:
            raise ValueError(
                f"table {config.name}: metric {metric!r} is not one of the scores {sorted(scores)}"
                f"{did_you_mean(metric, scores)}; name one of them"
            )
    also = {name: scores[name] for name in config.also}
    task = finetune.downstream_of(experiment)
    steps_per_epoch = finetune.labelled_samples(task).train.num_samples / task.budget.batch_size
    value = done.scores[config.metric]
    patients = case_scores(done.folder / CASES, config.metric, value)
    outcome = Outcome(trial, value, also=also, run=done.folder.name, patients=patients)
    if trial.tried:
        outcome = replace(outcome, validation=done.scores[config.chosen_by], validated_on=finetune.validated_on(task))
    return EndedTrial(outcome, pretraining, (done.folder, steps_per_epoch))
