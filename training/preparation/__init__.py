"""From a data folder to what patches are drawn from: resampled images, bodies of label maps."""
