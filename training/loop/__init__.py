"""The training loop, and what it learns by."""
