"""Results: how a table's trials ended so far, and its files: Markdown, CSV, curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.shards.writer import write_atomically
from orchestrator.direction import direction_of
from orchestrator.history import steps
from orchestrator.results.charts import Curve, draw_bands, draw_curves, draw_points
from orchestrator.results.row_statistics import row_statistics
from orchestrator.runs import finetune
from orchestrator.tables.grid import TableConfig
from orchestrator.tables.job import EndedTrial
from orchestrator.tables.outcome import Outcome, TableLine
from orchestrator.tables.table import Table
from orchestrator.tables.text import comma_separated, markdown, of_patients
from orchestrator.tracking.tracker import plain

CASES_CSV, STATISTICS_CSV = "cases.csv", "statistics.csv"


@dataclass
class Results:
    """The results of a table's trials so far, by their positions in the table."""

    ended: dict[int, EndedTrial] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Outcome]:
        """How the trials ended, in the table's order."""
        return [one.outcome for one in self._in_order()]

    @property
    def pretrainings(self) -> dict[str, tuple[Path, list[str]]]:
        """The first pretraining of each row."""
        found: dict[str, tuple[Path, list[str]]] = {}
        for one in self._in_order():
            if one.pretraining:
                found.setdefault(one.outcome.trial.row, one.pretraining)
        return found

    @property
    def finetunings(self) -> dict[str, list[tuple[Path, float]]]:
        """The fine-tunings of each row."""
        found: dict[str, list[tuple[Path, float]]] = {}
        for one in self._in_order():
            if one.finetuning:
                found.setdefault(one.outcome.trial.row, []).append(one.finetuning)
        return found

    def chosen(self, lines: Sequence[TableLine]) -> "Results":
        """Return those of the trials that make the rows' numbers: with the values that were chosen."""
        settings = {line.name: line.choice.settings for line in lines if line.choice}
        kept = {}
        for place, one in self.ended.items():
            trial = one.outcome.trial
            if settings.get(trial.row, trial.tried) == trial.tried:
                kept[place] = one
        return Results(kept)

    def _in_order(self) -> list[EndedTrial]:
        return [self.ended[place] for place in sorted(self.ended)]

    def convergence(self, row: str, metric: str) -> list[Curve]:
        """Return a metric of each of a row's fine-tunings over its epochs."""
        curves = []
        for folder, steps_per_epoch in self.finetunings.get(row, []):
            found = [entry for entry in steps(folder, finetune.STAGE) if metric in entry]
            places = [(entry["step"] + 1) / steps_per_epoch for entry in found]
            curves.append((places, [float(entry[metric]) for entry in found]))
        return curves


def write(table: Table, lines: list[TableLine], results: Results) -> None:
    """Write Markdown, CSV and curves."""
    write_atomically(table.folder / "table.md", markdown(table.config, lines))
    write_atomically(table.folder / "table.csv", comma_separated(table.config, results.outcomes))
    if any(outcome.patients for outcome in results.outcomes):
        write_atomically(table.folder / CASES_CSV, of_patients(table.config, results.outcomes))
    shown = results.chosen(lines)
    for metric in table.config.curves:
        curves = {row: _curve(*place, metric) for row, place in shown.pretrainings.items()}
        if any(len(x) for x, _ in curves.values()):
            png = draw_curves(curves, f"{metric} while pretraining", "step", metric)
            write_atomically(table.folder / f"curve-{plain(metric)}.png", png)
    for metric in table.config.convergence:
        repeats = {row: shown.convergence(row, metric) for row in shown.finetunings}
        png = draw_bands(repeats, f"{metric} while fine-tuning", "epoch", metric)
        write_atomically(table.folder / f"curve-finetune-{plain(metric)}.png", png)
    if table.config.over:
        _draw_over(table, table.config.over, lines)


def write_statistics(table: Table, lines: Sequence[TableLine]) -> None:
    """Write what takes draws, which is left until all trials have ended."""
    text = row_statistics(lines, table.config.reference, direction_of(table.config.metric))
    write_atomically(table.folder / STATISTICS_CSV, text)


def _draw_over(table: Table, field: str, lines: Sequence[TableLine]) -> None:
    """Draw the rows' numbers over the field in which they differ."""
    ended = {line.name: line.summary for line in lines if line.summary.values}
    points = {
        name: {value: ended[row] for value, row in line.items() if row in ended} for name, line in table.lines.items()
    }
    png = draw_points(points, table.config.title, field, table.config.metric)
    write_atomically(table.folder / f"curve-over-{plain(field)}.png", png)


def _curve(folder: Path, stages: list[str], metric: str) -> Curve:
    """Return a metric of a pretraining over its steps, all stages one after the other."""
    places: list[float] = []
    values: list[float] = []
    before = 0
    for stage in stages:
        entries = steps(folder, stage)
        found = [entry for entry in entries if metric in entry]
        places += [before + entry["step"] + 1 for entry in found]
        values += [float(entry[metric]) for entry in found]
        before += len(entries)
    return places, values


def choices(config: TableConfig, lines: Sequence[TableLine]) -> dict[str, str]:
    """Return what each row chose, by names of MLflow's tags."""
    return {f"chosen/{plain(line.name)}": line.choice.remark(config.decimals) for line in lines if line.choice}
