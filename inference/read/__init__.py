"""A CT from a file: its header, its voxels, what is wrong with them; label files' share of it."""
