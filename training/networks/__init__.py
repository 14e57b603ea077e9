"""What is trained: the networks, their weights from a model folder, a pass over a volume."""
