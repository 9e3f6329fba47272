"""A tiny experiment, as in a file of ``experiments/``: SimSiam in 2D, a U-Net of a few channels, a few steps."""

from pathlib import Path
from typing import Any

from orchestrator.config.files import merge

# Without MONAI, whose import takes longer than the steps.
POOLED_UNET = {"name": "pooled_unet", "spatial_dims": 2, "features": [4, 4, 8, 8, 8], "dropout": 0}
ONE_READER = {"resources": {"readers": 1}}
# With a stride of 16 instead of 32: for tasks of 32 or 48 pixels.
UNET = {"name": "unet", "spatial_dims": 2, "in_channels": 1, "features": [4, 4, 8, 8, 8, 4]}


def tiny_experiment(
    name: str, shards: str, home: Path, steps: int, encoder: dict[str, Any] = POOLED_UNET, **changes: Any
) -> dict[str, Any]:
    """Return the experiment with ``changes`` laid over it; it is pretrained only, unless they add ``downstream``.

    Workers read for themselves, which starts sooner: a test of what Ray Data does with readers asks for some.
    """
    tree = {
        "name": name,
        "home": str(home),
        "data": {"shards": shards},
        "encoder": encoder,
        "method": {
            "name": "simsiam",
            "crops": {"size": [32, 32], "iou": [0.3, 0.6]},
            "projector_dim": 16,
            "predictor_dim": 8,
        },
        "optimiser": {"name": "sgd", "lr": 0.05},
        "budget": {"steps": steps, "batch_size": 8},
        "health": {"times": 1},
        "training": {"report_every_s": 0},
        "resources": {"readers": 0},
        "tracking": {"pictures": False},
    }
    return merge(tree, changes)


def tiny_segmentation(shards: str, steps: int = 4) -> dict[str, Any]:
    """Return a downstream task for it."""
    return {
        "shards": shards,
        "task": {"name": "segmentation", "crop_size": [32, 32]},
        "optimiser": {"name": "adamw", "lr": 0.01},
        "budget": {"steps": steps, "batch_size": 12},
    }
