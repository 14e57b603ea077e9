"""The training loop, what it learns by, and the scores of held-out cases."""
