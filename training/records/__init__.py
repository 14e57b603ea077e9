"""What a training leaves to be looked at: scores, numbers, pictures and curves, in its folder."""
