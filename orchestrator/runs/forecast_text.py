"""Forecast as text: a table of what trainings will take, and how each number is known."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from orchestrator.config.experiment import Experiment
from orchestrator.runs.forecast import (
    COMMAND_STARTS,
    FIXED_BYTES,
    PROBE,
    TRAINING_STARTS,
    Forecast,
    of_command,
)
from orchestrator.terminal.phase import duration

UNKNOWN = "unknown"
MEASURE = "unknown; --measure times 20 steps of each training on this machine"


def told(
    forecasts: Sequence[Forecast], experiment: Experiment, lead: str = "training", at_once: int = 1
) -> list[RenderableType]:
    """Return a table of forecasts with their sum, and how the numbers are known; nothing for no forecasts."""
    if not forecasts:
        return []
    if not any(one.trainings or one.name == PROBE for one in forecasts):
        return ["all of it is done: nothing is left to train"]
    table = Table(lead, "to train", "time", "CPU time", "memory", "disk")
    for one in forecasts:
        table.add_row(one.name, str(one.trainings), *cells(one))
    total = of_command(forecasts, experiment, at_once)
    table.add_section()
    table.add_row(total.name, str(total.trainings), *cells(total))
    return [table, *how_known(total, at_once)]


def cells(one: Forecast) -> tuple[str, str, str, str]:
    """Return time, time of processors, memory and disk in words."""
    time = UNKNOWN if one.time is None else duration(one.time.wall_s)
    computed = UNKNOWN if one.time is None or not one.time.cpu_s else duration(one.time.cpu_s)
    memory = UNKNOWN if one.memory_bytes is None else f"{one.memory_bytes / 2**30:.1f} GiB"
    if one.device_bytes:
        memory += f", GPU {one.device_bytes / 2**30:.1f} GiB"
    return time, computed, memory, f"{one.disk_bytes / 2**20:,.0f} MiB"


def how_known(total: Forecast, at_once: int = 1) -> list[str]:
    """Say in a line each how time, memory and disk are known."""
    known = {what: "; ".join(total.known.get(what, ())) for what in ("time", "memory", "disk")}
    lines = {what: words or MEASURE for what, words in known.items()}
    if total.time is None and known["time"]:
        lines["time"] = f"{known['time']}; not of all: {MEASURE}"
    if total.memory_bytes is not None:
        starts = (
            f"a training starts in {TRAINING_STARTS.wall_s:g} times, the command in {COMMAND_STARTS.wall_s:g} times"
        )
        lines["time"] += f"; assumed: {starts} what the timed process took"
        lines["memory"] += f"; assumed: {FIXED_BYTES / 2**30:.1f} GiB for the command and Ray, more with readers"
        lines["disk"] += ", whose checkpoint was weighed; formula: history and MLflow"
    if at_once > 1:
        lines["time"] += f"; {at_once} at once"
    told = [f"{what}: {words}" for what, words in lines.items()]
    if total.busy:
        told.append(
            "this machine did other things meanwhile: its steps waited for a core; measure again when it is quiet"
        )
    return told
