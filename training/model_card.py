"""The model card: what a model is, on what it was trained and how well it does, as Markdown.

Every number in it comes from the training's own records; only the known failures are written by
a person, in ``NAME.known_failures.md`` beside the configuration.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np

from inference.organs import ORGANS
from inference.plan import Plan
from training.cases import Case
from training.config import Config
from training.export import Agreement


def write_model_card(
    folder: Path,
    config: Config,
    cases: list[Case],
    run: Path,
    parameters: int,
    agreements: list[Agreement],
    machine: str,
) -> None:
    """Write ``README.md`` into a model folder.

    Args:
        folder: the model folder, with its plan.
        config: what was trained.
        cases: the data folder's cases.
        run: the training's folder with ``log.csv`` and ``scores.csv``.
        parameters: of the network.
        agreements: what the export measured.
        machine: on what it was trained, in words.
    """
    plan = Plan.load(folder)
    log = _rows(run / "log.csv")
    hours = sum(float(r["seconds_per_iteration"]) * n for r, n in _steps(log)) / 3600
    scores = _rows(run / "scores.csv")
    last = [row for row in scores if row["iteration"] == scores[-1]["iteration"]] if scores else []
    parts = [
        f"# {config.name} {config.version}",
        "Segments 13 abdominal organs in CT. **Not a medical device**: for research, not for "
        "diagnosis or treatment.",
        "## Network",
        f"A plain 3D U-Net with {parameters:,} parameters (features "
        f"{'-'.join(map(str, config.features))}, two 3x3x3 convolutions a stage, instance norm, "
        f"LeakyReLU) at {config.spacing} mm isotropic, normally in one pass over the whole body. "
        f"Default precision: {plan.precision}.",
        "## Training",
        f"{log[-1]['iteration'] if log else 0} steps of {config.batch} patch(es) of "
        f"{' x '.join(map(str, config.patch))} voxels, {hours:.1f} hours on {machine}. Shares of "
        "the patches: " + ", ".join(f"{k} {v:g}" for k, v in config.shares.items()) + " (kinds "
        "without data give theirs to the others). The weights are an exponential moving average.",
        "Synthetic patches are CTs drawn for label maps of real patients: body, fat, vessels, "
        "contrast, gas, noise and scanner are invented, the organs' shapes are real. Patients "
        "of whom only some organs were labelled took the rest from another patient's body, "
        "registered to them. Pseudo-labelled patches are real CTs with labels that an earlier "
        "state of this network gave them, where it was sure.",
        "### Sources",
        _sources(cases, config),
        "## Accuracy",
        _accuracy(last, config),
        "## Export",
        "Agreement of the OpenVINO networks with PyTorch in fp32, mean over "
        f"{len({a.case for a in agreements})} real CTs (a patch of each):",
        _agreement(agreements),
        "## Known failures",
        _known_failures(config),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _steps(log: list[dict[str, str]]) -> list[tuple[dict[str, str], int]]:
    """Log rows with how many iterations each covers."""
    numbers = [0, *(int(row["iteration"]) for row in log)]
    return [(row, max(0, b - a)) for row, a, b in zip(log, numbers, numbers[1:], strict=False)]


def _sources(cases: list[Case], config: Config) -> str:
    used: Counter[tuple[str, str, str]] = Counter()
    for case in cases:
        meta = json.loads((case.folder / "meta.json").read_text(encoding="utf-8"))
        if case.name in config.holdout:
            use = "held out"
        elif case.folder.parent.name == "labelmaps":
            use = "label map, for synthesis"
        elif case.folder.parent.name == "cases":
            use = "CT and labels"
        else:
            use = "CT without labels (pseudo-labels where they passed the filter)"
        used[meta.get("original_dataset", case.name), meta.get("licence", "unknown"), use] += 1
    lines = ["| data | licence | use | number |", "|---|---|---|---|"]
    lines += [f"| {d} | {licence} | {use} | {n} |" for (d, licence, use), n in used.items()]
    return "\n".join(lines)


def _accuracy(rows: list[dict[str, str]], config: Config) -> str:
    if not rows:
        return "Not measured: no labelled case was held out."
    text = [
        f"DSC on {len(rows)} real CT that was not trained on ({', '.join(config.holdout)}), at the "
        "network's spacing, without post-processing. One case says little about the next one.",
        "",
        "| organ | DSC |",
        "|---|---|",
    ]
    for organ in ORGANS.values():
        values = [float(row[organ]) for row in rows if row[organ]]
        cell = f"{np.mean(values):.3f}" if values else "not labelled"
        text.append(f"| {organ} | {cell} |")
    return "\n".join(text)


def _agreement(agreements: list[Agreement]) -> str:
    lines = [
        "| precision | logits error (relative RMS) | voxels of the same label | lowest organ DSC |",
        "|---|---|---|---|",
    ]
    for precision in dict.fromkeys(a.precision for a in agreements):
        chosen = [a for a in agreements if a.precision == precision]
        error = np.mean([a.logits_error for a in chosen])
        same = np.mean([a.same_labels for a in chosen])
        organs = {
            organ: np.mean([d for a in chosen if (d := a.organ_dice[organ]) is not None])
            for organ in ORGANS.values()
            if any(a.organ_dice[organ] is not None for a in chosen)
        }
        worst = min(organs, key=lambda organ: organs[organ]) if organs else ""
        cell = f"{organs[worst]:.4f} ({worst})" if organs else "no organ"
        lines.append(f"| {precision} | {error:.4f} | {same:.5f} | {cell} |")
    return "\n".join(lines)


def _known_failures(config: Config) -> str:
    path = Path(__file__).parent / "configs" / f"{config.name}.known_failures.md"
    if not path.exists():
        return "None have been written down yet; that does not mean that there are none."
    return path.read_text(encoding="utf-8").strip()
