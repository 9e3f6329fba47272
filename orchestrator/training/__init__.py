"""One training: the loop, its optimiser, checkpoints and place on Ray Train."""
