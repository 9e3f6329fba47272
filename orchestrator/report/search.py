"""Search: what a report shows of a sweep: its trials over the fields, and how much each field mattered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.direction import direction_of
from orchestrator.report import figures
from orchestrator.results.compare import ComparisonResult
from orchestrator.results.findings import SweepFindings, findings_in

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LEAST_TRIALS = 8  # fewer say nothing about several fields
DECADES = 50  # an axis is logarithmic where its ends are that many times apart
Trial = tuple[dict[str, float | str], float]


def searched(compared: ComparisonResult) -> list[tuple[str, str, str]]:
    """Return the heading, the figure and the words of each chart of a sweep's trials; none for other runs."""
    metric = compared.asked.metric
    of_trials = compared.asked.kind == "trial"
    found = findings_in(compared.choice.group) if of_trials else SweepFindings()
    charts = [*_front(found), *_population(found, metric)]
    trials = _trials(compared) if of_trials and not found.members else []
    if len(trials) < 2:
        return charts
    numbers = [field for field in trials[0][0] if all(isinstance(point[field], float) for point, _ in trials)]
    if numbers:
        points = [{field: float(point[field]) for field in numbers} for point, _ in trials]
        logs = {field for field in numbers if _spans_decades([point[field] for point in points])}
        sign = -1 if direction_of(metric) == "min" else 1
        svg = figures.parallel(points, [value for _, value in trials], metric, logs, sign)
        text = (
            "A line is a trial, the darker the better; axes run from the lowest to the highest value that was tried."
        )
        charts.append(("Trials over the fields", svg, text))
    if len(trials) >= LEAST_TRIALS:
        text = f"The share of the variance of {metric} over {len(trials)} trials that each field explains (fANOVA)."
        charts.append(("Importance of fields", figures.bars(importance(trials), "share of the variance"), text))
    return charts


def _front(found: SweepFindings) -> Iterator[tuple[str, str, str]]:
    """Draw each further objective against the first, with the front."""
    first, *others = found.sought or ("",)
    for place, name in enumerate(others, 1):
        points = [((one.values[place], one.values[0]), one.leads) for one in found.trials]
        svg = figures.pareto(points, name, first)
        text = "A dot is a trial. Those on the line are the Pareto front: no other trial is better in everything."
        if len(found.sought) > 2:
            text += " Some lead by an objective that this figure does not show."
        yield f"{first} against {name}", svg, text


def _population(found: SweepFindings, metric: str) -> Iterator[tuple[str, str, str]]:
    """Draw how the members of a population fared, and how their fields changed."""
    if not found.members:
        return
    copies = [(copy.step, copy.member, copy.source) for copy in found.copies]
    text = "A line is a member at its segments' ends. A dashed line leads from whose weights and optimiser it copied."
    values = {member.number: member.values for member in found.members}
    yield f"{metric} of the population", figures.lineage(values, copies, metric, log=False), text
    for field in dict.fromkeys(name for member in found.members for name in member.fields):
        own = {member.number: member.fields[field] for member in found.members}
        log = _spans_decades([value for one in own.values() for value in one.values()])
        yield f"{field} of the population", figures.lineage(own, copies, field, log=log), text


def importance(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the share of the values' variance that each field explains, by Optuna's fANOVA.

    Hutter et al., ICML 2014: a forest learns values from fields, and its variance is split between them.
    """
    import optuna
    from optuna.distributions import FloatDistribution as Float

    spaces = {field: _distribution([point[field] for point, _ in trials]) for field in trials[0][0]}
    study = optuna.create_study()
    for point, value in trials:
        words = {name: one if isinstance(spaces[name], Float) else str(one) for name, one in point.items()}
        study.add_trial(optuna.create_trial(params=words, distributions=spaces, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _distribution(values: Sequence[float | str]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted({str(value) for value in values}))
    return FloatDistribution(min(numbers), max(numbers), log=_spans_decades(numbers))


def _trials(compared: ComparisonResult) -> list[Trial]:
    """Return the points and values of the trials, by the fields that all have and in which they differ."""
    cards = [card for line in compared.lines for card in line.scored]
    shared = [field for field in (cards[0].params if cards else {}) if all(field in card.params for card in cards)]
    differing = [field for field in shared if len({card.params[field] for card in cards}) > 1]
    return (
        [(_point(card.params, differing), compared.scores[card.place][compared.asked.metric]) for card in cards]
        if differing
        else []
    )


def _point(params: Mapping[str, str], fields: Sequence[str]) -> dict[str, float | str]:
    return {field: _number(params[field]) for field in fields}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= DECADES
