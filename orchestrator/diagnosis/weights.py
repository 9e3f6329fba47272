"""Weights: causes that the network shows: weights that stay or run away, features that collapse, coarse gradients."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.base import Method
from methods.parts.health import effective_rank
from orchestrator.config.parts import Downstream
from orchestrator.diagnosis.cause import Cause, share
from orchestrator.diagnosis.look import SecondLook
from orchestrator.diagnosis.record import RebuiltTraining

UNMOVED = 1e-6  # relative change per step, over so many steps at most
COUNTED_STEPS = 1000
GROWN, SHRUNK = 10.0, 0.2  # times the norm at the start
DECAYED = 1.0  # sum over steps of rate times decay
ALIKE, LESS_SPREAD = 1e-4, 0.02  # spread of averaged features; of any, as a share of that before training
FEW_DIRECTIONS, LOST_DIRECTIONS = 1.5, 1 / 3  # effective rank, and as a share of that of the untrained encoder
ROUNDED = 0.1  # of the voxels' deviation
COARSE = 0.9  # cosine of the gradients in bfloat16 and in float32


def causes(look: SecondLook) -> Iterator[Cause]:
    """Yield what the weights, features and gradients show."""
    yield from _frozen(look.rebuilt)
    if look.rebuilt.trained is not None and look.rebuilt.knows_start:
        yield from _moved(look.rebuilt, look.rebuilt.trained)
    yield from _features(look)
    yield from _coarse(look)


def _frozen(rebuilt: RebuiltTraining) -> Iterator[Cause]:
    encoder = rebuilt.begun.encoder
    reached = {id(p) for p in encoder.parameters()} - {id(p) for p in encoder.unreached()}
    frozen = sum(p.numel() for p in encoder.parameters() if id(p) in reached and not p.requires_grad)
    whole = sum(p.numel() for p in encoder.parameters() if id(p) in reached)
    if not frozen or rebuilt.started:
        return
    if isinstance(rebuilt.record.training, Downstream):
        remedy = "set downstream.frozen_levels=0, or pretrain the encoder"
    else:
        remedy = "give the stage a start: a stage before it, or start: {weights: FILE}"
    yield Cause(
        "frozen random weights",
        f"{share(frozen, whole)} of the encoder's {whole:,} weights never learn, and began as random numbers; "
        "expected weights that were trained before",
        remedy,
    )


def _moved(rebuilt: RebuiltTraining, trained: Method) -> Iterator[Cause]:
    """Compare the matrices and kernels that learn with those at the start."""
    record = rebuilt.record
    before, after = _kernels(rebuilt.begun), _kernels(trained)
    if not len(before) or not record.steps:
        return
    steps = len(record.steps)
    norm = float(before.norm())
    change, ratio = float((after - before).norm()) / norm, float(after.norm()) / norm
    if change <= UNMOVED * min(steps, COUNTED_STEPS):
        rate, gradient = float(record.values("lr").max()), record.ends("grad_norm")[1]
        yield Cause(
            "learning rate too low",
            f"in {steps:,} steps the weights moved by {change:.1e} of their norm (highest rate {rate:.1e}, gradient "
            f"norm {gradient:.2g}); expected more than {UNMOVED:g} in each step",
            "raise optimiser.lr; look at the schedule, at the warm-up and at optimiser.clip_norm",
        )
    decayed = float(record.values("lr").sum()) * record.optimiser.weight_decay
    if ratio < SHRUNK and decayed > DECAYED:
        yield Cause(
            "weight decay too strong",
            f"the weights shrank to {ratio:.2g} of their norm: rate times decay adds up to {decayed:.3g} over the "
            f"steps; expected below {DECAYED:g}",
            "lower optimiser.weight_decay",
        )
    if ratio > GROWN:
        yield Cause(
            "learning rate too high",
            f"the weights grew to {ratio:.3g} times their norm; expected below {GROWN:g} times",
            "lower optimiser.lr, or set optimiser.clip_norm",
        )


def _kernels(method: Method) -> Float[Tensor, " p"]:
    """Return the encoder's matrices and kernels that learn; of a frozen encoder, those of the rest."""
    own = [p for p in method.encoder.parameters() if p.requires_grad and p.ndim > 1]
    learnt = own or [p for p in method.parameters() if p.requires_grad and p.ndim > 1]
    return torch.cat([p.detach().flatten().double() for p in learnt]) if learnt else torch.zeros(0)


def _features(look: SecondLook) -> Iterator[Cause]:
    """Compare the features of different samples with one another, and with those of the untrained encoder."""
    begun, trained = look.begun_features.double(), look.features.double()
    before, spread = _spread(begun), _spread(trained)
    if spread < LESS_SPREAD * before or (look.averages and spread < min(ALIKE, before)):
        yield Cause(
            "constant output",
            f"the features of {len(trained)} samples deviate by {spread:.1e} of their size, {before:.1e} before "
            f"training; expected more than {max(ALIKE, LESS_SPREAD * before):.1e}",
            "lower optimiser.lr and optimiser.weight_decay, and use batch norm where a method averages the last map",
        )
        return
    ranks = [float(effective_rank(one - one.mean(0))) for one in (begun, trained)]
    if ranks[1] < FEW_DIRECTIONS and ranks[1] < LOST_DIRECTIONS * ranks[0]:
        yield Cause(
            "collapse",
            f"the features of {len(trained)} samples take up {ranks[1]:.1f} directions, and {ranks[0]:.1f} before "
            f"training; expected more than {FEW_DIRECTIONS:g}",
            "lower optimiser.lr, or raise budget.batch_size",
        )


def _spread(features: Float[Tensor, "n d"]) -> float:
    """Return the deviation over samples as a share of the size."""
    size = float(features.square().mean().sqrt())
    return float(features.var(0, correction=0).mean().sqrt()) / size if size else 0.0


def _coarse(look: SecondLook) -> Iterator[Cause]:
    if look.rebuilt.plan.precision != "bf16":
        return
    images = look.views.images[0].double()
    lost, deviation = float((images - images.bfloat16().double()).std()), float(images.std())
    if lost > ROUNDED * deviation > 0:
        yield Cause(
            "precision too coarse",
            f"bf16 has 8 bits, and rounds voxels of mean {float(images.mean()):.4g} by {lost:.2g}, which is "
            f"{share(lost, deviation)} of their deviation; expected below {share(ROUNDED, 1)}",
            "ingest with a recipe that scales intensities to [0, 1], or set training.precision=fp32",
        )
        return
    exact, coarse = look.gradient("fp32"), look.gradient("bf16")
    cosine = float(F.cosine_similarity(exact, coarse, dim=0)) if float(exact.norm()) else 1.0
    if not cosine >= COARSE:
        yield Cause(
            "precision too coarse",
            f"the gradient in bf16 has a cosine of {cosine:.2f} with that in fp32 on the same batch; expected above "
            f"{COARSE:g}",
            "set training.precision=fp32, or standardise the intensities when the scans are ingested",
        )
