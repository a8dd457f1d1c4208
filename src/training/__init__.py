"""Training: the loop for a stack of runs, workers, sweep files, progress, W&B's logger."""
