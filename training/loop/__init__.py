"""The training loop: what it learns by, its checkpoints, the processes that share it."""
