"""The network in OpenVINO: its arithmetic, one pass or windows, within the memory; a first look."""
