"""How far the labels of systems that run the same network agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.benchmark.rows import Row
from evaluation.benchmark.systems import PUBLISHED
from evaluation.metrics import dice
from evaluation.volumes import read_labels
from inference.organs import ORGANS


def compare(rows: Sequence[Row]) -> None:
    """Agreement with the published recipe, else with the first that ran the shared network.

    Not with nnU-Net's predictor where both ran: it sums windows in half precision.

    Args:
        rows: of all systems, whose labels are still there. `Row.same_voxels` and
            `Row.agreement` are filled in.
    """
    ran = [row for row in rows if row.problem is None and row.system.same_network]
    if not ran:
        return
    first = next((row for row in ran if row.system.name == PUBLISHED), ran[0])
    reference = read_labels(first.labels).labels
    for row in ran:
        own = read_labels(row.labels).labels
        row.same_voxels = float(np.mean(own == reference))
        both = [(own == label, reference == label) for label in ORGANS]
        found = [dice(a, b) for a, b in both if a.any() or b.any()]
        row.agreement = float(np.mean(found)) if found else float("nan")
