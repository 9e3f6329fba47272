"""Faults: 20 trainings with a fault as people make them, and sound ones of all methods, in this process for `doctor`.

`python -m tests.faults` trains the 20 faulty ones, and prints the table of docs/how_to/doctor.md.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data.boxes import Boxes
from data.scan import Scan
from data.shards.index import IndexCard, write_index
from data.shards.writer import Sample, to_row, write_shard
from methods import METHODS
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import merge
from orchestrator.diagnosis.cause import Cause
from orchestrator.diagnosis.diagnosis import diagnose
from orchestrator.feed import stream
from orchestrator.history import HISTORY, append
from orchestrator.runs.course import courses
from orchestrator.runs.finetune import STAGE, feed_of, plan_of
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.network import build_network, prepare
from orchestrator.runs.pretrain import encoder_card, watches_of
from orchestrator.training.checkpoint import export_encoder
from orchestrator.training.finite import NonFiniteError
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.resume import name_of
from orchestrator.training.world import World
from tests.methods.test_contract import EXTENTS, TINY_ENCODERS, encoder_for, phantom, tiny_config

STEPS, BATCH = 24, 8
UNET = {"name": "unet", "spatial_dims": 2, "features": [4, 4, 8, 8, 8, 4], "norm": "batch"}
Change = Callable[[Sample, int], Sample]


def write_set(folder: Path, samples: Mapping[str, Sequence[Sample]], card: IndexCard) -> str:
    """Write samples by split; return the folder."""
    files = [
        file
        for split, own in samples.items()
        if (file := write_shard(str(folder), f"{split}-00000", [[to_row(one) for one in own]]))
    ]
    write_index(str(folder), files, card)
    return str(folder)


def sample_of(patient: int, extent: tuple[int, ...], channels: int = 1) -> Sample:
    """Return a phantom of a patient: a body with organs, two of them labelled by brightness, a class and a box."""
    voxels = np.stack([phantom(extent, patient + 100 * channel) for channel in range(channels)])
    number = patient % 2
    # A class is the direction of stripes, which begin anywhere: no single number of an image tells it.
    stripes = ((np.indices(extent)[number - 2] + np.random.default_rng(patient).integers(6)) // 3 % 2).astype(bool)
    voxels = np.where(stripes, voxels // 2, voxels).astype(np.uint8)
    label = np.digitize(voxels[0], (90, 150)).astype(np.uint8)
    corners = np.stack([np.full(len(extent), 2), np.full(len(extent), 2) + 24])[None] + patient % 5
    scan = Scan(
        voxels=voxels,
        spacing_mm=(1.0,) * len(extent),
        modality="CT",
        label=label,
        scale=1 / 255,
        boxes=Boxes(corners.astype(np.int64), np.array([number])),
    )
    return Sample(scan, f"s{patient:03d}", f"p{patient:03d}", f"s{patient:03d}", "phantoms", "train", (number,))


CARD = IndexCard(
    {"name": "phantoms"},
    {1: "liver", 2: "kidney"},
    {0: "benign", 1: "malignant"},
    {"studies_found": 32, "studies_quarantined": 0},
    {0: "nodule", 1: "mass"},
)


def write_phantoms(
    folder: Path,
    dims: int = 2,
    channels: int = 1,
    change: Change = lambda sample, patient: sample,
    extents: Sequence[tuple[int, ...]] | None = None,
) -> str:
    """Write 24 patients for training and 8 for validation, each changed as ``change`` says."""
    sizes = EXTENTS[dims] if extents is None else extents
    num_train, num_val = (24, 8) if dims == 2 else (8, 4)
    samples = {
        split: [
            change(replace(sample_of(patient, sizes[patient // 2 % len(sizes)], channels), split=split), patient)
            for patient in patients
        ]
        for split, patients in (("train", range(num_train)), ("val", range(num_train, num_train + num_val)))
    }
    return write_set(folder, samples, CARD)


def changed(sample: Sample, **scan: Any) -> Sample:
    """Return a sample whose scan has other fields."""
    return replace(sample, scan=replace(sample.scan, **scan))


def experiment_of(home: Path, shards: str, tree: Mapping[str, Any]) -> Experiment:
    """Return an experiment on some shards, with a stage's or a task's usual settings where ``tree`` has none."""
    usual: dict[str, Any] = {
        "name": "tried",
        "home": str(home),
        "encoder": UNET,
        "health": {"times": 0},
        "tracking": {"pictures": False},
        "resources": {"readers": 0},
    }
    if "stages" not in tree:
        usual |= {"optimiser": {"name": "adamw", "lr": 0.003}, "budget": {"steps": STEPS, "batch_size": BATCH}}
    return Experiment.model_validate({**merge(usual, {"data": {"shards": shards}}), **_merged(usual, tree)})


def _merged(usual: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``tree``, whole where they name another optimiser or encoder."""
    return {
        name: value if name == "encoder" or not isinstance(usual.get(name), dict) else merge(dict(usual[name]), value)
        for name, value in tree.items()
    }


def pretrained(experiment: Experiment) -> Path:
    """Train the stages of an experiment in this process; return the folder of the run."""
    stages = courses(experiment)
    folder, before = _begun(experiment, "pretrain"), dict[str, str]()
    for course in stages:
        method = course.build(before)
        if method.needs is not None:
            method.see_classes(course.samples.classes, course.samples.classes)
        card = encoder_card(course)
        trainee = Trainee(
            method,
            watches=watches_of(course),
            export=lambda at, one, card=card: export_encoder(at, one.encoder, card),
        )
        name = course.stage.name
        _train(folder, name, trainee, course.plan, lambda first, feed=course.feed: stream.local_batches(feed, 0))
        before[name] = str(folder / "checkpoints" / name / name_of(course.plan.total_steps))
    return folder


def finetuned(experiment: Experiment) -> Path:
    """Fine-tune an encoder that was not pretrained in this process; return the folder of the run."""
    labelled = labelled_samples(downstream_of(experiment))
    network = build_network(experiment, labelled.shards, None)
    prepare(network, experiment, labelled)
    plan = plan_of(experiment, labelled)
    feed = feed_of(experiment, labelled, plan)
    folder = _begun(experiment, "finetune")
    _train(folder, STAGE, Trainee(network), plan, lambda first: stream.local_batches(feed, 0))
    return folder


def _begun(experiment: Experiment, kind: str) -> Path:
    folder = Path(experiment.home) / experiment.name / f"{kind}-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(experiment.model_dump_json(indent=2))
    return folder


def _train(folder: Path, stage: str, trainee: Trainee, plan: Plan, feed: Callable[[int], Any]) -> None:
    """Train, and leave on disk what a run leaves: the history, checkpoints, and why it ended early."""

    def report(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        append(folder / HISTORY, [{"stage": stage, **entry} for entry in metrics["history"]])
        if checkpoint is not None:
            copytree(checkpoint, folder / "checkpoints" / stage / name_of(metrics["history"][-1]["step"] + 1))

    try:
        train(trainee, replace(plan, report_every_steps=1, report_every_s=0.0), feed, World(), report)
    except NonFiniteError as error:
        append(folder / HISTORY, [{"stage": stage, "fatal": str(error)}])


@dataclass(frozen=True)
class Fault:
    """A training with a fault: what is wrong, what doctor has to name, the samples, and the experiment.

    change   puts the fault into a sample of a patient
    """

    what: str
    named: str
    tree: Mapping[str, Any]
    change: Change = lambda sample, patient: sample
    dims: int = 2
    extents: Sequence[tuple[int, ...]] | None = None

    @property
    def is_finetuning(self) -> bool:
        return "downstream" in self.tree

    def names(self, cause: Cause) -> bool:
        """Tell whether a cause is this fault's: its remedy does not count."""
        return re.search(self.named, f"{cause.name}: {cause.shown}") is not None

    def run(self, home: Path) -> Path:
        """Write the samples, train, and return the run's folder."""
        shards = write_phantoms(home / "shards", self.dims, 1, self.change, self.extents)
        tree = json.loads(json.dumps(self.tree).replace("SHARDS", shards))
        experiment = experiment_of(home, shards, tree)
        return finetuned(experiment) if self.is_finetuning else pretrained(experiment)


def method(name: str, **changes: Any) -> dict[str, Any]:
    """Return the smallest config of a method, changed."""
    return merge(tiny_config(name, min(_dims(name))).model_dump(mode="json"), changes)


def _dims(name: str) -> tuple[int, ...]:
    return (3,) if encoder_for(name) in ("slice_transformer", "resnet3d") else (2,)


def stage(name: str, encoder: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return an experiment's entries for one method."""
    own = encoder_for(name)
    build = UNET if own == "unet" else {"name": own, "spatial_dims": _dims(name)[0], **TINY_ENCODERS[own]}
    return {"encoder": encoder or build, "method": method(name), **changes}


SEGMENTATION = {"name": "segmentation", "crop_size": [32, 32]}
CLASSIFICATION = {"name": "classification", "size": 32, "hidden_dims": [8], "score": "accuracy"}


def task(config: Mapping[str, Any], optimiser: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return an experiment's entries for a task on an encoder that was not pretrained."""
    downstream = {
        "shards": "SHARDS",
        "task": config,
        "optimiser": optimiser or {"name": "adamw", "lr": 0.01},
        "budget": {"steps": STEPS, "batch_size": BATCH},
        **fields,
    }
    return {"method": {"name": "scratch"}, "downstream": downstream}


def air(sample: Sample, patient: int) -> Sample:
    return changed(sample, voxels=np.zeros_like(sample.scan.voxels))


def in_a_corner(sample: Sample, patient: int) -> Sample:
    voxels = np.zeros_like(sample.scan.voxels)
    voxels[..., :24, :24] = sample.scan.voxels[..., :24, :24]
    return changed(sample, voxels=voxels)


def raw(sample: Sample, patient: int) -> Sample:
    return changed(sample, scale=0.02, offset=10_000.0)


def unlabelled(sample: Sample, patient: int) -> Sample:
    assert sample.scan.label is not None
    return changed(sample, label=np.where(sample.scan.label > 0, 7, 0).astype(np.uint8))


def of_one_class(sample: Sample, patient: int) -> Sample:
    return replace(sample, classes=(0,)) if sample.split == "train" else sample


def marked(sample: Sample, patient: int) -> Sample:
    """Burn a mark into the corner of every malignant picture, as one scanner does."""
    voxels = sample.scan.voxels.copy()
    voxels[..., :6, :6] = 255 if patient % 2 else voxels[..., :6, :6] // 4
    return changed(sample, voxels=voxels)


def copied(sample: Sample, patient: int) -> Sample:
    """Let every validation patient be one of training under another id."""
    if sample.split == "train":
        return sample
    twin = sample_of(patient - 24, sample.scan.voxels.shape[1:])
    return replace(twin, sample_id=sample.sample_id, patient=sample.patient, volume=sample.volume, split="val")


def without_kidneys(sample: Sample, patient: int) -> Sample:
    assert sample.scan.label is not None
    return changed(sample, label=sample.scan.label.clip(max=1)) if sample.split == "train" else sample


NO_AUGMENT = {"flip_prob": 0, "rotate_prob": 0, "zoom_prob": 0, "scale_prob": 0, "smooth_prob": 0, "noise_prob": 0}
SGD = {"name": "sgd", "lr": 0.05}
BF16 = {"training": {"precision": "bf16"}}
FAULTS = (
    Fault("SimSiam averages maps after an instance norm", "instance norm|collapse|constant output",
          stage("simsiam", {**UNET, "norm": "instance"})),
    Fault("SimSiam with equal crops and no augmentation", "identical views",
          {**stage("simsiam"), "method": method("simsiam", crops={"iou": [1.0, 1.0]}, augment=NO_AUGMENT)}),
    Fault("VoCo at a rate of 1000", "learning rate too high",
          stage("voco", optimiser={"name": "sgd", "lr": 1000.0})),
    Fault("rotations of scans that lie outside the window", "constant voxels", stage("rotation"), air),
    Fault("SwAV at a temperature of 50", "temperature",
          {**stage("swav"), "method": method("swav", temperature=50.0)}),
    Fault("DeepCluster-v2 with 3000 prototypes for 24 samples", "3000: there are 24 samples",
          {**stage("deepcluster_v2"), "method": method("deepcluster_v2", num_prototypes=3000)}),
    Fault("SimMIM on scans that are mostly air", "empty crops", stage("simmim"), in_a_corner,
          extents=((96, 112), (104, 96))),
    Fault("CPC whose warm-up outlasts its budget", "warm-up",
          stage("cpc", optimiser={"name": "adamw", "lr": 0.003, "warmup_epochs": 100})),
    Fault("JSSL's mask prediction without the stage before it", "frozen random weights", stage("jssl_mask"), dims=3),
    Fault("jigsaw at a weight decay of 100", "weight decay",
          stage("jigsaw", optimiser={"name": "adamw", "lr": 0.003, "weight_decay": 100.0})),
    Fault("patch location with gradients clipped to 1e-7", "clip",
          stage("patch_location", optimiser={**SGD, "clip_norm": 1e-7})),
    Fault("exemplar in bf16 on voxels near 10,000", "precision too coarse",
          {**stage("exemplar"), **BF16}, raw),
    Fault("segmentation validated on the training split", "leak into validation",
          task(SEGMENTATION, val_split="train")),
    Fault("segmentation of label maps with another value", "constant targets", task(SEGMENTATION), unlabelled),
    Fault("classification trained on one class", "constant targets", task(CLASSIFICATION), of_one_class),
    Fault("a mark in the corner tells the class", "leaking labels: the first corner", task(CLASSIFICATION), marked),
    Fault("validation patients are copies of training patients", "leak into validation", task(CLASSIFICATION),
          copied),
    Fault("a label that no training scan has", "missing from training", task(SEGMENTATION), without_kidneys),
    Fault("a frozen encoder that was not pretrained", "frozen random weights",
          task(SEGMENTATION, frozen_levels="all")),
    Fault("segmentation at a rate of 1e-9", "learning rate too low",
          task(SEGMENTATION, {"name": "adamw", "lr": 1e-9})),
)  # fmt: skip


@dataclass(frozen=True)
class Sound:
    """A training without a fault; ``channels`` are those of its samples."""

    what: str
    tree: Mapping[str, Any]
    dims: int = 2
    channels: int = 1

    def run(self, home: Path) -> Path:
        """Write the samples, train, and return the run's folder."""
        shards = write_phantoms(home / "shards", self.dims, self.channels)
        text = json.dumps(self.tree).replace("SHARDS", shards)
        if "SLICES" in text:
            text = text.replace("SLICES", write_phantoms(home / "slices"))
        experiment = experiment_of(home, shards, json.loads(text))
        return finetuned(experiment) if "downstream" in self.tree else pretrained(experiment)


def _stage_of_jssl(name: str, start: Mapping[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    own = {"method": method(name), "optimiser": {"name": "adamw", "lr": 0.003}, "name": name}
    batch = 4 if start else BATCH
    return {
        **own,
        "budget": {"steps": STEPS // 2, "batch_size": batch},
        **({"start": start} if start else {}),
        **fields,
    }


JSSL = {
    "encoder": {"name": "slice_transformer", "spatial_dims": 3, **TINY_ENCODERS["slice_transformer"]},
    "stages": [
        _stage_of_jssl(
            "swav",
            encoder={"name": "resnet", "spatial_dims": 2, **TINY_ENCODERS["resnet"]},
            data={"shards": "SLICES"},
        ),
        _stage_of_jssl("jssl_mask", {"slices": "swav"}),
        _stage_of_jssl("jssl_cluster", {"encoder": "jssl_mask"}),
    ],
}
REGIONS = {"regions": {"organs": [1, 2], "kidney": [2]}}
DETECTION = {
    "name": "detection",
    "size": 64,
    "pyramid_channels": 8,
    "head_dims": [16],
    "region_size": 3,
    "level_proposals": [100, 50],
    "proposals": 50,
}
BOXED = {"encoder": {"name": "resnet", "spatial_dims": 2, "depth": 18, "init_features": 4}}
# The tiny ones diverge at the rate of the others; tiny transformers first give all images the same sharp code.
SLOWER = {"dino": {"optimiser": {"name": "adamw", "lr": 0.0003}}} | {
    name: {"method": method(name, teacher_temperature=0.5)} for name in ("unimiss", "usst")
}
# Further methods need samples or stages of their own.
ALONE = [name for name, kind in METHODS.items() if kind.trains and not re.match("jssl|svdnet", name)]
SOUND = (
    *(Sound(name, stage(name, **SLOWER.get(name, {})), _dims(name)[0]) for name in ALONE),
    Sound("swav, jssl_mask and jssl_cluster, one after the other", JSSL, 3),
    Sound("svdnet", stage("svdnet"), 2, 3),
    Sound("svdnet_detection", stage("svdnet_detection"), 2, 3),
    Sound("simsiam in bf16", {**stage("simsiam"), "method": method("simsiam", small_crops={"num": 0}), **BF16}),
    Sound("segmentation", task(SEGMENTATION)),
    Sound("segmentation of regions, in bf16", {**task({**SEGMENTATION, **REGIONS}), **BF16}),
    Sound("classification", task(CLASSIFICATION)),
    Sound("classification of grades", task({**CLASSIFICATION, "kind": "ordinal"})),
    Sound("classification of several labels", task({**CLASSIFICATION, "kind": "multi_label"})),
    Sound("detection", {**task(DETECTION), **BOXED}),
)  # fmt: skip


def table() -> str:
    """Return the table of docs/how_to/doctor.md: each fault with what doctor says of it first."""
    lines = ["| planted fault | what `doctor RUN` says |", "|---|---|"]
    for fault in FAULTS:
        with TemporaryDirectory() as home:
            causes = [cause for one in diagnose(fault.run(Path(home))) for cause in one.causes]
        named = next((cause for cause in causes if fault.names(cause)), None)
        lines.append(f"| {fault.what} | {named or 'nothing that names it'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
