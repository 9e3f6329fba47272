"""What a person sees while something runs: the console, progress bars, a training's progress."""
