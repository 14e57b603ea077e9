"""From a checkpoint to a model folder that inference runs."""
