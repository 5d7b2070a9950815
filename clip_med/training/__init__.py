"""The training loop, optimiser, checkpoints and run folder."""
