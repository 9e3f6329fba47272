"""Words: a sweep file in sentences, for ``--dry-run`` and for MLflow's page."""

import json

from orchestrator.sweeps.settings import Objective, SweepConfig, TrialCost

SEARCHES = {
    "tpe": "Optuna's TPE",
    "gp": "Optuna's Gaussian process",
    "cmaes": "CMA-ES",
    "nsga2": "NSGA-II",
    "pbt": "population-based training",
    "random": "random points",
    "grid": "every point",
}


def told(config: SweepConfig, num_trials: int) -> list[str]:
    """Describe the space, the search, what is sought, and when trials end early, a line for each."""
    lines = [
        f"{field}: {json.dumps(knob.model_dump(mode='json', exclude_defaults=True))}"
        for field, knob in config.space.items()
    ]
    how = f"{SEARCHES[config.search.name]}, {num_trials} trials"
    if config.search.name == "pbt":
        how = f"population-based training, {config.search.population} members in {config.search.segments} segments"
    lines.append(f"search: {how}")
    lines += [f"objective: {_sought(one)}" for one in config.objectives]
    if config.seeds:
        lines.append(f"seeds: {', '.join(map(str, config.seeds))}, with each of which every point is trained")
    return [*lines, f"ended early: {_early(config)}"]


def _sought(one: Objective | TrialCost) -> str:
    if isinstance(one, TrialCost):
        return f"{one.mode} {one.metric} of training, times the workers"
    return f"{one.mode} {one.metric} of the {'fine-tuning' if one.of == 'finetune' else 'pretraining'}"


def _early(config: SweepConfig) -> str:
    scheduler = config.scheduler
    if scheduler.name == "none":
        return "none"
    by = f", by {scheduler.mode} {scheduler.metric} of the pretraining" if scheduler.metric else ""
    return f"{scheduler.name}, from step {scheduler.grace} on{by}"


def described(config: SweepConfig) -> str:
    """Describe a sweep on its page of MLflow."""
    fields = "\n".join(f"- `{field}`" for field in config.space)
    metrics = " and ".join(f"`{one.metric}`" for one in config.objectives)
    return (
        f"{config.title}\n\nThe artifact `sweep.md` lists the trials, and `best.yaml` is the experiment of the "
        f"best one. They are the child runs: compare their {metrics} in parallel coordinates.\n\nSearched:\n{fields}"
    )
