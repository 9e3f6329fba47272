"""Initial: a first experiment for some shards, and a table beside it, as commented YAML that runs as it is.

What it says is decided in ``proposal.py``; here it is measured against memory, written down, and checked as a dry run
would check it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.shards.index import ShardSet
from orchestrator.config.files import merge, resolve
from orchestrator.config.paths import absolute
from orchestrator.proposal.fingerprint import Fingerprint, LabelFacts, Machine, TooFewLabelsError, by
from orchestrator.proposal.numbers import (
    ENOUGH_VALIDATIONS,
    ON_GPU,
    Choice,
    Pretraining,
    Size,
    batch_of,
    epochs_between_validations,
    pretrainings,
    size_of,
    task_crop_of,
    task_size_of,
    without_outliers,
)
from orchestrator.runs import finetune, memory, pretrain
from orchestrator.runs.course import Course

# What else lives in the memory: Ray's object store, other programs, the system.
USABLE_SHARE = {"cpu": 0.5, "gpu": 0.85}
WIDTH = 116
NO_LABELS = "Nothing is labelled here."


@dataclass(frozen=True)
class Initial:
    """The texts of a first experiment and of its table; None where no labels judge it."""

    experiment: str
    table: str | None


def place(shards: str, out: str | None) -> tuple[Path, Path]:
    """Return where the experiment and its table are written: ``out``, or a file named after the shards.

    ``out`` is a file that ends in .yaml, or a folder. Raises ValueError where either file exists.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", shards.rstrip("/").rpartition("/")[2]).strip("-._") or "first"
    given = Path(out) if out else Path()
    path = given if given.suffix in (".yaml", ".yml") else given / f"{name}.yaml"
    table = path.with_name(f"{path.stem}_table{path.suffix}")
    for file in (path, table):
        if file.exists():
            raise ValueError(
                f"{file} exists; expected a name that is free, so that nothing of yours is overwritten; delete the "
                "file, or give another by --out"
            )
    return path, table


def write(shards: str, labelled: str | None, out: str | None, machine: Machine) -> list[Path]:
    """Write the experiment, and the table where labels can judge it; return the files.

    Raises ValueError if the shards allow no experiment, before anything is written.
    """
    experiment, table = place(shards, out)
    texts = propose(shards, labelled, experiment, machine)
    experiment.parent.mkdir(parents=True, exist_ok=True)
    experiment.write_text(texts.experiment)
    if texts.table is None:
        return [experiment]
    table.write_text(texts.table)
    return [experiment, table]


def propose(shards: str, labelled: str | None, path: Path, machine: Machine) -> Initial:
    """Decide, measure and check a first experiment for a file at ``path``."""
    pool, judged_by = ShardSet.open(absolute(shards)), ShardSet.open(absolute(labelled or shards))
    fingerprint, labels, lacking = Fingerprint.of(pool), None, NO_LABELS
    try:
        labels = LabelFacts.of(judged_by)
    except TooFewLabelsError as error:
        if labelled:
            raise
        lacking = f"Nothing judges this encoder yet. {_sentence(str(error))}"
    if labelled and labels is None:
        raise ValueError(
            f"shards {labelled}: 0 samples with label maps or classes, expected some; ingest scans together with "
            "their labels, or leave --labelled out"
        )
    if labels and judged_by.spatial_dims != fingerprint.spatial_dims:
        raise ValueError(
            f"shards {labelled}: {judged_by.spatial_dims}D samples, those of {shards} are "
            f"{fingerprint.spatial_dims}D; ingest both with the same recipe"
        )
    size = size_of(fingerprint, machine)
    fingerprint = without_outliers(fingerprint, size.crop)
    first, second = pretrainings(fingerprint, size)
    places = {"shards": shards, "labelled": labelled or shards}
    head = _Head(path, fingerprint, labels, lacking, machine, size, places)
    batch = _batch(head, (first, second))
    experiment = "".join((_opening(head), _pretraining(head, first, batch), _downstream(head), _resources(head)))
    table = _table(head, (first, second)) if labels else None
    _check(experiment, [{}, {"method": second.method, "optimiser": second.optimiser}], str(path))
    return Initial(experiment, table)


@dataclass(frozen=True)
class _Head:
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


def _batch(head: _Head, rows: Sequence[Pretraining]) -> Choice:
    """Choose the batch by the memory that two real samples need under the hungrier method."""
    machine, fingerprint = head.machine, head.fingerprint
    kind = "gpu" if machine.gpus else "cpu"
    usable = USABLE_SHARE[kind] * (machine.gpu_bytes if machine.gpus else machine.free_bytes)
    fits = []
    for row in rows:
        tree = {
            "name": "fit",
            "data": {
                "shards": fingerprint.uri,
                "split": fingerprint.split,
                "keep": {"min_size": fingerprint.min_size},
            },
            "encoder": _encoder(head),
            "method": row.method,
            "optimiser": row.optimiser,
            "budget": {"steps": 1, "batch_size": 2},
        }
        needed = memory.stage_memory(Course.open(resolve(tree)))
        fits.append(int((usable / memory.OVERHEAD - needed.fixed_bytes) / needed.per_sample_bytes))
    if min(fits) < 2:
        raise ValueError(
            f"memory for {max(0, min(fits))} samples of {by(fingerprint.median)} voxels ({usable / 2**30:.1f} GiB), "
            "expected at least 2; close other programs, or ingest with a recipe that resamples to fewer voxels"
        )
    return batch_of(head.size.batch, fingerprint.num_samples, min(fits), machine)


def _encoder(head: _Head) -> dict[str, Any]:
    fingerprint = head.fingerprint
    return {
        "name": "unet",
        "spatial_dims": fingerprint.spatial_dims,
        "in_channels": fingerprint.num_channels,
        "features": list(head.size.features),
        "norm": "batch",
    }


def _opening(head: _Head) -> str:
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
            f"set resources.gpu=true, encoder.features={_flow(large.features)}, budget.steps={large.steps}, "
            f"downstream.budget.steps={large.task_steps} and batches that fill its memory (`--dry-run` tells)"
        )
    return "".join(f"{_comment(line)}" for line in lines) + (
        f"name: {head.name}\nhome: runs # where everything of its runs goes, below the folder of the command\n"
    )


def _said(labels: LabelFacts) -> str:
    names = ", ".join(_named(number, name) for number, name in labels.names.items())
    what = {"segmentation": "label maps", "one class": "one class each", "several classes": "several classes each"}
    held = f"{labels.num_val:,} held back" if labels.num_folds is None else "none held back"
    return f"{what[labels.task]} ({names}) of {labels.num_train:,} samples to train on, {held}"


def _pretraining(head: _Head, first: Pretraining, batch: Choice) -> str:
    fingerprint, size = head.fingerprint, head.size
    split = f"train # {fingerprint.num_samples:,} samples; nothing is pretrained on those that are held back"
    if fingerprint.split is None:
        split = f"null # all {fingerprint.num_samples:,} samples: there is no split named train"
    keep = ""
    if fingerprint.min_size:
        everything = fingerprint.num_samples + fingerprint.num_small
        why = f"leaves out {fingerprint.num_small:,} of {everything:,}, for which all crops would have to be small"
        keep = f"  keep: {{min_size: {_flow(fingerprint.min_size)}}} # {why}\n"
    width = "MONAI's default" if head.machine.gpus else "narrow, for CPUs"
    epochs = size.steps * batch.value / fingerprint.num_samples
    return f"""data:
  shards: {_scalar(head.places["shards"])}
  split: {split}
{keep}encoder:
  name: unet
  spatial_dims: {fingerprint.spatial_dims} # as the shards
  in_channels: {fingerprint.num_channels} # as the shards
  features: {_flow(size.features)} # {width}
  norm: batch # methods that average the last map learn next to nothing after instance norm
{_comment(_sentence(first.reason))}method: {_flow(first.method)}
optimiser: {_flow(first.optimiser)}
budget:
  steps: {size.steps} # some {epochs:.0f} passes over the samples
  batch_size: {batch.value} # {batch.reason}
health: {{times: 4, samples: 64}} # how often, and of how many samples, the features' collapse is measured
"""


def _downstream(head: _Head) -> str:
    labels, size, machine = head.labels, head.size, head.machine
    if labels is None:
        return _comment(
            f"{head.lacking} Once there are labelled shards, `raydiology init` writes the task that judges this "
            "encoder, and a table, from `--labelled SHARDS`."
        )
    share = max(2, min(size.task_batch, 2 ** int(max(labels.num_train, 2).bit_length() - 1)))
    batch = share * max(1, machine.gpus)
    times = (
        1 if labels.task == "segmentation" and len(labels.median) == 3 and not machine.gpus else ENOUGH_VALIDATIONS
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
  shards: {_scalar(head.places["labelled"])}
{other}{held}{_segmentation(head, labels) if labels.task == "segmentation" else _classification(head, labels)}\
  optimiser: {{name: adamw, lr: 0.001, final_lr: 1.0e-05, weight_decay: 1.0e-05}}
  budget:
    steps: {size.task_steps} # some {passes:.0f} passes over the labelled samples
    batch_size: {batch} # samples
  evaluate_every_epochs: {rhythm:g} # {when}
"""


def _segmentation(head: _Head, labels: LabelFacts) -> str:
    crop = task_crop_of(labels, head.size.task_crop)
    values = "\n".join(f"      - {value} # {_one_line(name)}" for value, name in labels.names.items())
    crops = 2 if len(crop.value) == 2 else 1
    return f"""  task:
    name: segmentation
    crop_size: {_flow(crop.value)} # {crop.reason}
    crops_per_sample: {crops}
    labels: # delete those that are not to be learnt
{values}
"""


def _classification(head: _Head, labels: LabelFacts) -> str:
    size = task_size_of(labels, 128 if len(labels.median) == 2 else 48)
    several = labels.task == "several classes"
    names = ", ".join(
        f"{_named(number, name)} ({labels.counts.get(number, 0):,})" for number, name in labels.names.items()
    )
    score = "auc" if several or labels.judged > 1 else "accuracy"
    kind = "multi_label # a sample may have several classes" if several else "single # each sample has one class"
    kept = "the checkpoint with the best one is kept"
    grades = ""
    if not several and all(re.search(r"\d\W*$", name) for name in labels.names.values()):
        grades = "    grades: true # the names are numbers: kappa_quadratic weighs how far apart they are\n"
    return f"""  task:
    name: classification
{_comment(f"Classes, with the samples that are trained on: {names}", indent=4)}    kind: {kind}
{grades}    size: {size.value} # {size.reason}
    hidden_dims: [64] # of the head
    class_weights: balanced # rare classes count as much as frequent ones
    score: {score} # {kept if score == "auc" else f"{kept}; the samples held back have one class: no AUC"}
"""


def _resources(head: _Head) -> str:
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
"""


def _table(head: _Head, rows: Sequence[Pretraining]) -> str:
    labels = head.labels
    assert labels is not None
    metric = "dice_mean" if labels.task == "segmentation" else "score"
    first, second = rows
    concurrent = (
        "concurrent: 2 # each on half of the cores\n" if not head.machine.gpus and head.machine.cores > 1 else ""
    )
    path = head.path.with_name(f"{head.path.stem}_table{head.path.suffix}")
    lines = [
        f"Which pretraining is worth it? Two beside none, on the experiment {head.path.name} beside this file.",
        f"Run:      raydiology table {path}",
        "Expected: not yet run",
        "Time:     a pretraining a row and two fine-tunings each; more seeds tell differences from chance",
    ]
    measured = "Dice" if labels.task == "segmentation" else "score"
    title = f"{head.name}: {measured} on held-back samples, by pretraining"
    return f"""{"".join(_comment(line) for line in lines)}name: {head.name}
title: {_scalar(title)}
experiment: {_scalar(head.path.name)}
metric: {metric} # of the best checkpoint
reference: scratch # every row is tested against this one
pretrain_seeds: [0]
finetune_seeds: [0, 1]
{concurrent}rows:
  - name: scratch
    overrides: {{method: {{name: scratch}}}}
    pretrain_seeds: [] # nothing is pretrained
  - name: {_scalar(first.row)} # the experiment as it is
{_comment(_sentence(second.reason), indent=2)}  - name: {_scalar(second.row)}
    overrides:
      method: {_flow(second.method)}
      optimiser: {_flow(second.optimiser)}
"""


def _check(text: str, rows: Sequence[dict[str, Any]], source: str) -> None:
    """Raise ValueError where a row could not run."""
    tree = yaml.safe_load(text)
    for changes in rows:
        pretrain.check(resolve(merge(tree, changes), source=source))
    if "downstream" in tree:
        finetune.check(resolve(tree, source=source))


def _comment(text: str, indent: int = 0) -> str:
    """Return a comment, broken into lines; later lines are indented to the text after ``Name:``."""
    hang = re.match(r"\w+: +", text)
    later = " " * len(hang.group()) if hang else ""
    lines, line = [], ""
    for word in re.findall(r"\S+\s*", text):
        if line and len(f"{line}{word.rstrip()}") > WIDTH - indent:
            lines.append(line.rstrip())
            line = later
        line += word
    lines.append(line.rstrip())
    return "".join(f"{' ' * indent}# {each}\n" for each in lines)


def _flow(value: Any) -> str:
    """Write a value in YAML's short form, on one line."""
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _scalar(text: str) -> str:
    """Write a text as YAML reads it back."""
    return yaml.safe_dump(text, width=10_000).removesuffix("\n...\n").strip()


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."


def _named(number: int, name: str) -> str:
    return str(number) if name == str(number) else f"{number} {_one_line(name)}"


def _one_line(name: str) -> str:
    return " ".join(name.split())
