"""The network in OpenVINO: in which arithmetic, in one pass or in windows, within the memory."""
