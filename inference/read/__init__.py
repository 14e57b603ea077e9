"""A CT from a file: what its header says, its voxels, and what is wrong with them."""
