"""What a training leaves to be looked at: numbers, pictures and curves, in a folder of its own."""
