"""What only models imported from nnU-Net v2 need: its own preprocessing, resampling and tiling."""
