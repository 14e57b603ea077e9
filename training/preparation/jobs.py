"""Which files are prepared of which cases: images, bodies, and CTs bent to bodies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from inference.organs import LABEL_OF, ORGANS
from inference.plan import Plan
from training.config import Config
from training.data.case import Case
from training.preparation.prepared_file import file_of

ABSENT = tuple(v for v in ORGANS if v not in (LABEL_OF["esophagus"], LABEL_OF["aorta"]))
"""What a CT without abdomen is known not to show: esophagus and aorta run through the chest."""


@dataclass(frozen=True)
class Job:
    """A file to prepare.

    Attributes:
        kind: of the patches that are drawn from it, a key of
            `training.preparation.prepared_file.FOLDER_OF`: says what it holds.
        case: the patient; of a CT that counts as empty, with what that tells as annotated.
        atlas: whose body the patient borrows, or whose CT is bent to the patient.
        out: the prepared folder.
        plan: how images are resampled.
    """

    kind: str
    case: Case
    atlas: Case | None
    out: Path
    plan: Plan

    @property
    def name(self) -> str:
        """``CASE``, or ``CASE__ATLAS``."""
        return f"{self.case.name}__{self.atlas.name}" if self.atlas else self.case.name

    @property
    def target(self) -> Path:
        """The file to write."""
        return file_of(self.out, self.kind, self.name)

    @property
    def cases(self) -> list[Case]:
        """Those that it is made of."""
        return [self.case, self.atlas] if self.atlas else [self.case]


def image_jobs(cases: list[Case], out: Path, config: Config) -> list[Job]:
    """Every case with a CT, as what it counts.

    Args:
        cases: of the data folder.
        out: the prepared folder.
        config: what is held empty, and the images' grid.
    """
    plan = config.plan_in_hu
    jobs = []
    for case in cases:
        if case.image is None:
            continue
        if case.name in config.empty:
            jobs.append(Job("empty", replace(case, annotated=ABSENT), None, out, plan))
        else:
            kind = "pseudo" if case.kind == "pseudo" else "labelled"
            jobs.append(Job(kind, case, None, out, plan))
    return jobs


def body_jobs(cases: list[Case], out: Path, config: Config) -> list[Job]:
    """Every trusted label map with every atlas.

    Where no case's tissues are labelled, organs have no body around them: they are drawn alone
    if there is no labelled CT to learn from instead.

    Bodies are made where the configuration draws synthetic patches from them, CTs bent to them
    where it draws transferred ones.

    Args:
        cases: of the data folder.
        out: the prepared folder.
        config: what is held out, and drawn.
    """
    plan = config.plan_in_hu
    synthetic, bent = (config.shares.get(kind, 0) > 0 for kind in ("synthetic", "transferred"))
    trusted = _trusted(cases, config)
    atlases = [case for case in trusted if case.tissue_file]
    alone = atlases or ([] if any(case.image for case in trusted) else trusted)
    jobs = []
    if synthetic:
        jobs += [Job("synthetic", case, None, out, plan) for case in alone]
    for atlas in atlases:
        patients = [case for case in trusted if not case.tissue_file]
        if synthetic:
            jobs += [Job("synthetic", patient, atlas, out, plan) for patient in patients]
        if bent and atlas.image is not None:
            others = [case for case in trusted if case is not atlas]
            jobs += [Job("transferred", patient, atlas, out, plan) for patient in others]
    return jobs


def what_is_not_drawn(cases: list[Case], config: Config) -> str | None:
    """A line about synthetic patches that a configuration wants and the data cannot give."""
    trusted = _trusted(cases, config)
    if not config.shares.get("synthetic", 0) or any(case.tissue_file for case in trusted):
        return None
    alone = trusted and not any(case.image for case in trusted)
    drawn = "organs are drawn alone" if alone else "no CT is drawn"
    return f"synthetic: no case has all tissues labelled (full_labels.nii.gz): {drawn}"


def _trusted(cases: list[Case], config: Config) -> list[Case]:
    kinds = "labelled", "labelmap"
    return [case for case in cases if case.kind in kinds and case.name not in config.holdout]
