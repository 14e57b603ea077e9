"""The model card: what a model is, on what it was trained and how well it does, as Markdown.

Numbers of steps, hours, losses and scores come from the training's own records, those of the recipe
from its configuration; only the known failures are written by a person. The card of weights that
several trainings made, each begun with the one before, is completed by hand: the records know only
the last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from inference.organs import ORGANS
from inference.plan import Plan
from training.agreement import Agreement
from training.config import Config
from training.data.case import Case
from training.networks.network import make_network, multiply_adds, parameter_count
from training.patches.sources import Sources, shows
from training.records.read import read_lines, read_rows
from training.records.write import INITIAL, MACHINES


def write_model_card(
    folder: Path,
    config: Config,
    cases: list[Case],
    *,
    runs: Sequence[Path],
    weights_from: Path | None,
    prepared: Path,
    holdout: tuple[str, ...],
    agreements: list[Agreement],
    known_failures: str = "",
) -> None:
    """Write ``README.md`` into a model folder.

    Args:
        folder: the model folder, with its plan.
        config: what was trained.
        cases: the data folder's cases.
        runs: the training's folders with their records: the first training's, then those of
            the rounds of self-training, of which the last gave the weights.
        weights_from: the model folder that the weights come from, if they were not trained here;
            ``runs`` is empty then.
        prepared: the prepared data that was drawn from.
        holdout: all cases that were kept aside.
        agreements: what the export measured.
        known_failures: Markdown for the section of that name.
    """
    assert bool(runs) != bool(weights_from)
    plan = Plan.load(folder)
    sources = Sources(prepared, config, holdout)
    drawn = sources.files
    begun_with = read_lines(runs[0] / INITIAL) if runs else []
    if weights_from:
        training = [_elsewhere(weights_from)]
    else:
        training = [
            _steps(config, runs, drawn),
            *_initial(begun_with),
            *_rounds(config, len(runs) - 1),
            *_stages(config, len(runs) - 1),
            *_kinds(config, drawn),
            "### Sources",
            _sources(cases, config, holdout, drawn),
            *_untold(sources, begun_with),
        ]
    scores = read_rows(runs[-1] / "scores.csv") if runs else []
    last = [row for row in scores if row["iteration"] == scores[-1]["iteration"]] if scores else []
    parts = [
        f"# {config.name} {config.version}",
        "Segments 13 abdominal organs in CT. **Not a medical device**: for research, not for "
        "diagnosis or treatment.",
        "## Network",
        _network(config, plan),
        "## Training",
        *training,
        "## Accuracy",
        _accuracy(last, (*config.holdout, *holdout), begun_with),
        "## Export",
        "Agreement of the OpenVINO networks with PyTorch in fp32, mean over "
        f"{len({a.case for a in agreements})} {_what(agreements)}:",
        _agreement(agreements),
        *_calibrated_on_held_out(agreements, (*config.holdout, *holdout)),
        "## Known failures",
        known_failures.strip()
        or "None have been written down yet; that does not mean that there are none.",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _elsewhere(model: Path) -> str:
    """Of weights that were not trained here."""
    its = Plan.load(model)
    return f"The weights are those of {its.name} {its.version}: its card says how it was trained."


def _steps(config: Config, runs: Sequence[Path], drawn: Mapping[str, list[Path]]) -> str:
    """How long and on what machine it was trained, and on how much of what."""
    logs = [read_rows(run / "log.csv") for run in runs]
    hours = sum(_seconds(log) for log in logs) / 3600
    steps = " + ".join(log[-1]["iteration"] if log else "0" for log in logs)
    machines = dict.fromkeys(line for run in runs for line in read_lines(run / MACHINES))
    total = sum(config.shares[kind] for kind in drawn)
    shares = ", ".join(f"{kind} {config.shares[kind] / total:.2g}" for kind in drawn)
    return (
        f"{steps} steps of {config.batch} patch(es) of {' x '.join(map(str, config.patch))} voxels "
        f"with {config.optimiser}, {hours:.2f} hours on "
        f"{' and '.join(machines) or 'a machine of which there is no record'}. Shares of the "
        f"patches: {shares}. The weights are an exponential moving average."
    )


def _seconds(log: list[dict[str, str]]) -> float:
    """What all steps of a log took."""
    numbers = [0, *(int(row["iteration"]) for row in log)]
    each = [float(row["seconds_per_iteration"]) for row in log]
    steps = [max(0, b - a) for a, b in pairwise(numbers)]
    return sum(seconds * n for seconds, n in zip(each, steps, strict=True))


def _network(config: Config, plan: Plan) -> str:
    network = make_network(dict(config.network))
    work = multiply_adds(network, config.patch) / np.prod(config.patch)
    features = "-".join(map(str, config.network["features"]))
    passes = "one pass over the body" if plan.tiling == "whole" else "windows over the body"
    if plan.look:
        passes += f" where `{plan.look['model']}` finds organs"
    return (
        f"A 3D U-Net (`{config.network['kind']}`, features {features}) with "
        f"{parameter_count(network):,} parameters and {work / 1e3:.1f} G multiply-adds per million "
        f"voxels, on a grid of {_grid(config.spacing, config.size)} (z, y, x), in {passes}. "
        f"Default precision: {plan.precision}."
        + (
            f" In int8, {len(config.not_int8)} of its convolutions stay in floating point "
            f"({', '.join(map(str, config.not_int8))} in their order)."
            if config.not_int8
            else ""
        )
    )


def _grid(spacing: Sequence[float | None], size: Sequence[int | None]) -> str:
    """A network's grid along z, y, x."""
    return " x ".join(
        f"{voxels} voxels" if voxels else f"{step:g} mm" if step else "the CT's own spacing"
        for step, voxels in zip(spacing, size, strict=True)
    )


def _rounds(config: Config, rounds: int) -> list[str]:
    """What the sum of the steps means."""
    if not rounds:
        return []
    return [
        f"Those are a first training and {rounds} round(s) of self-training, each with the weights "
        "and on the pseudo-labels of the network before it, from a learning rate of "
        f"{config.self_training['learning_rate']:g} to zero."
    ]


def _initial(begun_with: Sequence[str]) -> list[str]:
    """With whose weights the training began, if not with random ones."""
    if not begun_with:
        return []
    return [
        f"The training began with the weights of {', '.join(begun_with)}: what those had been "
        "trained on comes to the sources below."
    ]


def _stages(config: Config, rounds: int) -> list[str]:
    """What was different in a part of the steps."""
    firsts, all_of_them = ("first training's ", "each training's ") if rounds else ("", "the ")
    text = []
    if coarse := config.coarse_first:
        text.append(
            f"The first {100 * coarse['share']:g} % of the {firsts}steps saw patches of "
            f"{' x '.join(map(str, coarse['patch']))} voxels at "
            f"{_grid(coarse['spacing'], (None, None, None))}."
        )
    if config.network.get("norm") == "batch" and config.freeze_norm < 1:
        text.append(
            f"After {100 * config.freeze_norm:g} % of {all_of_them}steps batch norms kept their "
            "statistics."
        )
    return text


def _kinds(config: Config, drawn: Mapping[str, list[Path]]) -> list[str]:
    """What kinds of patches were trained on, beyond real CTs with their labels."""
    text = []
    if "synthetic" in drawn:
        text.append(
            "Synthetic patches are CTs drawn for label maps of real patients: body, fat, vessels, "
            "contrast, gas, noise and scanner are invented, the organs' shapes are real. Patients "
            "of whom only some organs were labelled took the rest from another patient's body, "
            "registered to them."
        )
    if "transferred" in drawn:
        text.append(
            "Transferred patches are a real CT whose tissues are all labelled, bent to the organs "
            "of other patients of whom there is a label map: texture and labels are the CT's own, "
            "the shapes roughly the others'."
        )
    if "empty" in drawn:
        text.append(
            "Empty patches are real CTs known to show none of the organs, except perhaps the "
            f"esophagus and the aorta: {', '.join(path.stem for path in drawn['empty'])}."
        )
    if "pseudo" in drawn:
        text.append(
            "Pseudo-labelled patches are real CTs with labels that a network gave them; where "
            "this project made them, only where it was sure, corrected where an eye saw mistakes."
        )
    return text


_USES = {
    "labelled": "CT and labels",
    "labelmap": "label map, for synthesis",
    "unlabelled": "CT without labels",
    "pseudo": "CT with pseudo-labels",
}
_NAMED = 8  # cases by number; of more the first and the last


def _sources(
    cases: list[Case],
    config: Config,
    holdout: tuple[str, ...],
    drawn: Mapping[str, list[Path]],
) -> str:
    """The cases that patches were drawn from, or that were held out."""
    used: dict[tuple[str, str, str], list[str]] = {}
    files = [path.stem for paths in drawn.values() for path in paths]
    for case in cases:
        aside = case.name in (*config.holdout, *holdout)
        if not aside and not any(shows(stem, case.name) for stem in files):
            continue
        source, number = _numbered(case.source)
        use = "held out" if aside else _USES[case.kind]
        if case.name in config.empty:
            use = "CT known to show none of the organs"
        used.setdefault((source, case.licence, use), []).append(number)
    lines = ["| data | licence | use | cases |", "|---|---|---|---|"]
    for (source, licence, use), numbers in used.items():
        own = sorted({number for number in numbers if number}, key=int)
        named = ", ".join(own) if len(own) <= _NAMED else f"{own[0]} to {own[-1]}"
        lines.append(f"| {source}{named} | {licence} | {use} | {len(numbers)} |")
    return "\n".join(lines)


def _untold(sources: Sources, begun_with: Sequence[str]) -> list[str]:
    """The organs that the training said nothing about."""
    names = ", ".join(ORGANS[organ] for organ in sources.untold())
    if not names:
        return []
    if begun_with:
        return [f"Labelled in none of these cases: {names}. What it began with may know them."]
    return [f"Labelled in none of these cases, so the model never finds them: {names}."]


def _numbered(source: str) -> tuple[str, str]:
    """What a case comes from, and its number there: numbered cases of one data set are one."""
    found = re.fullmatch(r"(.*?\D)(\d+)", source)
    return (found[1], found[2]) if found else (source, "")


def _accuracy(
    rows: list[dict[str, str]], holdout: tuple[str, ...], begun_with: Sequence[str]
) -> str:
    if not rows and holdout:
        return f"Not measured: the held-out cases ({', '.join(holdout)}) have no labels here."
    if not rows:
        return "Not measured: no labelled case was held out."
    names = [row["case"] for row in rows]
    unseen = "was not trained on"
    if begun_with:
        unseen = "this training did not see, though the weights it began with may have"
    text = [
        f"DSC on {len(rows)} CT that {unseen} ({', '.join(names)}), in PyTorch and on the "
        "network's own grid. Few cases say little about the next one.",
        "",
        *(
            f"That was measured after {rows[0]['iteration']} steps. Then {name} joined the "
            "training, so of the final weights no accuracy is known on a CT they did not see.\n"
            for name in names
            if name not in holdout
        ),
        "| organ | DSC |",
        "|---|---|",
    ]
    for organ in ORGANS.values():
        values = [float(row[organ]) for row in rows if row[organ]]
        cell = f"{np.mean(values):.3f}" if values else "not labelled"
        text.append(f"| {organ} | {cell} |")
    return "\n".join(text)


def _what(agreements: list[Agreement]) -> str:
    synthetic = any(a.case.startswith("synthetic_") for a in agreements)
    return "synthetic patches (there was no real CT)" if synthetic else "whole real CT(s)"


def _calibrated_on_held_out(agreements: list[Agreement], holdout: tuple[str, ...]) -> list[str]:
    """What is checked is also what int8 is calibrated on: held-out cases if there are no others."""
    if not {a.case for a in agreements} & set(holdout):
        return []
    return [
        "int8 was calibrated on the held-out cases, since there were no others: its scores on "
        "them are not those of new cases."
    ]


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
