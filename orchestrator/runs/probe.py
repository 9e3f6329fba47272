"""Probe: judge a pretraining's encoder beside its initial encoder, by a linear model and by neighbours."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.train import Checkpoint

from methods.encoders import Encoder
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.judging.probing import ProbeResult, ProbeSet
from orchestrator.runs.pretrain import PretrainingResult, build_encoder
from orchestrator.runs.run import Caption, Run
from orchestrator.terminal.progress import phase
from orchestrator.training import checkpoint as checkpoints
from orchestrator.training.outline import outline_of
from orchestrator.training.world import World

_NAMES = ("pretrained", "initial")


@dataclass(frozen=True)
class Probes:
    """The probes of a pretrained encoder, and of the same encoder with its initial weights."""

    folder: Path
    pretrained: ProbeResult
    initial: ProbeResult


def probe(experiment: Experiment, pretrained: PretrainingResult) -> Probes:
    """Probe a pretraining's encoder and the initial one; log both as a child run of the pretraining.

    The same probe is returned at once if it is done. Raises ValueError if the experiment has no probe, or if samples
    and encoder do not fit.
    """
    samples = probe_set(experiment)
    key = experiment.probe_key(pretrained.key, samples.shards.digest)
    folder = Path(experiment.home) / experiment.name / f"probe-{key}"
    run = Run(folder, experiment, kind="probe", key=key, parent=pretrained.folder)
    if (done := run.result()) is not None:
        return Probes(folder, *(ProbeResult(done[name]["metrics"], tuple(done[name]["remarks"])) for name in _NAMES))
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with connection.connected(), run.opened(_caption(experiment), [samples.shards], _params(experiment, pretrained)):
        initial, encoder = build_encoder(experiment), build_encoder(experiment)
        with Checkpoint(pretrained.encoder).as_directory() as weights:
            checkpoints.load_encoder(Path(weights), encoder)
        found = []
        for name, one in zip(_NAMES, (encoder, initial), strict=True):
            with phase(f"probing the {name} encoder"):
                found.append(samples.measure(_placed(one, world), world))
        best = {**found[0].metrics, **{f"initial/{name}": value for name, value in found[1].metrics.items()}}
        result = {
            name: {"metrics": one.metrics, "remarks": one.remarks} for name, one in zip(_NAMES, found, strict=True)
        }
        run.finish(result, best, [])
    return Probes(folder, *found)


def probe_set(experiment: Experiment) -> ProbeSet:
    """Open the samples of the experiment's probe; raise ValueError if it has no probe or they do not fit."""
    if experiment.probe is None:
        raise ValueError(f"experiment {experiment.name}: no probe; add probe: with shards and size")
    samples = ProbeSet.open(experiment.probe)
    samples.check(outline_of(experiment.pretrained_encoder))
    samples.shards.check_files()
    return samples


def _placed(encoder: Encoder, world: World) -> Encoder:
    return encoder.to(world.device).eval()


def _caption(experiment: Experiment) -> Caption:
    methods = "+".join(stage.method.name for stage in experiment.pretraining)
    return Caption(
        title=f"{methods}: probe, seed {experiment.seed}",
        description=(
            f"The frozen encoder after {methods}, judged by a logistic regression and by its nearest neighbours. "
            "`best/initial/...` are the same metrics before the pretraining."
        ),
        seed=str(experiment.seed),
    )


def _params(experiment: Experiment, pretrained: PretrainingResult) -> dict[str, object]:
    tree = json.loads(experiment.model_dump_json(exclude={"home", "downstream", "health", "resources", "tracking"}))
    return {**tree, "pretrained": pretrained.key}
