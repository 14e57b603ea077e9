"""Where training data comes from: cases, their layouts on disk, their labels and tissues."""
