"""Export: a run's weights in the form of another tool, with a card and a script that loads them there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.shards.writer import write_atomically
from orchestrator.runs import export_monai, export_nnunet, export_torchvision
from orchestrator.runs.card import PARTS, TrainedPart, markdown
from orchestrator.runs.identity import own

Tool = Literal["monai", "nnunet", "torchvision", "safetensors"]
SCRIPT, README = "load.py", "README.md"

_OWN_SCRIPT = '''"""Load these weights into Raydiology's own class; run it beside the weights."""

import json
from pathlib import Path

from methods.encoders import ENCODERS
from safetensors.torch import load_file

fields = json.loads(Path(__file__).with_name("{description}").read_text())["encoder"]
kind = ENCODERS[fields["name"]]
encoder = kind(kind.Config.model_validate(fields))
weights = load_file(Path(__file__).with_name("{weights}"))
encoder.load_state_dict(weights, strict=True)
print(f"loaded {{len(weights)}} tensors strictly into encoder {{fields['name']}}")
'''
_TENSORS = '''"""Read these weights, tensors by name; run it beside the weights."""

from pathlib import Path

from safetensors.torch import load_file

weights = load_file(Path(__file__).with_name("{weights}"))
print(f"read {{len(weights)}} tensors")
'''


@dataclass(frozen=True)
class Door:
    """How a tool takes weights: the files that it reads, the script that loads them, and what else is to be known."""

    files: Callable[[TrainedPart], dict[str, bytes]]
    script: Callable[[TrainedPart], str]
    remarks: tuple[str, ...] = ()


def _as_they_are(trained: TrainedPart) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (trained.weights, trained.description)}


def _own_script(trained: TrainedPart) -> str:
    script = _OWN_SCRIPT if trained.part == "encoder" else _TENSORS
    return script.format(description=trained.description.name, weights=trained.weights.name)


DOORS: dict[Tool, Door] = {
    "monai": Door(_as_they_are, export_monai.loading_script),
    "nnunet": Door(export_nnunet.nnunet_files, export_nnunet.nnunet_script, export_nnunet.REMARKS),
    "torchvision": Door(
        export_torchvision.torchvision_files, export_torchvision.torchvision_script, export_torchvision.REMARKS
    ),
    "safetensors": Door(_as_they_are, _own_script),
}


def export(run: Path, target: Path, to: Tool = "monai", scores: Mapping[str, float] | None = None) -> list[Path]:
    """Write a run's weights for a tool, their settings, a card and a loading script into a folder; return the files.

    ``run`` is the folder of a pretraining (its encoder is exported) or of a fine-tuning: its whole network, or the
    encoder in it for a tool that takes no more. ``scores`` are those of the run, for its card. Raises ValueError if
    the folder is neither or not finished, if the tool has no class for the weights, or if ``target`` holds another
    export.
    """
    trained = TrainedPart.of(run)
    if trained is None:
        (encoder, _), (network, _) = PARTS.values()
        raise ValueError(
            f"run {run}: neither encoder/{encoder} nor network/{network} there; give the folder of a finished "
            "pretraining or fine-tuning, as `raydiology pretrain` and `raydiology finetune` print it"
        )
    door = DOORS[to]
    script = door.script(trained)
    files = door.files(trained)
    identity = {"run": run.absolute().name} | ({} if to == "monai" else {"to": to})
    own(target, identity, "give another --out, or delete the folder")
    judged = scores if trained.part == "network" else None  # a pretraining has no score of its own
    card = markdown(trained, judged or {}, _use(script, door.remarks))
    for name, content in {**files, README: card.encode(), SCRIPT: script.encode()}.items():
        write_atomically(target / name, content)
    return [target / name for name in (*files, README, SCRIPT)]


def _use(script: str, remarks: tuple[str, ...]) -> list[str]:
    """Return the lines of a card that load the weights: those of the script, but for its docstring."""
    _, _, lines = script.partition("\n\n")
    code = lines.replace("Path(__file__).with_name(", "Path(").strip()
    return ["In the folder of this file:", "", "```python", *code.splitlines(), "```", "", *remarks]
