"""From prepared volumes to batches: where a patch lies, how it is warped and varied."""
