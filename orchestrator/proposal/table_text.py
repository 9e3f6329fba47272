"""The text of the table beside a first experiment: two pretrainings beside none."""

from collections.abc import Sequence

from orchestrator.proposal.experiment_text import FileHead
from orchestrator.proposal.numbers import Pretraining
from orchestrator.proposal.yaml_text import comment, flow, scalar, sentence


def table(head: FileHead, rows: Sequence[Pretraining]) -> str:
    """Return the text of the table, which compares the pretrainings with none; there must be labels."""
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
    return f"""{"".join(comment(line) for line in lines)}name: {head.name}
title: {scalar(title)}
experiment: {scalar(head.path.name)}
metric: {metric} # of the best checkpoint
reference: scratch # every row is tested against this one
pretrain_seeds: [0]
finetune_seeds: [0, 1]
{concurrent}rows:
  - name: scratch
    overrides: {{method: {{name: scratch}}}}
    pretrain_seeds: [] # nothing is pretrained
  - name: {scalar(first.row)} # the experiment as it is
{comment(sentence(second.reason), indent=2)}  - name: {scalar(second.row)}
    overrides:
      method: {flow(second.method)}
      optimiser: {flow(second.optimiser)}
"""
