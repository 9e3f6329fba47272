"""What a stage leaves, without Ray's workers."""

from ray.train import Checkpoint

from orchestrator.launch import best_scored


def test_the_best_checkpoint_is_one_that_was_scored() -> None:
    kept = [
        (Checkpoint("/runs/step_000000090"), {"history": []}),  # left by a stop between two evaluations
        (Checkpoint("/runs/step_000000100"), {"history": [], "score": 0.7}),
        (Checkpoint("/runs/step_000000120"), {"history": [], "score": 0.6}),
    ]
    assert best_scored(kept).path == "/runs/step_000000100"
