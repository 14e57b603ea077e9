"""Any trained nnU-Net v2 model as a model folder: ``python -m training import-nnunet``."""
