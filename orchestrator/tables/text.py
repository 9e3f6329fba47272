"""Text of a table: its lines for people (terminal, Markdown), and its trials for programs (CSV)."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from orchestrator.results.text import (
    NOTHING,
    answer,
    as_csv,
    as_markdown,
    as_ranked,
    gain,
    significance,
    spread,
    tests_explained,
)
from orchestrator.tables.choice import TableChoice, listed, shortly
from orchestrator.tables.grid import TableConfig
from orchestrator.tables.outcome import Outcome, TableLine, choice_of
from orchestrator.tables.row import PaperNumbers, TableRow

MISSING, CHOSEN = "missing", "chosen"
MOST_ALSO = 4  # each takes up to two columns, and a terminal of 120 letters has room for about twelve


def cells(config: TableConfig, lines: Sequence[TableLine]) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of a table as text; with the paper's columns only if the paper has numbers."""
    heading = ["row", config.metric, "n", "runs", *config.also]
    rows = [
        [
            line.name,
            MISSING if line.missing else spread(line.summary.mean, line.summary.deviation, config.decimals),
            NOTHING if line.missing else str(line.summary.num_values),
            "  ".join(f"{value:.{config.decimals}f}" for value in line.summary.values) or NOTHING,
            *(spread(line.also[name].mean, line.also[name].deviation, config.decimals) for name in config.also),
        ]
        for line in lines
    ]
    if config.reference:
        heading[4:4] = ["difference", f"p against {config.reference}"]
        for row, line in zip(rows, lines, strict=True):
            row[4:4] = [gain(line.comparison, config.decimals), significance(line.comparison)]
    if any(line.choice for line in lines):
        heading.insert(1, CHOSEN)
        for row, line in zip(rows, lines, strict=True):
            row.insert(1, NOTHING if line.choice is None else shortly(line.choice.settings or {}) or NOTHING)
    if any(line.paper for line in lines):
        heading.append("paper")
        for row, line in zip(rows, lines, strict=True):
            row.append(_printed(line.paper, config.decimals))
    for name in config.also:
        if any(name in line.paper_also for line in lines):
            heading.append(f"{name}, paper")
            for row, line in zip(rows, lines, strict=True):
                row.append(spread(line.paper_also.get(name), None, config.decimals))
    return heading, rows


def notes(config: TableConfig, lines: Sequence[TableLine]) -> list[str]:
    """Explain the cells: what a run is, what was chosen, how p was computed, what is missing, which trials failed."""
    said = [f"a run is the mean over {config.num_folds} folds"] if config.num_folds else []
    said += _explained(config)
    if config.runnable:
        said += ["mean ± sample deviation over the runs"]
        said += tests_explained([line.comparison for line in lines], config.decimals)
        said += filter(None, [answer([line.name for line in lines], [line.alike for line in lines])])
    for line in lines:
        if line.choice:
            said.append(f"{line.name}: {line.choice.remark(config.decimals)}")
        if line.comparison and line.comparison.p is None:
            said.append(f"{line.name}: no p: {line.comparison.remark}")
        said += [f"{line.name}: a run failed: {failure}" for failure in line.failures]
    return [*said, *why_missing(config.rows), *config.notes]


def _explained(config: TableConfig) -> list[str]:
    """Say which values are repeats and which are chosen from, each list once, with its rows unless all have it."""
    repeats = "repeat" if config.choose_repeats == 1 else f"{config.choose_repeats} repeats"
    first = f" in its first {repeats}" if config.choose_repeats else ""
    meanings = (
        f"{CHOSEN}: for each row the value with the best mean {config.chosen_by} of its validations{first}, the "
        "first of equals; all numbers of the row are of the runs with it; ",
        "each value makes a repeat of its own with every seed: ",
    )
    said = []
    for place in (1, 0):
        names: dict[str, list[str]] = {}
        for row in config.runnable:
            if lists := config.lists(row)[place]:
                names.setdefault(listed(lists), []).append(row.name)
        for text, rows in names.items():
            which = "" if len(rows) == len(config.runnable) else f" ({', '.join(rows)})"
            said.append(f"{meanings[place]}{text}{which}")
    return said


def why_missing(rows: Sequence[TableRow]) -> list[str]:
    """Say why rows are missing: each reason once, with the rows that it keeps from being run."""
    reasons = dict.fromkeys(row.missing for row in rows if row.missing)
    names = {why: ", ".join(row.name for row in rows if row.missing == why) for why in reasons}
    return [f"{MISSING} ({why}): {names[why]}" for why in reasons]


def answered(config: TableConfig, lines: Sequence[TableLine]) -> str:
    """Say which row has the best mean, with its score, and whether it is better than each other one; "" for none."""
    best = next((line.summary.mean for line in lines if line.alike is not None), None)
    score = f"{config.metric} {spread(best, None, config.decimals)}"
    return answer([line.name for line in lines], [line.alike for line in lines], score)


def markdown(config: TableConfig, lines: Sequence[TableLine]) -> str:
    """Return the table in Markdown, with its title and notes."""
    heading, rows = cells(config, lines)
    for line, row in zip(lines, rows, strict=True):
        if line.alike == ():  # better than each other row
            row[:2] = [f"**{cell}**" for cell in row[:2]]
    return as_markdown(config.title, heading, rows, notes(config, lines))


def comma_separated(config: TableConfig, outcomes: Sequence[Outcome]) -> str:
    """Return one CSV line per trial: row, seeds, fold if any, values with every digit, the run's folder, failure.

    Fields with lists have columns, and where rows choose, so have the validation score and whether the trial has the
    value that its row chose. After the trials come the reason why a row is missing, which has one line without a
    trial, and the paper's numbers.
    """
    seeds = ["pretrain_seed", "finetune_seed", *(["fold"] if config.num_folds else [])]
    fields, choices = _fields(config), {row.name: choice_of(config, row, outcomes) for row in config.rows}
    chooses = any(choices.values())
    printed = {
        row.name: [row.paper and row.paper.mean, *(row.paper_also.get(name) for name in config.also)]
        for row in config.rows
    }
    rows = [
        [
            outcome.trial.row,
            *(outcome.trial.settings.get(field) for field in fields),
            *(getattr(outcome.trial, name) for name in seeds),
            *([outcome.validation, _is_chosen(outcome, choices)] if chooses else []),
            *(outcome.value, *(outcome.also.get(name) for name in config.also)),
            *(outcome.run, outcome.failure, None),
            *printed[outcome.trial.row],
        ]
        for outcome in outcomes
    ]
    decided = [*fields, *seeds, *([f"validation {config.chosen_by}", CHOSEN] if chooses else [])]
    empty = [None] * (len(decided) + 1 + len(config.also) + 2)
    rows += [[row.name, *empty, row.missing, *printed[row.name]] for row in config.rows if row.missing]
    paper = ["paper", *(f"{name}, paper" for name in config.also)]
    return as_csv(["row", *decided, config.metric, *config.also, "run", "failure", MISSING, *paper], rows)


def of_patients(config: TableConfig, outcomes: Sequence[Outcome]) -> str:
    """Return one CSV line per trial and patient, with the patient's score behind the table's metric."""
    rows = [
        [
            *(outcome.trial.row, outcome.trial.pretrain_seed, outcome.trial.finetune_seed, outcome.trial.fold),
            *(outcome.run, patient, score),
        ]
        for outcome in outcomes
        for patient, score in sorted((outcome.patients or {}).items())
    ]
    return as_csv(["row", "pretrain_seed", "finetune_seed", "fold", "run", "patient", config.metric], rows)


def terminal(config: TableConfig, lines: Sequence[TableLine]) -> Table:
    """Return the table for the console, the best row first and marked; files keep the order of the rows.

    Further metrics are left to the files where they are too many for a console.
    """
    shown, said = config, notes(config, lines)
    if len(config.also) > MOST_ALSO:
        shown = config.model_copy(update={"also": ()})
        said.append(f"in table.md and table.csv also: {', '.join(config.also)}")
    heading, rows = cells(shown, lines)
    means = [line.summary.mean for line in lines]
    is_best = any(line.alike == () for line in lines)
    return as_ranked(config.title, heading, rows, said, config.metric, means, is_best)


def _printed(paper: PaperNumbers | None, decimals: int) -> str:
    return NOTHING if paper is None else spread(paper.mean, paper.deviation, decimals)


def _fields(config: TableConfig) -> list[str]:
    """Return the fields with lists of any row."""
    return list(dict.fromkeys(field for row in config.runnable for lists in config.lists(row) for field in lists))


def _is_chosen(outcome: Outcome, choices: Mapping[str, TableChoice | None]) -> bool | None:
    """Tell whether a trial has the value that its row chose; None where the row chooses nothing."""
    choice = choices[outcome.trial.row]
    return None if choice is None else choice.settings == outcome.trial.tried
