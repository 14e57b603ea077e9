"""What is trained: the networks, and their weights as they come from a model folder."""
