"""Curves: causes that a run's history and its settings show, without its shards."""

from collections.abc import Iterator
from math import exp

import numpy as np

from orchestrator.config.parts import Downstream
from orchestrator.diagnosis.cause import Cause, share
from orchestrator.diagnosis.record import TrainingRecord
from orchestrator.training.optimiser import WARMING

RISEN = 2.0  # times the first loss: above that, a training has diverged
EXPLODED = 100.0  # times the first gradient norm
STEPS_TO_LEARN = 500  # before them, a loss at that of a constant may be a slow start
NOTHING_LEARNT = 0.995  # of the loss of the best constant prediction
COLLAPSED = 0.97
SILENT = 0.95  # share of VoCo's overlaps that the ReLU silences
CLIPPED = 0.01  # of the median gradient norm
TEMPERATURES = (0.01, 1.0)
MASKED = (0.1, 0.95)


def causes(record: TrainingRecord) -> Iterator[Cause]:
    """Yield the causes that curves and settings show."""
    if not record.steps and record.fatal is None:
        return
    yield from _diverged(record)
    yield from _clipped(record)
    yield from _warming(record)
    yield from _temperature(record)
    yield from _masked(record)
    yield from _collapsed(record)
    yield from _silenced(record)


def at_the_constant(record: TrainingRecord) -> Iterator[Cause]:
    """Yield that nothing was learnt; said only where no other cause explains it."""
    constants = record.values("loss_of_constant")
    if len(record.steps) < STEPS_TO_LEARN or len(constants) < len(record.steps) or constants[-1] <= 0:
        return
    last, constant = record.ends("loss")[1], record.ends("loss_of_constant")[1]
    if last >= NOTHING_LEARNT * constant:
        yield Cause(
            "nothing learnt",
            f"the loss ends at {last:.4g}, and the best prediction that does not look at the images has "
            f"{constant:.4g}; expected less after {len(record.steps):,} steps",
            "look at pictures/views-*.png: can a person solve the task from what they show? Then try other "
            "optimiser.lr",
        )


def _diverged(record: TrainingRecord) -> Iterator[Cause]:
    remedy = "lower optimiser.lr, or set optimiser.clip_norm and a warm-up"
    if record.fatal is not None:
        last = record.steps[-1] if record.steps else {}
        norm = f", after a gradient norm of {last['grad_norm']:.3g}" if "grad_norm" in last else ""
        yield Cause("learning rate too high", f"{record.fatal.partition(';')[0]}{norm}; expected a number", remedy)
        return
    first, last = record.ends("loss")
    constant = record.ends("loss_of_constant")[1]
    if first > 0 and last > RISEN * max(first, np.nan_to_num(constant)):
        yield Cause(
            "learning rate too high", f"the loss rose from {first:.4g} to {last:.4g}; expected less than at first",
            remedy,
        )  # fmt: skip
    first, last = record.ends("grad_norm")
    if last > EXPLODED * first > 0:
        yield Cause(
            "learning rate too high",
            f"the gradient norm rose from {first:.3g} to {last:.3g}; expected at most {EXPLODED:g} times as much",
            remedy,
        )


def _clipped(record: TrainingRecord) -> Iterator[Cause]:
    clip, norm = record.optimiser.clip_norm, float(np.median(record.values("grad_norm") if record.steps else [0]))
    if clip and record.optimiser.name not in ("adam", "adamw") and clip < CLIPPED * norm:
        yield Cause(
            "gradients clipped away",
            f"clip_norm is {clip:g} and the median gradient norm {norm:.3g}; expected a clip_norm that is reached "
            "now and then",
            f"raise optimiser.clip_norm to about {norm:.2g}, or leave it out",
        )


def _warming(record: TrainingRecord) -> Iterator[Cause]:
    highest = float(record.values("lr").max()) if record.steps else 0.0
    budget = record.training.budget
    total = budget.steps if budget.steps is not None else len(record.steps)
    rising = int(np.argmax(record.values("lr"))) if record.steps else 0
    if record.optimiser.warmup_epochs and rising >= WARMING * total:
        yield Cause(
            "warm-up as long as the budget",
            f"the learning rate rose over {share(rising + 1, total)} of the steps, and reached {highest:.2g} of "
            f"{record.optimiser.lr:.2g}; expected a tenth of the steps or less",
            "lower optimiser.warmup_epochs, or raise the budget",
        )


def _temperature(record: TrainingRecord) -> Iterator[Cause]:
    for place, config in (("method", record.config), ("method.clusters", getattr(record.config, "clusters", None))):
        temperature = getattr(config, "temperature", None)
        if temperature is None or TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
            continue
        odds = f"odds of {exp(2 / temperature):.2f} at most" if temperature > 1 else "certainty for any difference"
        yield Cause(
            "extreme temperature",
            f"{place}.temperature is {temperature:g}: cosines from -1 to 1 become {odds}; expected "
            f"{TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, the papers have 0.1",
            f"set {place}.temperature=0.1",
        )


def _masked(record: TrainingRecord) -> Iterator[Cause]:
    if isinstance(record.training, Downstream) or record.config.name != "simmim":
        return
    ratio: float = record.config.mask_ratio
    if not MASKED[0] <= ratio <= MASKED[1]:
        yield Cause(
            "mask ratio", f"{share(ratio, 1)} of a crop is hidden; expected {share(MASKED[0], 1)} to "
            f"{share(MASKED[1], 1)}", "set method.mask_ratio to 0.6, the paper's",
        )  # fmt: skip


def _collapsed(record: TrainingRecord) -> Iterator[Cause]:
    first, last = record.ends("collapse")
    if last > COLLAPSED:
        yield Cause(
            "collapse",
            f"the outputs of a batch are alike: collapse {last:.3f} at the end, {first:.3f} at first; expected less "
            f"than {COLLAPSED:g}",
            "lower optimiser.lr, raise budget.batch_size, or use batch norm in encoder and heads",
        )


def _silenced(record: TrainingRecord) -> Iterator[Cause]:
    last = record.ends("dead_positives")[1]
    if last > SILENT:
        yield Cause(
            "dead positives",
            f"the ReLU silences {share(last, 1)} of the overlapping crops and bases, which then have no gradient; "
            f"expected below {share(SILENT, 1)}",
            "set method.rectify=false, or lower method.lambda_reg",
        )
