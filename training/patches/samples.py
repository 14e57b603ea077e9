"""Training patches: drawn, warped and varied, one per index.

Sample ``i`` of a seed is always the same patch, so an interrupted training goes on with exactly
the patches that it would have seen. Where patches are of few slices, several that lie above each
other are drawn as one (the configuration's ``drawn_at_once``).

Where a patch lies is the configuration's ``placement``:

- ``{rule: anywhere, foreground: p}``: with the probability p around a random voxel of a random
  organ, else anywhere, moved so that little of it lies beside the body (nnU-Net moves it into
  the image);
- ``{rule: labelled_slices}``: around a random slice in which an organ is labelled, moved so that
  little of it lies above or below the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from inference.grid import Shape, Spacing
from inference.hounsfield import AIR
from inference.organs import ORGANS
from training.config import Config
from training.data.tissues import SPACING as BODY_SPACING
from training.data.tissues import organs_only
from training.patches.augment import places, vary_hu, vary_intensities
from training.patches.sources import Sources, what_is_there
from training.patches.volume import VOLUMES, Volume, volume_of
from training.preparation.prepared_file import mapped, opened
from training.sampling.chance import Chance
from training.sampling.warp import NearestVoxels, sample_linear, sample_nearest, turned_places
from training.synthetic.colon import add_colon
from training.synthetic.intensities import synthesise
from training.synthetic.neighbours import add_neighbours
from training.synthetic.pancreas import age_pancreas

_LEAST_DEPTH = 16  # voxels of a synthetic patch: neighbourhoods need some
_THE_SAME = 0.01  # of a spacing, by which another one may differ
_CROPPED = (0.95, 1.25)  # of the body: the width and height of a cropped field of view


class Patch(NamedTuple):
    """What a batch consists of (a leading batch axis is added by the loader).

    Attributes:
        image: float32 (1, z, y, x), normalised.
        labels: uint8 (z, y, x), organ labels, `training.data.tissues.UNKNOWN` where unknown.
        annotated: bool (14,), which classes the labels tell; the others may hide in background.
        weight: float32 (), what the patch counts in the loss.
    """

    image: Tensor
    labels: Tensor
    annotated: Tensor
    weight: Tensor


class Samples:
    """Patches from a prepared folder (`training.preparation.prepare`).

    Args:
        folder: what `training.preparation.prepare.prepare` wrote, or a part of it.
        config: what to draw.
        holdout: cases that no patch may come from, besides the configuration's.
        device: where patches are made.
        room: bytes of the device's memory in which volumes may stay. The others are mapped from
            their files whenever they are drawn: on a CPU nothing is gained by more.
        untold_is_absent: whether an organ that no file tells counts as told, and absent. Where it
            is left open, nothing keeps a network that knows nothing yet from calling all of the
            background so.

    Attributes:
        sources: kind of patches to the files that they are drawn from.
        untold: label values of the organs that none of these files tells.

    Raises:
        FileNotFoundError: the folder holds nothing to train on.
        ValueError: a prepared file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        holdout: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
        room: float = 0.0,
        untold_is_absent: bool = False,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self._room = room
        self._lock = Lock()
        self._drawn: tuple[int | None, list[Patch]] = (None, [])
        sources = Sources(folder, config, holdout)
        self.sources = sources.files
        if not self.sources:
            raise FileNotFoundError(f"{folder}: nothing to train on{what_is_there(folder, config)}")
        self.untold = sources.untold()
        self._always_told = self.untold if untold_is_absent else ()
        self._frequency = {
            kind: [sources.frequency(path) if kind == "synthetic" else 1.0 for path in paths]
            for kind, paths in self.sources.items()
        }
        self._known: dict[Path, Volume] = {}
        self._written: dict[Path, int] = {}

    def __getitem__(self, index: int) -> Patch:
        """Patch number ``index``."""
        number, part = divmod(index, self.config.drawn_at_once)
        last, parts = self._drawn
        if number != last:
            parts = self._draw(number)
            self._drawn = number, parts
        return parts[part]

    def _draw(self, number: int) -> list[Patch]:
        """The patches, lowest first, that are drawn as one."""
        chance = Chance(self.config.seed * 1_000_003 + number, self.device)
        kinds = list(self.sources)
        kind = kinds[chance.pick([self.config.shares[kind] for kind in kinds])]
        source = self._load(self.sources[kind][chance.pick(self._frequency[kind])])
        make = self._synthetic if kind == "synthetic" else self._real
        hu, labels = make(source, *self._grid(source, number, chance), chance)
        hu, labels = vary_hu(hu, labels, kind != "synthetic", self.config.augmentation, chance)
        config = self.config
        image, labels = vary_intensities(config.normalise(hu), labels, config.augmentation, chance)
        annotated = torch.zeros(1 + len(ORGANS), dtype=torch.bool)
        annotated[[0, *source.annotated, *self._always_told]] = True
        weight = torch.tensor(config.pseudo_weight if kind == "pseudo" else 1.0)
        annotated, weight = annotated.to(self.device), weight.to(self.device)
        return [
            Patch(part[None].contiguous(), its_labels.contiguous(), annotated, weight)
            for part, its_labels in zip(
                image.float().chunk(config.drawn_at_once),
                labels.chunk(config.drawn_at_once),
                strict=True,
            )
        ]

    def load_all(self) -> int:
        """Load every volume now, in several threads, rather than when it is first drawn.

        Returns:
            How many find no room to stay.
        """
        paths = [path for paths in self.sources.values() for path in paths]
        with ThreadPoolExecutor(8) as pool:
            return sum(not volume.arrays for volume in pool.map(self._know, paths))

    def _synthetic(
        self, body: Volume, patch: Shape, spacing: Spacing, chance: Chance
    ) -> tuple[Tensor, Tensor]:
        """A CT drawn for a body: HU and labels (z, y, x)."""
        fine = max(self.config.synthesis_spacing, min(spacing))
        extent = [n * step for n, step in zip(patch, spacing, strict=True)]
        shape = [max(_LEAST_DEPTH, math.ceil(length / fine)) for length in extent]
        where = self._places(body, shape, (fine,) * 3, chance)
        nearest = NearestVoxels(body.shape, where, BODY_SPACING)
        tissues = nearest.values(body.arrays["tissues"], 0)
        hull = nearest.values(body.arrays["hull"], 127)
        tissues = age_pancreas(tissues, fine, chance)
        tissues = add_neighbours(tissues, fine, chance)
        tissues = add_colon(tissues, hull, fine, chance)
        hu, seen = synthesise(tissues, hull, fine, chance)
        labels = organs_only(tissues).masked_fill(~seen, 0)
        # Where the source ends, so does the scan.
        hu[~nearest.inside.any(dim=2).any(dim=1)] = AIR
        if tuple(shape) != patch or any(step != fine for step in spacing):
            middle = torch.tensor(shape) * fine / 2
            grid = turned_places(patch, spacing, torch.eye(3), middle, self.device)
            hu = sample_linear(hu[None], grid, fine)[0]
            labels = sample_nearest(labels, grid, fine, 0)
        return hu, labels

    def _real(
        self, case: Volume, patch: Shape, spacing: Spacing, chance: Chance
    ) -> tuple[Tensor, Tensor]:
        """A part of a real CT: HU and labels (z, y, x)."""
        whole, labels = case.arrays["hu"], case.arrays["labels"]
        where = self._places(case, patch, spacing, chance)
        nearest = NearestVoxels(case.shape, where, case.spacing)
        hu = sample_linear(whole[None], where, case.spacing)[0]
        hu[~nearest.inside] = AIR
        return hu, nearest.values(labels, 0)

    def _grid(self, source: Volume, number: int, chance: Chance) -> tuple[Shape, Spacing]:
        """Voxels and spacing of what is drawn as one.

        Along axes where no spacing is set, a real CT's own, or one that a scanner might have, or
        the one by which the patch's width and height are about the body's. A
        prepared CT has a whole number of voxels, so its spacing is nearly the one that is set:
        it is taken as it is, as at inference.
        """
        config = self.config
        patch, wanted = config.grid_at(number * config.drawn_at_once // config.batch)
        given = source.spacing
        if "scan" in config.augmentation and "tissues" in source.arrays:
            scan = config.augmentation["scan"]
            pixel = chance.uniform(*scan["pixel"])
            given = (chance.uniform(*scan["slice"]), pixel, pixel)
        cropped = config.augmentation.get("cropped")
        if cropped and chance.happens(cropped["probability"]):
            body = zip(source.extent[1:], source.spacing[1:], patch[1:], strict=True)
            height, width = (
                chance.uniform(*_CROPPED) * (last - first + 1) * mm / n
                for (first, last), mm, n in body
            )
            given = (given[0], height, width)
        z, y, x = (
            b if a is None or abs(a - b) < _THE_SAME * a else a
            for a, b in zip(wanted, given, strict=True)
        )
        return (patch[0] * config.drawn_at_once, *patch[1:]), (z, y, x)

    def _places(
        self, source: Volume, shape: Sequence[int], spacing: Spacing, chance: Chance
    ) -> Tensor:
        """Where the patch's voxels lie, (z, y, x, 3) in mm."""
        rule = self.config.placement["rule"]
        size = source.shape
        half = [n * a / b / 2 for n, a, b in zip(shape, spacing, source.spacing, strict=True)]
        if rule == "labelled_slices":
            heights = source.heights if len(source.heights) else torch.arange(size[0])
            wanted = int(heights[chance.integer(len(heights))])
            height = _inside(wanted, source.extent[0], half[0])
            centre = [height, (size[1] - 1) / 2, (size[2] - 1) / 2]
        else:
            at = [chance.integer(n) for n in size]
            if chance.happens(self.config.placement["foreground"]) and source.voxels:
                organs = list(source.voxels)
                voxels = source.voxels[organs[chance.integer(len(organs))]]
                at = voxels[chance.integer(len(voxels))].tolist()
            # Moved so far that it shows nothing beside the body, or as little as its size allows.
            centre = [_inside(*three) for three in zip(at, source.extent, half, strict=True)]
        # It begins where a voxel does: where the grid is the volume's own, its voxels are too,
        # neither blurred nor half a voxel away from their labels.
        begin = [round(c + 0.5 - h) for c, h in zip(centre, half, strict=True)]
        place = (torch.tensor(begin) + torch.tensor(half)) * torch.tensor(source.spacing)
        return places(shape, spacing, place, self.config.augmentation, chance)

    def _load(self, path: Path) -> Volume:
        """A volume with its arrays, to draw from."""
        volume = self._know(path)
        return volume if volume.arrays else replace(volume, arrays=self._arrays(path))

    def _know(self, path: Path) -> Volume:
        """What is known of a volume, with its arrays if these stay in memory."""
        if path not in self._known:
            self._written[path] = path.stat().st_mtime_ns
            with opened(path) as content:  # read whole and checked, once
                arrays = {name: content[name] for name in content.files}
            volume = volume_of(arrays, path.stem)
            there = {name: torch.from_numpy(arrays[name]) for name in VOLUMES if name in arrays}
            if self._take_room(sum(array.nbytes for array in there.values())):
                on_device = {name: array.to(self.device) for name, array in there.items()}
                volume = replace(volume, arrays=on_device)
            self._known[path] = volume
        return self._known[path]

    def _arrays(self, path: Path) -> dict[str, Tensor]:
        """A volume's arrays from its file, which must still be the one that is known.

        Raises:
            ValueError: it is another one.
        """
        found = mapped(path, VOLUMES)
        if path.stat().st_mtime_ns != self._written[path]:
            raise ValueError(f"{path}: was prepared anew while a training draws from it")
        return {name: torch.from_numpy(array).to(self.device) for name, array in found.items()}

    def _take_room(self, size: int) -> bool:
        """Take so many bytes of the room, if they are there."""
        with self._lock:  # several threads load at once
            enough = size <= self._room
            self._room -= size if enough else 0
        return enough


def _inside(wanted: int, ends: tuple[int, int], half: float) -> float:
    """The middle, nearest to the wanted voxel, of a patch that does not reach beyond two ends.

    Half-way between them where it is wider. ``half`` is half of its width; all in voxels.
    """
    low, high = ends[0] - 0.5 + half, ends[1] + 0.5 - half
    return min(max(wanted, low), high) if low < high else sum(ends) / 2
