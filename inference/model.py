"""A model: its folder found by name, its plan read, its network loaded."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import ModelError
from inference.machine import usable_threads
from inference.network.budget import Budget
from inference.paths import is_file
from inference.plan import Plan

if TYPE_CHECKING:
    from inference.network.network import Network

DEFAULT = "abdoseg"
"""The model that is used where neither the caller nor ``$ABDOSEG_MODEL`` names one."""


def weights_folders() -> list[Path]:
    """Folders in which models are looked for by name, in order.

    ``$ABDOSEG_WEIGHTS``, ``/weights`` (a mount into a container), ``weights/`` of the
    repository, and ``_weights`` inside an installed package.
    """
    package = Path(__file__).resolve().parent
    given = os.environ.get("ABDOSEG_WEIGHTS")
    return [
        *([Path(given)] if given else []),
        Path("/weights"),
        package.parent / "weights",
        package / "_weights",
    ]


def find_model(name: str | Path | None = None) -> Path:
    """The folder of a model.

    Args:
        name: a model's name (the name of its folder under one of `weights_folders`) or the
            path of a model folder; ``None`` for ``$ABDOSEG_MODEL`` or else the default model.

    Raises:
        ModelError: there is no such model; the message names those there are.
    """
    wanted = str(os.environ.get("ABDOSEG_MODEL") or DEFAULT if name is None else name)
    if wanted and is_file(Path(wanted) / "plan.json"):
        return Path(wanted)
    folders = weights_folders()
    if wanted and Path(wanted).name == wanted:
        for folder in folders:
            if is_file(folder / wanted / "plan.json"):
                return folder / wanted
    there = sorted({path.parent.name for f in folders for path in f.glob("*/plan.json")})
    raise ModelError(
        f"no model {wanted!r} (a model is a folder with a plan.json); "
        + (f"there are: {', '.join(there)}" if there else "there are no models at all")
    )


@dataclass(frozen=True)
class Model:
    """A model that is ready to segment.

    Attributes:
        plan: what it wants and what it gives; its precision is the one that was chosen.
        folder: where it lies.
        threads: how many threads it uses.
        network: the network; compiled for the shape it ran last.
        look: the model that looks first where the organs are, if the plan names one.
        budget: grants it memory, case by case.
        lock: is held while a CT is segmented: several threads may share a model, one at a time.
    """

    plan: Plan
    folder: Path
    threads: int
    network: Network
    look: Model | None = None
    budget: Budget = field(default_factory=Budget)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def load(
        name: str | Path | None = None,
        *,
        threads: int | None = None,
        precision: str | None = None,
    ) -> Model:
        """Load a model.

        Args:
            name: its name or its folder, see `find_model`.
            threads: how many threads to use; ``None`` for as many as the CPU affinity and the
                container's CPU quota allow.
            precision: "f32", "bf16" or "int8", if the model has it; ``None`` for what its plan
                chooses.

        Raises:
            ModelError: no such model or precision, or a broken model folder.
            ValueError: ``threads`` is not a whole number, or less than 1.
        """
        from inference.network.network import Network  # brings in OpenVINO

        if threads is not None:
            threads = _whole(threads)
        folder = find_model(name)
        plan = Plan.load(folder)
        precision = plan.choose(precision)
        plan = replace(plan, precision=precision)
        threads = threads or usable_threads()
        network = Network(
            folder / plan.networks[precision],
            precision,
            threads,
            len(plan.label_values),
            plan.inputs,
        )
        if plan.tiling != "whole":  # otherwise the shape depends on the CT
            network.expect(plan.patch)
        return Model(plan, folder, threads, network, _look_of(plan, folder, threads))

    @property
    def precision(self) -> str:
        """The precision it runs in."""
        return self.plan.precision


def _look_of(plan: Plan, folder: Path, threads: int) -> Model | None:
    """The model that a plan's ``look`` names; it lies beside the plan's, or where models lie.

    Raises:
        ModelError: there is none, or it cannot look for this plan.
    """
    if not plan.look:
        return None
    name = plan.look["model"]
    beside = folder.resolve().parent / name
    try:
        other = beside if is_file(beside / "plan.json") else find_model(name)
        its = Plan.load(other)
        axes = [(each.orientation, each.transpose) for each in (plan, its)]
        if its.look or its.channels or axes[0] != axes[1]:
            raise ModelError(f"{other}: has a look of its own, channels or other axes")
        look = Model.load(other, threads=threads)
    except ModelError as error:
        raise ModelError(f"{folder}: its first look: {error}") from None
    look.network.expect(its.patch)  # few CTs are larger: it compiles while the first one is read
    return look


def _whole(threads: int) -> int:
    """A number of threads as Python's own: NumPy's integers are no integers to C++ libraries."""
    number = isinstance(threads, Real) and not isinstance(threads, bool)
    if not (number and threads >= 1 and float(threads).is_integer()):
        raise ValueError(f"threads must be a whole number, at least 1, not {threads!r}")
    return int(threads)
