"""The text of a first experiment, part by part: each number with the reason for it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.proposal.fingerprint import Fingerprint, LabelFacts, Machine, TaskKind
from orchestrator.proposal.numbers import (
    ENOUGH_VALIDATIONS,
    ON_GPU,
    STRIDE,
    Pretraining,
    ReasonedValue,
    Size,
    epochs_between_validations,
    task_crop_of,
    task_size_of,
)
from orchestrator.proposal.yaml_text import comment, flow, named, one_line, scalar, sentence


@dataclass(frozen=True)
class FileHead:
    """The decisions from which the parts of the file are written.

    lacking   why nothing judges the encoder, where ``labels`` is None
    """

    path: Path
    fingerprint: Fingerprint
    labels: LabelFacts | None
    lacking: str
    machine: Machine
    size: Size
    places: dict[str, str]

    @property
    def name(self) -> str:
        return self.path.stem


def experiment(head: FileHead, first: Pretraining, batch: ReasonedValue) -> str:
    """Return the text of the experiment, whose pretraining is the first one."""
    return "".join((_opening(head), _pretraining(head, first, batch), _downstream(head), _resources(head)))


def _opening(head: FileHead) -> str:
    fingerprint, labels = head.fingerprint, head.labels
    large = ON_GPU[fingerprint.spatial_dims]
    lines = [
        "A first experiment on these shards, written by `raydiology init`. Every number is yours to change.",
        f"Shards:   {head.places['shards']}: {fingerprint}",
        *([f"Labels:   {head.places['labelled']}: {_said(labels)}"] if labels else []),
        f"Machine:  {head.machine}",
        f"Run:      raydiology {'finetune' if labels else 'pretrain'} {head.path}",
        "Expected: not yet run",
    ]
    if head.machine.gpus:
        lines.append("Time:     hours on a GPU; lower the steps under budget for a try")
    else:
        lines.append(
            "Time:     minutes on two CPU cores: enough to see that everything works, not to learn much. On a GPU "
            f"set resources.gpu=true, encoder.features={flow(large.features)}, budget.steps={large.steps}, "
            f"downstream.budget.steps={large.task_steps} and batches that fill its memory (`--dry-run` tells)"
        )
    return "".join(f"{comment(line)}" for line in lines) + (
        f"name: {head.name}\nhome: runs # where everything of its runs goes, below the folder of the command\n"
    )


def _said(labels: LabelFacts) -> str:
    names = ", ".join(named(number, name) for number, name in labels.names.items())
    what = {
        "segmentation": "label maps",
        "detection": "boxes",
        "one class": "one class each",
        "several classes": "several classes each",
    }
    held = f"{labels.num_val:,} held back" if labels.num_folds is None else "none held back"
    return f"{what[labels.task]} ({names}) of {labels.num_train:,} samples to train on, {held}"


def _pretraining(head: FileHead, first: Pretraining, batch: ReasonedValue) -> str:
    fingerprint, size = head.fingerprint, head.size
    split = f"train # {fingerprint.num_samples:,} samples; nothing is pretrained on those that are held back"
    if fingerprint.split is None:
        split = f"null # all {fingerprint.num_samples:,} samples: there is no split named train"
    keep = ""
    if fingerprint.min_size:
        everything = fingerprint.num_samples + fingerprint.num_small
        why = f"leaves out {fingerprint.num_small:,} of {everything:,}, for which all crops would have to be small"
        keep = f"  keep: {{min_size: {flow(fingerprint.min_size)}}} # {why}\n"
    width = "MONAI's default" if head.machine.gpus else "narrow, for CPUs"
    epochs = size.steps * batch.value / fingerprint.num_samples
    return f"""data:
  shards: {scalar(head.places["shards"])}
  split: {split}
{keep}encoder:
  name: unet
  spatial_dims: {fingerprint.spatial_dims} # as the shards
  in_channels: {fingerprint.num_channels} # as the shards
  features: {flow(size.features)} # {width}
  norm: batch # methods that average the last map learn next to nothing after instance norm
{comment(sentence(first.reason))}method: {flow(first.method)}
optimiser: {flow(first.optimiser)}
budget:
  steps: {size.steps} # some {epochs:.0f} passes over the samples
  batch_size: {batch.value} # {batch.reason}
health: {{times: 4, samples: 64}} # how often, and of how many samples, the features' collapse is measured
"""


def _downstream(head: FileHead) -> str:
    labels, size, machine = head.labels, head.size, head.machine
    if labels is None:
        return comment(
            f"{head.lacking} Once there are labelled shards, `raydiology init` writes the task that judges this "
            "encoder, and a table, from `--labelled SHARDS`."
        )
    share = max(2, min(size.task_batch, 2 ** int(max(labels.num_train, 2).bit_length() - 1)))
    batch = share * max(1, machine.gpus)
    times = (
        1
        if labels.task in ("segmentation", "detection") and len(labels.median) == 3 and not machine.gpus
        else ENOUGH_VALIDATIONS
    )
    rhythm = epochs_between_validations(size.task_steps, batch, labels.num_train, times)
    other = held = ""
    if labels.num_channels != head.fingerprint.num_channels:
        anew = "as these shards; the first convolution is learnt anew"
        other = f"  encoder: {{in_channels: {labels.num_channels}}} # {anew}\n"
    if labels.num_folds:
        held = f"  num_folds: {labels.num_folds} # no sample is held back as val: one part of the patients is\n"
    passes = size.task_steps * batch / labels.num_train
    when = "at the end only: whole volumes take long" if times == 1 else f"about {times} times"
    return f"""downstream:
  shards: {scalar(head.places["labelled"])}
{other}{held}{_TASK_TEXTS[labels.task](head, labels)}\
  optimiser: {{name: adamw, lr: 0.001, final_lr: 1.0e-05, weight_decay: 1.0e-05}}
  budget:
    steps: {size.task_steps} # some {passes:.0f} passes over the labelled samples
    batch_size: {batch} # samples
  evaluate_every_epochs: {rhythm:g} # {when}
"""


def _segmentation(head: FileHead, labels: LabelFacts) -> str:
    crop = task_crop_of(labels, head.size.task_crop)
    values = "\n".join(f"      - {value} # {one_line(name)}" for value, name in labels.names.items())
    crops = 2 if len(crop.value) == 2 else 1
    return f"""  task:
    name: segmentation
    crop_size: {flow(crop.value)} # {crop.reason}
    crops_per_sample: {crops}
    labels: # delete those that are not to be learnt
{values}
"""


def _detection(head: FileHead, labels: LabelFacts) -> str:
    is_volume, on_gpu = len(labels.median) == 3, head.machine.gpus > 0
    size = task_size_of(replace(labels, extents=labels.extents[:, -2:]), 512 if on_gpu else 128)
    names = ", ".join(
        f"{named(number, name)} ({labels.counts.get(number, 0):,})" for number, name in labels.names.items()
    )
    slices = "" if not is_volume else f"    slices: {STRIDE} # around a key slice; as many as the U-Net strides\n"
    narrow = (
        ""
        if on_gpu
        else """    pyramid_channels: 64 # narrow, for CPUs, as are the next two lines
    head_dims: [128]
    sampled_regions: 64
"""
    )
    return f"""  task:
    name: detection
{comment(f"Classes, with the boxes that are trained on: {names}", indent=4)}    size: {size.value} # {size.reason}
{slices}{narrow}    score: ap50 # the checkpoint with the best one is kept
"""


def _classification(head: FileHead, labels: LabelFacts) -> str:
    size = task_size_of(labels, 128 if len(labels.median) == 2 else 48)
    several = labels.task == "several classes"
    names = ", ".join(
        f"{named(number, name)} ({labels.counts.get(number, 0):,})" for number, name in labels.names.items()
    )
    score = "auc" if several or labels.judged > 1 else "accuracy"
    kind = "multi_label # a sample may have several classes" if several else "single # each sample has one class"
    kept = "the checkpoint with the best one is kept"
    grades = ""
    if not several and all(re.search(r"\d\W*$", name) for name in labels.names.values()):
        grades = "    grades: true # the names are numbers: kappa_quadratic weighs how far apart they are\n"
    return f"""  task:
    name: classification
{comment(f"Classes, with the samples that are trained on: {names}", indent=4)}    kind: {kind}
{grades}    size: {size.value} # {size.reason}
    hidden_dims: [64] # of the head
    class_weights: balanced # rare classes count as much as frequent ones
    score: {score} # {kept if score == "auc" else f"{kept}; the samples held back have one class: no AUC"}
"""


_TASK_TEXTS: dict[TaskKind, Callable[[FileHead, LabelFacts], str]] = {
    "segmentation": _segmentation,
    "detection": _detection,
    "one class": _classification,
    "several classes": _classification,
}


def _resources(head: FileHead) -> str:
    machine = head.machine
    if machine.gpus:
        cpus, readers = max(1, min(8, machine.cores // machine.gpus - 1)), max(1, min(4, machine.cores // 8))
        return f"""resources:
  gpu: true
  workers: {machine.gpus} # one for each GPU
  cpus_per_worker: {cpus} # of {machine.cores} cores
  readers: {readers} # processes that read shards
training: {{precision: bf16, checkpoint_every_steps: 500}}
"""
    return f"""resources:
  workers: 1
  gpu: false # no GPU was found here
  cpus_per_worker: {max(1, min(16, machine.cores // 2))} # of {machine.cores} cores; a table trains two at once
  readers: 0 # a worker reads its own samples, so that it starts sooner; processes that read ahead pay on a GPU
"""
