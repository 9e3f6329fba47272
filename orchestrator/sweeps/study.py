"""Ledger: every trial of a sweep in an Optuna study on disk, which is the sweep's only memory.

What is not in the study did not happen. A sweep that was killed opens the study again, hands out first the trials
that were begun and not ended, and repeats none that ended.
"""

import hashlib
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.runs.pool import Later
from orchestrator.runs.work import TrainingWork
from orchestrator.sweeps.population import Heir, heirs
from orchestrator.sweeps.settings import Scheduler, Search, SweepConfig
from orchestrator.sweeps.space import Point, draw, first, grid, params
from orchestrator.sweeps.standings import Standing, State
from orchestrator.tracking.store import sqlite_address

STORE = "optuna.db"
STATE, REASON, POINT, RUN, BEHIND, REPEATS, WORK = "state", "reason", "point", "run", "behind", "repeats", "work"
SOURCE, PRETRAINED = "source", "pretrained"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Trials that failed while they ran, or were stopped, are handed out again by the next ledger; a trial whose point
    is ``impossible`` is not. ``hopeless`` says that every other trial would fail in the same way. ``run`` is the
    folder of the run by which the trial is judged. ``value`` is the mean of ``repeats``, one for each seed if there
    are several, and ``others`` are the values of what else is sought. ``pretrained`` is its pretraining's folder.
    """

    state: State
    value: float | None = None
    reason: str = ""
    impossible: bool = False
    hopeless: bool = False
    run: str = ""
    others: tuple[float, ...] = ()
    repeats: tuple[float, ...] = ()
    work: tuple[TrainingWork, ...] = ()
    pretrained: str = ""


class Ledger:
    """The study of one sweep in its folder; only one process may write it.

    ``take`` decides on points: the next depends on the seed, the trial's number and the trials before it.
    ``falls_behind`` decides on trials: ``pruner`` keeps its memory in the study. So a sweep that was killed chooses
    the same points and ends the same trials as one that was not.
    """

    def __init__(
        self, folder: Path, config: SweepConfig, base: dict[str, Any], pruner: BasePruner | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.base = base
        self.pruner = pruner or NopPruner()
        self.study = optuna.create_study(
            storage=sqlite_address(folder / STORE),
            study_name=folder.name,
            directions=["maximize" if one.mode == "max" else "minimize" for one in config.objectives],
            load_if_exists=True,
        )
        # The study has one direction: values of a metric that is better the other way round are held with their sign.
        self._sign = -1.0 if config.scheduler.mode not in (None, config.objective.mode) else 1.0
        self._given = given(config, base)
        self._unfinished = [trial.number for trial in self._trials() if trial.state == TrialState.RUNNING]

    @property
    def total(self) -> int:
        """Return how many trials the sweep has."""
        search = self.config.search
        if search.name == "pbt":
            return search.population * search.segments
        return self.config.trials or len(self._given)

    def take(self) -> tuple[int, Point] | Later | None:
        """Hand out a trial that was begun but not ended, else a new trial; None if there is none.

        A population's segment begins "later", when all members have ended the one before.
        """
        while self._unfinished:
            number = self._unfinished.pop(0)
            if number < self.total:
                return number, self._draw(self._trial(number))
        trials = self._trials()
        number = sum(trial.state != TrialState.WAITING for trial in trials)
        if number >= self.total:
            return None
        heir = self._heir(number, trials)
        if isinstance(heir, str):
            return "later" if heir == "later" else None
        planned = heir.point if heir else self._given[number] if number < len(self._given) else None
        if planned is not None and number == len(trials):
            self.study.enqueue_trial(params(self.config.space, planned))
        self.study.sampler = sampler(self.config.search, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask()
        assert trial.number == number, "one process writes the study"
        if heir:
            trial.set_user_attr(SOURCE, heir.source)
        return number, self._draw(trial)

    def _heir(self, number: int, trials: list[FrozenTrial]) -> Heir | Literal["later", "never"] | None:
        """Return how a member of a population begins a new segment, by trial numbers; None for other trials."""
        search = self.config.search
        segment, member = divmod(number, search.population)
        if search.name != "pbt" or segment == 0:
            return None
        begin = number - member - search.population
        before = trials[begin : begin + search.population]
        if any(trial.state not in (TrialState.COMPLETE, TrialState.FAIL) for trial in before):
            return "later"
        values = [trial.values[0] if trial.values else None for trial in before]
        ended = [
            (dict[str, Any](trial.user_attrs[POINT]), value) for trial, value in zip(before, values, strict=True)
        ]
        if all(value is None for value in values):
            return "never"
        heir = heirs(search, self.config.space, self.config.objective.mode, segment, ended)[member]
        return Heir(begin + heir.source, heir.point)

    def falls_behind(self, number: int, step: int, value: float) -> bool:
        """Record a point of a trial's curve, and return whether the pruner has ended the trial, now or before.

        A trial that goes on after a kill reports its curve anew: earlier points are on record and judged, and the
        newest may not have been judged. A value that is not a number is passed over. With several objectives no trial
        is ended, and nothing is recorded.
        """
        if self.config.also:
            return False
        trial, record = self._trial(number), self._frozen(number)
        newest, ended = record.last_step or 0, BEHIND in record.user_attrs
        if step < newest or not math.isfinite(value):
            return ended
        if step > newest:
            trial.report(self._sign * value, step)
        if ended:  # it reports until it has ended, or was done before it could
            return True
        # The study itself has no pruner: samplers would look only at trials of one of Hyperband's brackets.
        if behind := bool(self.pruner.prune(self.study, self._frozen(number))):
            trial.set_user_attr(BEHIND, True)
        return behind

    def end(self, number: int, ending: Ending) -> None:
        """Record how a trial ended."""
        trial = self._trial(number)
        trial.set_user_attr(REASON, ending.reason)
        trial.set_user_attr(RUN, ending.run)
        trial.set_user_attr(PRETRAINED, ending.pretrained)
        trial.set_user_attr(REPEATS, ending.repeats)
        trial.set_user_attr(WORK, [asdict(work) for work in ending.work])
        trial.set_user_attr(STATE, ending.state)
        if ending.state == "done":
            assert ending.value is not None, "a trial that is done has a value"
            self.study.tell(trial, [ending.value, *ending.others])
        elif ending.state == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif ending.impossible:
            self.study.tell(trial, state=TrialState.FAIL)

    def standings(self) -> list[Standing]:
        """Return the standing of every trial that was begun."""
        return [self._standing(trial) for trial in self._trials() if trial.state != TrialState.WAITING]

    def _standing(self, trial: FrozenTrial) -> Standing:
        curve, attributes = trial.intermediate_values, trial.user_attrs
        work = tuple(TrainingWork(**one) for one in attributes.get(WORK, ()))
        steps = max(curve, default=work[-1].steps if work else 0)
        last = None if (held := curve.get(steps)) is None else self._sign * held
        by_another = self.config.scheduler.metric is not None
        values = trial.values if trial.state == TrialState.COMPLETE else []
        return Standing(
            number=trial.number,
            point=attributes.get(POINT, {}),
            state=attributes.get(STATE, "running"),
            value=values[0] if values else None if by_another else last,
            steps=steps,
            reason=attributes.get(REASON, ""),
            run=attributes.get(RUN, ""),
            others=tuple(values[1:]),
            repeats=tuple(attributes.get(REPEATS, ())),
            judged=last if by_another else None,
            work=work,
            pretrained=attributes.get(PRETRAINED, ""),
            source=attributes.get(SOURCE),
        )

    def _draw(self, trial: Trial) -> Point:
        self.study.sampler = sampler(self.config.search, trial.number)
        point = draw(self.config.space, trial, self.base)
        trial.set_user_attr(POINT, point)
        trial.set_user_attr(STATE, "running")
        return point

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def _trial(self, number: int) -> Trial:
        return Trial(self.study, self._frozen(number)._trial_id)  # pyright: ignore[reportPrivateUsage]  # no other way


def given(config: SweepConfig, base: dict[str, Any]) -> list[Point]:
    """Return the points that are given, not searched: a grid's points, or the experiment's own point."""
    if config.search.name == "grid":
        return grid(config.space, base)
    return [first(config.space, base)] if config.start_from_experiment else []


def sampler(search: Search, number: int) -> BaseSampler:
    """Return Optuna's sampler for one trial: the same whether the process has drawn others before it or not."""
    digest = hashlib.blake2b(f"{search.seed}/{number}".encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.name:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=search.startup, constant_liar=True)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=search.startup)
            case "cmaes":
                return CmaEsSampler(seed=seed, n_startup_trials=search.startup, warn_independent_sampling=False)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=search.population)
            case _:
                return RandomSampler(seed=seed)


def pruner(scheduler: Scheduler, total_steps: int) -> BasePruner:
    """Return Optuna's pruner for trainings of so many steps."""
    if scheduler.grace is None:
        return NopPruner()
    factor = int(scheduler.reduction_factor)
    match scheduler.name:
        case "asha":
            return SuccessiveHalvingPruner(scheduler.grace, factor)
        case "hyperband":
            return HyperbandPruner(scheduler.grace, max(total_steps, scheduler.grace), factor)
        case "median":
            least = scheduler.least_trials
            return MedianPruner(n_startup_trials=least, n_warmup_steps=scheduler.grace, n_min_trials=least)
        case "none":
            return NopPruner()
