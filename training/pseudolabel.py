"""Labels for unlabelled CTs from networks' own predictions, kept only where they are sure.

Each CT is looked at several times: by every network that is given, at its own spacing, enlarged
and shrunk a little with shifted intensities, and, by networks that were trained on mirrored
patients, mirrored. A voxel is kept where the looks agree, an organ only where they agree as a
whole and it is anatomically plausible; everything else is unknown to the training. Who has looked
at the pictures may correct that (`training.corrections`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from tqdm import tqdm

from inference.errors import AbdosegError
from inference.grid import Spacing, voxel_millilitres
from inference.hounsfield import NO_TISSUE
from inference.organs import LABEL_OF, ORGANS
from inference.orientation import turn_to
from inference.postprocess import postprocess
from inference.preprocess import preprocess
from inference.preview import write_preview
from inference.reading import Scan
from inference.resample import resize, resize_labels
from inference.winners import winners
from inference.writing import write, write_text
from training.agreement import dice
from training.cases import ANNOTATED as _ANNOTATED
from training.cases import Case, read_annotated, read_json
from training.checkpoint import load_average
from training.config import Config
from training.corrections import Edit, correct, largest_part, of_kind, tissue
from training.tissues import UNKNOWN, on_wrong_sides
from training.torch_runner import logits_of

_CORRECTED = "corrected.json"

_LOOKS = ((1.0, 0.0), (0.92, 15.0), (1.08, -15.0))
"""Relative voxel size and HU shift of each look."""

_PLAUSIBLE_ML: dict[str, tuple[float, float]] = {
    "liver": (400, 4500),
    "right_kidney": (40, 600),
    "spleen": (30, 1500),
    "pancreas": (15, 250),
    "aorta": (15, 500),
    "inferior_vena_cava": (15, 250),
    "right_adrenal_gland": (1, 20),
    "left_adrenal_gland": (1, 20),
    "gallbladder": (3, 250),
    "esophagus": (3, 80),
    "stomach": (30, 2000),
    "duodenum": (15, 250),
    "left_kidney": (40, 600),
}


_SMALL_SOLID = ("right_adrenal_gland", "left_adrenal_gland", "gallbladder")
_FAT = (-250.0, -50.0)
"""HU of fat, and of voxels of which it fills more than half; below there may be lung."""

_BLUR, _LITTLE = 1.5, 0.02
"""mm over which gas and lung blur into soft tissue, and how much of them leaves it as it is."""


@dataclass(frozen=True)
class PseudoLabels:
    """What was kept of one CT.

    Attributes:
        labels: uint8 (z, y, x), 255 where unknown.
        kept: organs that passed the filter.
        agreement: lowest DSC between two looks, per organ that was seen at all.
    """

    labels: np.ndarray
    kept: tuple[int, ...]
    agreement: dict[int, float]

    def described(self, organ: int) -> str:
        """The organ's name, with the agreement on it if it was seen: "liver (0.97)"."""
        seen = organ in self.agreement
        return f"{ORGANS[organ]} ({self.agreement[organ]:.2f})" if seen else ORGANS[organ]


def pseudolabel(
    cases: Sequence[Case],
    checkpoints: Sequence[Path],
    config: Config,
    out: Path,
    least: float = 0.85,
    corrections: Mapping[str, Sequence[Edit]] | None = None,
) -> tuple[dict[str, PseudoLabels], list[str]]:
    """Label the CTs that have no labels.

    Writes ``NAME.nii.gz`` on each CT's own grid (255 where unknown), ``NAME_preview.png`` and
    ``annotated.json`` (which organs were kept in which case) into ``out``, from where
    `training.prepare` takes them, for this network or another one. What is there already is
    kept, so an interrupted run goes on; but a CT whose corrections are other ones than before is
    labelled anew (``corrected.json`` has a mark of each CT's).

    Args:
        cases: of a data folder; those with labels, held out, or known to be empty are passed
            over.
        checkpoints: of one network or several, all of the same configuration (folds, say);
            model folders too.
        config: theirs.
        out: the folder.
        least: DSC between looks that an organ needs to be kept.
        corrections: by hand, by case (`training.corrections`); without, those that were made
            stay.

    Returns:
        What was judged, by case (a case without any organ is not written), and a line per CT
        that was refused.

    Raises:
        FileNotFoundError: a checkpoint is missing.
        ModelError: a folder in the place of one holds no model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = [load_average(checkpoint, config).to(device) for checkpoint in checkpoints]
    plan = config.plan_in_hu
    out.mkdir(parents=True, exist_ok=True)
    annotated = read_annotated(out)
    made = {name for name, kept in annotated.items() if not kept or (out / _file_of(name)).exists()}
    marks = read_json(out / _CORRECTED) if (out / _CORRECTED).is_file() else {}
    if corrections is not None:
        made = {n for n in made if marks.get(n, "") == _mark(corrections.get(n, ()))}
    corrections = corrections or {}
    passed_over = {*config.holdout, *config.empty, *made}
    todo = [case for case in cases if case.kind == "unlabelled" and case.name not in passed_over]
    result, refused = {}, []
    for case in tqdm(todo, desc="pseudolabel", unit="CT"):
        try:
            ct = case.ct()
        except (AbdosegError, ValueError) as error:
            refused.append(f"{case.name}: {error}")
            continue
        prepared = preprocess(ct.hu, ct.spacing, plan)
        edits = corrections.get(case.name, ())
        if annotated.pop(case.name, None) is not None:  # labels to be replaced teach nothing
            write_text(out / _ANNOTATED, json.dumps(annotated, indent=1) + "\n")
        looks = look_at(networks, prepared.values, prepared.spacing, config)
        trusted, doubted = of_kind(edits, "trust"), of_kind(edits, "doubt")
        found = judge(looks, prepared.spacing, least, trusted, doubted)
        found = replace(found, kept=tuple(sorted({*found.kept, *of_kind(edits, "grow", "draw")})))
        if found.kept:
            labels = np.zeros(ct.hu.shape, np.uint8)
            part = labels[prepared.box]
            part[...] = resize_labels(found.labels, part.shape)
            drop_fat(labels, ct.hu, ct.spacing)
            try:
                correct(labels, ct.hu, ct.spacing, edits)
            except ValueError as error:
                refused.append(f"{case.name}: {error}")
                continue
            stored = np.zeros(ct.image.GetSize()[::-1], np.uint8)
            turn_to(ct.image.GetDirection()).apply(stored)[...] = labels
            write(out / _file_of(case.name), stored, Scan(ct.image))
            seen = np.where(stored == UNKNOWN, 0, stored)
            write_preview(out / f"{case.name}_preview.png", ct.image, seen, ct.offset)
        result[case.name] = found
        marks[case.name] = _mark(edits)
        write_text(out / _CORRECTED, json.dumps(marks, indent=1) + "\n")
        annotated[case.name] = [ORGANS[organ] for organ in found.kept]
        write_text(out / _ANNOTATED, json.dumps(annotated, indent=1) + "\n")
    return result, refused


def _file_of(name: str) -> str:
    return f"{name}.nii.gz"


def _mark(edits: Sequence[Edit]) -> str:
    """What tells corrections of a CT from others; empty where there are none."""
    return f"{zlib.crc32(repr(tuple(edits)).encode()):08x}" if edits else ""


def look_at(
    networks: Sequence[nn.Module], hu: np.ndarray, spacing: Spacing, config: Config
) -> list[np.ndarray]:
    """Label maps (z, y, x) of all looks at a prepared CT, the plain one of the first network first.

    Gas that is not an organ's is taken from it as the configuration's post-processing says: else
    what the network takes the airways or the colon for would be taught to the next one.

    Args:
        networks: trained networks.
        hu: (z, y, x).
        spacing: mm per axis.
        config: the networks'.
    """
    steps = tuple(step for step in config.postprocessing if step["step"] == "foreign_gas")
    plan = replace(config.plan_in_hu, postprocessing=steps)

    def labels(logits: np.ndarray) -> np.ndarray:
        cleaned = postprocess(logits, spacing, plan, ct=hu)
        return winners(logits) if cleaned is None else cleaned

    result = []
    mirrored = config.augmentation.get("mirror", {}).get("axes", ())
    for network in networks:
        for size, shift in _LOOKS:
            # Where the network's grid has a fixed size in voxels, the slices keep it.
            shape = [
                n if fixed else max(1, round(n / size))
                for n, fixed in zip(hu.shape, config.size, strict=True)
            ]
            seen = resize(hu, shape) if size != 1 else hu.astype(np.float32)
            logits = logits_of(network, seen + shift, config)
            if size != 1:
                logits = np.stack([resize(logits[i], hu.shape) for i in range(len(logits))])
            result.append(labels(logits))
        for axis in mirrored:
            logits = logits_of(network, np.flip(hu, axis), config)
            result.append(labels(np.ascontiguousarray(np.flip(logits, axis + 1))))
    return result


def drop_fat(labels: np.ndarray, hu: np.ndarray, spacing: Spacing) -> None:
    """Take the fat around adrenal glands, gallbladder and esophagus from them, in place.

    A network calls a little of it theirs, and would teach the next one to call it more. The
    large organs gain nothing by it; pancreas, kidneys and bowel hold fat of their own. Between lung
    and its own gas the esophagus' wall looks like fat, and stays.

    Args:
        labels: uint8 (z, y, x).
        hu: of the same shape.
        spacing: mm per axis.
    """
    fat = tissue(hu, spacing, *_FAT)
    labels[np.isin(labels, [LABEL_OF[name] for name in _SMALL_SOLID]) & fat] = 0
    gas = (hu < NO_TISSUE).astype(np.float32)
    gas = ndimage.gaussian_filter(gas, [_BLUR / mm for mm in spacing])
    labels[(labels == LABEL_OF["esophagus"]) & fat & (gas < _LITTLE)] = 0


def judge(
    looks: list[np.ndarray],
    spacing: Spacing,
    least: float,
    trusted: Sequence[int] = (),
    doubted: Sequence[int] = (),
) -> PseudoLabels:
    """Decide what several label maps (z, y, x) of one CT agree on.

    An organ is kept if every two looks agree on it (DSC at least ``least``), its volume is
    plausible unless it touches the scan's first or last slice, and liver and spleen, the two
    kidneys and the two adrenal glands lie on their sides. Of a kept organ only its largest
    connected part counts; other parts, and voxels on which looks differ, are unknown.

    Args:
        looks: at least one.
        spacing: mm per axis (z, y, x).
        least: DSC that an organ needs.
        trusted: organs that are kept as the first look has them, whatever the rules say.
        doubted: organs that are not kept.
    """
    first = looks[0]
    same = np.all([look == first for look in looks], axis=0) | np.isin(first, trusted)
    agreement: dict[int, float] = {}
    kept = []
    for organ, name in ORGANS.items():
        masks = [look == organ for look in looks]
        if not any(mask.any() for mask in masks):
            continue
        pairs = [dice(a, b) or 0.0 for i, a in enumerate(masks) for b in masks[:i]]
        agreement[organ] = min(pairs, default=1.0)
        mask = largest_part(masks[0])
        low, high = _PLAUSIBLE_ML[name]
        volume = mask.sum() * voxel_millilitres(spacing)
        cut = mask[0].any() or mask[-1].any()
        if agreement[organ] >= least and volume <= high and (cut or volume >= low):
            kept.append(organ)
    wrong = {*on_wrong_sides(first), *doubted}
    kept = sorted({*(organ for organ in kept if organ not in wrong), *trusted})
    labels = np.where(same, first, UNKNOWN).astype(np.uint8)
    for organ in ORGANS:
        seen = np.any([look == organ for look in looks], axis=0)
        if organ not in kept:
            labels[seen & ~np.isin(labels, trusted)] = UNKNOWN
        else:
            labels[(labels == organ) & ~largest_part(first == organ)] = UNKNOWN
    return PseudoLabels(labels, tuple(kept), agreement)
