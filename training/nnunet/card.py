"""The model card of an imported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.plan import Plan
from training.nnunet.checkpoint import Checkpoint
from training.nnunet.fast import Comparison
from training.nnunet.results import Results


def write_card(
    folder: Path,
    plan: Plan,
    results: Results,
    configuration: str,
    checkpoints: Sequence[Checkpoint],
    comparisons: Sequence[Comparison],
    parameters: int,
    stored: str,
    error: float,
) -> None:
    """Write ``README.md`` into a model folder.

    Args:
        folder: where to.
        plan: the model's plan.
        results: what was imported.
        configuration: its configuration's name.
        checkpoints: of the folds.
        comparisons: the fast form beside nnU-Net's way; empty for nnU-Net's way itself.
        parameters: of one network.
        stored: the precision in which the floating-point network's weights are stored.
        error: relative RMS difference of that network's logits from PyTorch's.
    """
    first, dataset = checkpoints[0], results.dataset
    step = " x ".join("as it is" if s is None else f"{s:g}" for s in plan.spacing)
    epochs = sorted({c.epochs for c in checkpoints if c.epochs is not None})
    mirrored = ", ".join("zyx"[axis] for axis in plan.mirror) or "none"
    facts = {
        "nnU-Net model": results.name,
        "data set": _text(results.plans.get("dataset_name")),
        "its licence": _text(dataset.get("licence") or dataset.get("license")),
        "its description": _text(dataset.get("description")),
        "training cases": _text(dataset.get("numTraining")),
        "configuration": configuration,
        "trainer": first.trainer,
        "epochs": ", ".join(map(str, epochs)) or "not said",
        "folds": ", ".join(results.checkpoints)
        + (" (mean logits)" if len(checkpoints) > 1 else ""),
        "parameters": f"{parameters:,}" + (" per fold" if len(checkpoints) > 1 else ""),
        "input": ", ".join(f"{c['name']} ({c['normalisation']})" for c in plan.channels),
        "spacing (z, y, x), mm": step,
        "patch (z, y, x)": " x ".join(map(str, plan.patch)),
        "tiling": plan.tiling,
        "mirrored axes": mirrored,
        "precision": plan.precision,
        "weights in floating point": f"stored in {stored} precision",
    }
    names = {value: name for name, value in plan.labels.items()}
    values = plan.outputs if plan.regions else names  # regions as they are painted
    labels = [f"| {value} | {_text(names[value])} |" for value in values]
    regions = (
        ["Labels are regions painted in this order; a later one covers an earlier one.", ""]
        if plan.regions
        else []
    )
    lines = [
        f"# {plan.name}",
        "",
        "Imported from nnU-Net v2 (Isensee et al., Nature Methods 18, 203-211, 2021). What it was "
        "trained for, on what and how well it does, its authors know. **Not a medical device.**",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "## Labels",
        "",
        *regions,
        "| value | label |",
        "|---|---|",
        *labels,
        "",
        "## Agreement",
        "",
        f"On a patch of noise the logits of the network in floating point, with its weights in "
        f"{stored} precision, differ from PyTorch's by {error:.1e} (RMS, relative).",
        "",
        *_comparisons(comparisons),
        "nnU-Net's separate step of post-processing (`nnUNetv2_apply_postprocessing`) is not part "
        "of its prediction, and none of this model.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _comparisons(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    lines = [
        "Beside fp32 with nnU-Net's tiling, on the CTs that calibrated it:",
        "",
        "| case | voxels of the same label | lowest DSC | seconds in the network |",
        "|---|---|---|---|",
    ]
    for found in comparisons:
        scores = {name: score for name, score in found.dice.items() if score is not None}
        worst = min(scores, key=lambda name: scores[name], default=None)
        lowest = f"{scores[worst]:.4f} ({_text(worst)})" if worst is not None else "no label"
        slow, fast = found.seconds
        lines.append(
            f"| {_text(found.case)} | {found.same:.5f} | {lowest} | {slow:.2f} -> {fast:.2f} |"
        )
    return [*lines, ""]


def _text(value: Any) -> str:
    """One line that does not break a table."""
    text = " ".join(str(value if value is not None else "not said").split())
    return text.replace("|", "/")
