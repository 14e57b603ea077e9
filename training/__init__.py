"""Training: from CTs and labels to a model folder; see `training.__main__`."""

# Before NNCF and OpenVINO are imported: it keeps both from reporting over the network, for which
# they would also fork this process from a thread.
import inference as inference
