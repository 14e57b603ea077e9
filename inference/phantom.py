"""A synthetic abdominal CT with all 13 organs, made of formulas alone: no patient, no data.

Solids (ellipsoids, bent tubes and what can be cut from them) are painted one over the other in a
patient's coordinates: millimetres, x to the left, y to the back, z to the head, the origin in
front of the first lumbar vertebra. Sizes and places follow anatomy atlases. The idea is that of
the XCAT phantom (Segars et al., Med. Phys. 2010), in numpy and small enough to read.

It serves the demo, the tests and timing. Networks can be pretrained on it; it is no patient, and
no accuracy measured on it says anything about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.grid import Box, Shape, Spacing
from inference.organs import LABEL_OF

Float32Array: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Distance: TypeAlias = Callable[[Float32Array, Float32Array, Float32Array], Float32Array]
Intensity: TypeAlias = (
    float | Callable[[Float32Array, Float32Array, Float32Array, Float32Array], Float32Array]
)

PHASES = ("plain", "arterial", "portal", "late")
"""Contrast phases: none, about 30 s, 70 s and 3 min after injection."""

_HU: dict[str, tuple[float, float, float, float]] = {
    "muscle": (52, 55, 62, 60),
    "liver": (58, 68, 108, 90),
    "spleen": (48, 125, 122, 95),
    "cortex": (32, 185, 180, 150),
    "medulla": (30, 65, 150, 150),
    "renal_pelvis": (8, 10, 25, 320),
    "pancreas": (40, 105, 95, 72),
    "artery": (42, 310, 160, 110),
    "vena_cava": (40, 62, 140, 110),
    "portal_vein": (42, 85, 175, 112),
    "adrenal": (25, 60, 72, 52),
    "gut_wall": (40, 62, 78, 66),
    "esophagus": (38, 52, 64, 58),
    "heart": (42, 210, 150, 108),
}
"""Hounsfield units by contrast phase, in the order of `PHASES`."""

_WARP = 5.0  # millimetres by which anatomy is bent at most, per axis
_FAR = 1e3


@dataclass(frozen=True)
class _Solid:
    """A body given by a signed distance (negative inside), exact enough near its surface.

    Attributes:
        pieces: distance functions, each with the box (lower, upper corner, x y z) in which it
            matters; the solid is their union.
    """

    pieces: tuple[tuple[Point, Point, Distance], ...]

    def __or__(self, other: _Solid) -> _Solid:
        return _Solid(self.pieces + other.pieces)

    @property
    def box(self) -> tuple[Point, Point]:
        lower = np.min([piece[0] for piece in self.pieces], axis=0)
        upper = np.max([piece[1] for piece in self.pieces], axis=0)
        return _point(lower), _point(upper)


@dataclass(frozen=True)
class _Paint:
    """One brush stroke: a solid, what HU it has and what label it gets (0 for none).

    Attributes:
        halo: millimetres of fat around the solid, painted first.
        in_abdomen: whether the solid ends at the diaphragm and the abdominal wall.
    """

    solid: _Solid
    hu: Intensity
    label: int = 0
    halo: float = 0.0
    in_abdomen: bool = False


def make_phantom(
    shape: Shape = (100, 200, 200),
    spacing: Spacing = (3.0, 2.0, 2.0),
    seed: int = 0,
    *,
    phase: str | None = None,
    noise: float | None = None,
    centre: float = 0.0,
) -> tuple[sitk.Image, sitk.Image]:
    """Make a CT and its labels.

    The volume is centred on the upper abdomen, in the patient's axes (direction: identity, LPS).
    What is seen follows from its physical size: about 300 mm along z hold all organs; more adds
    the chest above and the pelvis below, then head and legs. Volumes are painted a few slices at
    a time, so that beyond the result little memory is needed.

    Args:
        shape: voxels (z, y, x).
        spacing: millimetres (z, y, x). Slices thicker than 2 mm average what they cover.
        seed: changes sizes, places and shapes of the anatomy, the contrast phase and the noise;
            the same seed gives the same patient at any shape and spacing.
        phase: one of `PHASES`; by default the seed decides.
        noise: standard deviation in HU; by default what the slice thickness makes usual.
        centre: millimetres by which the middle of the volume lies above the organs' middle.

    Returns:
        The CT (int16, HU) and its labels (uint8, the values of `inference.organs.ORGANS`), on
        the same grid.

    Raises:
        ValueError: a size or spacing is not positive, or there is no such phase.
    """
    if min(shape) < 1 or not min(spacing) > 0:
        raise ValueError(f"shape {shape} or spacing {spacing} is not positive")
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase {phase!r} is none of {', '.join(PHASES)}")
    rng = np.random.default_rng(seed)
    patient = _Patient(rng, phase)
    if noise is None:
        noise = float(np.clip(11.0 * np.sqrt(3.0 / spacing[0]), 6.0, 25.0))

    z, y, x = (
        ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
        for n, step in zip(shape, spacing, strict=True)
    )
    z += np.float32(centre)
    parts = 3 if spacing[0] > 2 else 1  # odd: the label is that of the middle part
    offsets = ((np.arange(parts) - parts // 2) * (spacing[0] / parts)).astype(np.float32)
    softness = max(1.0, spacing[1], spacing[2])

    ct = np.empty(shape, np.int16)
    labels = np.empty(shape, np.uint8)
    step = max(1, 3_000_000 // (shape[1] * shape[2] * parts))
    for start in range(0, shape[0], step):
        part = slice(start, min(start + step, shape[0]))
        heights = (z[part, None] + offsets).ravel()
        hu, organs = patient.render(heights, y, x, softness)
        hu = hu.reshape(-1, parts, *shape[1:]).mean(axis=1, dtype=np.float32)
        hu += _grain(rng, hu.shape, noise)
        ct[part] = np.clip(np.rint(hu), -1024, 3071)
        labels[part] = organs[parts // 2 :: parts]

    images = []
    for array in (ct, labels):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(tuple(float(step) for step in reversed(spacing)))
        image.SetOrigin((float(x[0]), float(y[0]), float(z[0])))
        images.append(image)
    return images[0], images[1]


class _Patient:
    """One random patient: body, diaphragm and the list of what is painted in order."""

    def __init__(self, rng: np.random.Generator, phase: str | None) -> None:
        self.rng = rng
        chosen = rng.choice(4, p=(0.2, 0.15, 0.5, 0.15))
        column = int(chosen) if phase is None else PHASES.index(phase)
        strength = rng.uniform(0.85, 1.15)
        self.hu = {
            name: row[0] + (row[column] - row[0]) * strength + rng.uniform(-4, 4)
            for name, row in _HU.items()
        }
        self.scale = rng.uniform(0.94, 1.06)
        self.fat = rng.uniform(7, 26)  # under the skin
        self.waves = rng.uniform(0, 2 * np.pi, (3, 4))
        self.lengths = rng.uniform(90, 170, (3, 4))
        self.dome = rng.normal(0, 4, 2)
        self.table = rng.uniform(4, 12)
        self.oral = float(rng.choice([20.0, 30.0, 190.0], p=(0.45, 0.35, 0.2)))
        self.paints = _anatomy(self)

    def near(self, point: Point, spread: float = 2.5) -> Point:
        """A point moved a little at random."""
        move = np.clip(self.rng.normal(0, spread, 3), -2 * spread, 2 * spread)
        return _point(np.asarray(point) + move)

    def path(self, *points: Point, spread: float = 2.5) -> list[Point]:
        return [self.near(point, spread) for point in points]

    def about(self, *sizes: float, spread: float = 0.06) -> tuple[float, ...]:
        """Sizes that all vary by the same random factor."""
        factor = 1 + float(np.clip(self.rng.normal(0, spread), -2 * spread, 2 * spread))
        return tuple(size * factor for size in sizes)

    def render(
        self, z: Float32Array, y: Float32Array, x: Float32Array, softness: float
    ) -> tuple[Float32Array, NDArray[np.uint8]]:
        """HU and labels of shape (z, y, x) at patient coordinates along each axis."""
        z, y, x = (axis / np.float32(self.scale) for axis in (z, y, x))
        space = _Space(self, z, y, x, softness / self.scale)
        space.paint_body()
        for paint in self.paints:
            space.paint(paint)
        return space.hu, space.labels


class _Space:
    """A few slices while they are painted."""

    def __init__(
        self, patient: _Patient, z: Float32Array, y: Float32Array, x: Float32Array, soft: float
    ) -> None:
        self.patient = patient
        self.axes = (x, y, z)
        self.soft = np.float32(soft)
        # Each coordinate is bent by a wave over the two others: smooth, and no two patients alike.
        waves, lengths = patient.waves, patient.lengths

        def bend(i: int, a: Float32Array, b: Float32Array) -> Float32Array:
            first = np.sin(2 * np.pi * a / lengths[i, 0] + waves[i, 0])
            second = np.sin(2 * np.pi * b / lengths[i, 1] + waves[i, 1])
            third = np.sin(2 * np.pi * a / lengths[i, 2] + waves[i, 2])
            fourth = np.sin(2 * np.pi * b / lengths[i, 3] + waves[i, 3])
            waved = first[:, None] * second + 0.6 * third[:, None] + 0.6 * fourth
            return (waved * (_WARP / 2.2)).astype(np.float32)

        self.x = x + bend(0, z, y)[:, :, None]
        self.y = y[:, None] + bend(1, z, x)[:, None, :]
        self.z = z[:, None, None] + bend(2, y, x)
        self.hu = np.full(self.x.shape, -1000, np.float32)
        self.labels = np.zeros(self.x.shape, np.uint8)

    def paint_body(self) -> None:
        """Table, skin, fat, wall, ribs, lungs, the fat of the abdomen: all over the slices."""
        x, y, z, hu = self.x, self.y, self.z, self.hu
        heights = self.axes[2]
        width = np.interp(heights, *_BODY_WIDTH).astype(np.float32)[:, None, None]
        depth = np.interp(heights, *_BODY_DEPTH).astype(np.float32)[:, None, None]
        middle = np.interp(heights, *_BODY_MIDDLE).astype(np.float32)[:, None, None]
        dy = y - middle
        # A "squircle" (Fong 2014): between an ellipse and a rectangle, without powers.
        u, v = np.square(x / width), np.square(dy / depth)
        radius = np.sqrt(u + v - 0.35 * np.minimum(u, 1) * np.minimum(v, 1))
        wall = np.sqrt(x * x + dy * dy)
        wall *= 1 - 1 / np.maximum(radius, 1e-3)  # negative inside the outer muscles
        del u, v, radius

        if heights[0] < _CROTCH + 30:  # two legs instead of one trunk
            legs = (
                np.hypot(np.abs(x) - 82, dy)
                - np.interp(heights, *_LEG).astype(np.float32)[:, None, None]
            )
            blend = np.clip((heights - _CROTCH + 30) / 60, 0, 1).astype(np.float32)[:, None, None]
            wall = legs + (wall - legs) * blend
        if heights[-1] > 320:
            wall = np.maximum(wall, z - 420)  # the neck ends in the head
            head = _ellipsoid((0.0, 5.0, 455.0), (74.0, 94.0, 108.0)).pieces[0][2](x, y, z)
            wall = np.minimum(wall, head)

        back = 1 / (1 + np.exp((60 - self.axes[1]) / 10)).astype(np.float32)[:, None]
        fat = np.float32(self.patient.fat) * (1 + 0.3 * np.cos(self.axes[0] / 60))
        fat = (fat * (1 - 0.45 * back)).astype(np.float32)
        fat = fat * np.clip((420 - heights) / 150, 0.15, 1).astype(np.float32)[:, None, None]
        skin = wall - fat

        bed = np.float32(_BED + self.patient.fat * 0.45 + self.patient.table)
        level = self.axes[1] - bed
        across = self.axes[0]
        curve = level[:, None] - 22 * (1 - np.cos(np.clip(across / 210, -1, 1) * np.pi / 2))
        inside = np.abs(across) < 210
        hu[:, (np.abs(curve) < 1.5) & inside] = -350
        hu[:, (curve > 1.5) & (level[:, None] < 38) & inside] = -940
        hu[:, (np.abs(level[:, None] - 38) < 1.5) & inside] = -350

        self._blend(hu, skin, 25.0)
        self._blend(hu, skin + 2, -106.0)
        self._blend(hu, wall, self.patient.hu["muscle"])
        self._blend(hu, np.abs(wall + 6) - 0.4, -60.0)  # fat between two layers of muscle

        lower = np.clip((60 - heights) / 80, 0, 1).astype(np.float32)[:, None, None]
        thick = 12 + (8 + 16 * lower) * back  # the back's muscles are thickest at the loins
        cavity = wall + thick
        trunk = np.maximum(z - 282, _CROTCH + 70 - z)
        cavity = np.maximum(cavity, trunk)
        self._blend(hu, cavity, -98.0)
        if heights[-1] > -90 and heights[0] < 290:
            self._ribs(wall)

        self.diaphragm = _diaphragm(self.axes[1], self.axes[0], self.patient.dome) - z
        self.abdomen = np.maximum(cavity, -0.75 * self.diaphragm)
        if heights[-1] > -60 and heights[0] < 290:
            lung = np.maximum(cavity + 1.5, 0.75 * (self.diaphragm + 2))
            lung = np.maximum(lung, 17 + 8 * np.sin(z / 40) - np.abs(x - 4))
            self._blend(hu, np.maximum(lung, z - 275) - 2.5, 42.0)
            # Vessels: threads that wind along z.
            wind_x = np.sin(0.21 * self.axes[0] + 1.8 * np.sin(heights / 23)[:, None])
            wind_y = np.sin(0.24 * self.axes[1] + 1.6 * np.sin(heights / 17 + 1)[:, None])
            vessels = wind_x[:, None, :] * wind_y[:, :, None]
            tissue = -845 + 800 * np.clip((np.abs(vessels) - 0.86) * 8, 0, 1).astype(np.float32)
            self._blend(hu, np.maximum(lung, z - 275), tissue)

    def _ribs(self, wall: Float32Array) -> None:
        """Slanted rings in the wall, bone at the side, cartilage in front of the costal arch."""
        slant = self.z - 0.5 * self.y
        pitch = 27.0
        ring = np.abs(slant / pitch - np.floor(slant / pitch) - 0.5) * pitch - 5.5
        rib = np.maximum(ring, np.abs(wall + 8) - 4)
        rib = np.maximum(rib, -62 - slant)
        arch = (-55 - 1.6 * (self.y + 20) - self.z) * 0.5
        rib = np.maximum(rib, np.maximum(arch, self.z - 268))
        rib = np.maximum(rib, 14 - np.abs(self.x))
        bone = np.where(self.y < -62, 110, 420).astype(np.float32)
        self._blend(self.hu, rib, bone)
        self._blend(self.hu, rib + 2, np.where(self.y < -62, 80, 190).astype(np.float32))

    def _blend(self, hu: Float32Array, distance: Float32Array, value: Any) -> None:
        """Paint HU where the distance is negative; voxels at the surface get their share."""
        share = np.clip(0.5 - distance / self.soft, 0, 1)
        hu += share * (value - hu)

    def paint(self, paint: _Paint) -> None:
        """Paint one solid in those slices that it reaches."""
        margin = _WARP + float(self.soft) + paint.halo
        block = self._block(*paint.solid.box, margin)
        if block is None:
            return
        x, y, z = self.x[block], self.y[block], self.z[block]
        distance = np.full(x.shape, _FAR, np.float32)
        origin = [side.start for side in block]
        for lower, upper, piece in paint.solid.pieces:
            inner = self._block(lower, upper, margin)
            if inner is None:
                continue
            local = tuple(
                slice(side.start - o, side.stop - o) for side, o in zip(inner, origin, strict=True)
            )
            part = distance[local]
            np.minimum(part, piece(x[local], y[local], z[local]), out=part)
        if paint.in_abdomen:
            distance = np.maximum(distance, self.abdomen[block] + 1.5)
        hu, labels = self.hu[block], self.labels[block]
        if paint.halo:
            fat = distance - paint.halo
            if not paint.in_abdomen:  # fat does not reach into the wall, the spine or the lung
                fat = np.maximum(fat, self.abdomen[block])
            self._blend(hu, fat, -98.0)
            labels[fat < 0] = 0
        value = paint.hu(distance, x, y, z) if callable(paint.hu) else paint.hu
        self._blend(hu, distance, value)
        labels[distance < 0] = paint.label

    def _block(self, lower: Point, upper: Point, margin: float) -> Box | None:
        sides = []
        for axis, low, high in zip(self.axes, lower, upper, strict=True):
            start, stop = np.searchsorted(axis, (low - margin, high + margin))
            if start >= stop:
                return None
            sides.append(slice(int(start), int(stop)))
        return sides[2], sides[1], sides[0]


# Half width and depth of the trunk without the fat under the skin, and its middle, by height.
_BODY_WIDTH = (
    (-360, -300, -250, -170, -90, 0, 80, 160, 220, 260, 300, 325, 345, 420),
    (150, 158, 160, 150, 138, 146, 152, 153, 156, 140, 95, 62, 56, 50),
)
_BODY_DEPTH = (
    (-360, -280, -200, -100, 0, 80, 160, 220, 270, 310, 345, 420),
    (88, 102, 104, 100, 107, 112, 112, 104, 88, 66, 58, 55),
)
_BODY_MIDDLE = ((-350, -100, 0, 150, 260, 340, 420), (8, 4, 6, 8, 12, 16, 18))
_LEG = ((-1000, -750, -600, -450, -340), (38, 52, 58, 70, 80))
_CROTCH = -330.0
_BED = 122.0

_SPINE = (
    (-245, -200, -150, -110, -60, 0, 80, 160, 260, 330, 400),
    (92, 84, 62, 52, 50, 56, 68, 76, 64, 44, 34),
)


def _diaphragm(y: Float32Array, x: Float32Array, jitter: NDArray[np.float64]) -> Float32Array:
    """Height of the diaphragm, shape (y, x): two domes and the seat of the heart between them."""

    def dome(cx: float, cy: float, rx: float, ry: float, top: float, fall: float) -> Any:
        r = np.square((x - cx) / rx) + np.square((y[:, None] - cy) / ry)
        return top - fall * r**1.35

    domes = (
        dome(-68, -8, 78, 98, 98 + jitter[0], 95),
        dome(66, 4, 78, 98, 92 + jitter[1], 88),
        dome(2, -22, 62, 72, 84, 60),
    )
    # log-sum-exp: a maximum without creases
    return np.asarray(10 * np.log(sum(np.exp(d / 10) for d in domes)), np.float32)


def _point(values: Any) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _turned(about_x: float, about_y: float, about_z: float) -> NDArray[np.float64]:
    """Rotation matrix from three angles in degrees."""
    a, b, c = np.deg2rad((about_x, about_y, about_z))
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _ellipsoid(
    centre: Point, radii: Sequence[float], angles: tuple[float, float, float] = (0, 0, 0)
) -> _Solid:
    turn = _turned(*angles)
    reach = np.sqrt(np.square(turn * np.asarray(radii)).sum(axis=1))
    lower, upper = _point(np.asarray(centre) - reach), _point(np.asarray(centre) + reach)
    rows = turn.T.astype(np.float32)
    inverse = [np.float32(1 / r) for r in radii]

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        dx, dy, dz = (p - np.float32(c) for p, c in zip((x, y, z), centre, strict=True))
        first = second = np.zeros_like(dx)
        for row, inv in zip(rows, inverse, strict=True):
            if angles == (0, 0, 0):
                q = (dx, dy, dz)[int(np.argmax(row))] * inv
            else:
                q = (row[0] * dx + row[1] * dy + row[2] * dz) * inv
            first = first + q * q
            second = second + np.square(q * inv)
        k = np.sqrt(first)
        return k * (k - 1) / np.sqrt(second + np.float32(1e-12))

    return _Solid(((lower, upper, distance),))


def _tube(points: Sequence[Point], radii: Sequence[float], step: float = 7.0) -> _Solid:
    """A bent tube: a Catmull-Rom curve through points, drawn as tapered capsules."""
    knots = np.column_stack([np.asarray(points, float), np.asarray(radii, float)])
    ends = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    curve = []
    for p0, p1, p2, p3 in zip(ends[:-3], ends[1:-2], ends[2:-1], ends[3:], strict=True):
        n = max(1, round(float(np.linalg.norm((p2 - p1)[:3])) / step))
        for t in np.arange(n) / n:
            curve.append(
                0.5
                * (
                    2 * p1
                    + (p2 - p0) * t
                    + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
                    + (3 * p1 - p0 - 3 * p2 + p3) * t**3
                )
            )
    curve.append(knots[-1])
    return _Solid(tuple(_capsule(a, b) for a, b in pairwise(curve)))


def _capsule(start: NDArray[np.float64], end: NDArray[np.float64]) -> tuple[Point, Point, Distance]:
    a, ra, b, rb = start[:3], float(start[3]), end[:3], float(end[3])
    along = (b - a).astype(np.float32)
    square = np.float32(max(float(np.square(b - a).sum()), 1e-6))
    origin = a.astype(np.float32)

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        dx, dy, dz = x - origin[0], y - origin[1], z - origin[2]
        t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / square, 0, 1)
        dx -= t * along[0]
        dy -= t * along[1]
        dz -= t * along[2]
        return np.sqrt(dx * dx + dy * dy + dz * dz) - (np.float32(ra) + t * np.float32(rb - ra))

    reach = max(ra, rb)
    lower, upper = _point(np.minimum(a, b) - reach), _point(np.maximum(a, b) + reach)
    return lower, upper, distance


def _cut(solid: _Solid, *tools: Distance) -> _Solid:
    """The part of a solid where every tool's distance is negative too."""

    def limited(piece: Distance) -> Distance:
        def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
            result = piece(x, y, z)
            for tool in tools:
                result = np.maximum(result, tool(x, y, z))
            return result

        return distance

    return _Solid(tuple((low, high, limited(piece)) for low, high, piece in solid.pieces))


def _outside(solid: _Solid) -> Distance:
    """A tool for `_cut`: keeps what lies outside a solid of one piece."""
    inner = solid.pieces[0][2]
    return lambda x, y, z: -inner(x, y, z)


def _above(height: float, per_x: float = 0.0, per_y: float = 0.0) -> Distance:
    """A tool for `_cut`: keeps what lies above the plane z = height + per_x x + per_y y."""
    norm = np.float32(1 / np.sqrt(1 + per_x**2 + per_y**2))
    return lambda x, y, z: ((height + per_x * x + per_y * y) - z) * norm


def _melt(first: _Solid, second: _Solid, reach: float) -> _Solid:
    """Union of two one-piece solids with a smooth seam (Quilez's polynomial minimum)."""
    one, two = first.pieces[0][2], second.pieces[0][2]
    k = np.float32(reach)

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        a, b = one(x, y, z), two(x, y, z)
        seam = np.maximum(k - np.abs(a - b), 0) / k
        return np.minimum(a, b) - seam * seam * (k / 4)

    lower, upper = (first | second).box
    return _Solid(((lower, upper, distance),))


def _gut(wall: float, content: float, thickness: float, gas_above: float | None) -> Intensity:
    """HU of a hollow organ: a wall, its content, and gas in front of a level (patients lie)."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        inner = np.clip((-d - thickness) / 1.5 + 0.5, 0, 1)
        filling: Any = np.float32(content)
        if gas_above is not None:
            gas = np.clip((gas_above - y) / 1.5 + 0.5, 0, 1)
            filling = content + gas * (-950 - content)
        return (wall + inner * (filling - wall)).astype(np.float32)

    return hu


def _patchy(wall: float, content: float, thickness: float, phase: float) -> Intensity:
    """HU of bowel: a wall around content with bubbles of gas, here more, there none."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        inner = np.clip((-d - thickness) / 1.5 + 0.5, 0, 1)
        where = np.sin(x / 17 + phase) + np.sin(z / 21 + 2 * phase) + np.sin(y / 9) - y / 40
        gas = np.clip((where - 1.6) * 4, 0, 1)
        crumbs = 25 * np.sin(x / 2.1) * np.sin(y / 1.9) * np.sin(z / 2.3)
        filling = content + crumbs + gas * (-900 - content)
        return (wall + inner * (filling - wall)).astype(np.float32)

    return hu


def _renal(cortex: float, medulla: float, phase: float) -> Intensity:
    """HU of a kidney: cortex outside and between the pyramids of the medulla."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        columns = 3.5 * np.sin(z / 3.2 + phase) * np.sin((x + y) / 4.0)
        deep = np.clip((-d - 7 + columns) / 3 + 0.5, 0, 1)
        return (cortex + deep * (medulla - cortex)).astype(np.float32)

    return hu


def _spine_solid(half_x: float, half_y: float, dy: float) -> _Solid:
    """A column that follows the spine from the sacrum to the neck."""
    low, high = -250.0, 400.0

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        middle = np.interp(z, *_SPINE).astype(np.float32) + np.float32(dy)
        u, v = x / np.float32(half_x), (y - middle) / np.float32(half_y)
        k = np.sqrt(u * u + v * v) - 1
        return np.maximum(k * np.float32(min(half_x, half_y)), low - z)

    return _Solid((((-half_x, 20 + dy - half_y, low), (half_x, 95 + dy + half_y, high), distance),))


def _vertebra(bone: float, disc: float) -> Intensity:
    """HU of the spine's column: spongy bone in a shell, with a disc every 34 mm."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        step = np.abs(z / 34 - np.floor(z / 34) - 0.5) * 34  # 17 in a disc's middle
        shell = np.clip(1 - np.minimum(np.abs(d + 1), np.abs(step - 11.5)) / 1.2, 0, 1)
        value = bone + shell * (430 - bone)
        value = np.where(step > 12.5, disc, value)
        return np.where(z < -170, bone + 40, value).astype(np.float32)

    return hu


def _arch(half_height: float) -> Distance:
    """A tool for `_cut`: one vertebral arch per vertebra."""
    return lambda x, y, z: np.abs(z / 34 - np.floor(z / 34) - 0.5) * 34 - np.float32(half_height)


def _coils(rng: np.random.Generator) -> list[Point]:
    """The small bowel's course: to and fro through the middle of the lower abdomen."""
    points: list[Point] = []
    for row, height in enumerate(np.linspace(-58, -205, 6)):
        for column, depth in enumerate((-66, -42, -18)):
            sides = np.linspace(-72, 88, 5) * (0.8 if depth > -30 else 1)
            for side in sides if (row + column) % 2 else sides[::-1]:
                points.append(_point(np.array([side, depth, height]) + rng.normal(0, 7, 3)))
    return points


def _anatomy(p: _Patient) -> list[_Paint]:
    """All solids of a patient, in the order in which they are painted: later ones win."""
    hu, rng, label = p.hu, p.rng, LABEL_OF
    wall = hu["gut_wall"]
    paints: list[_Paint] = []

    def add(
        solid: _Solid, value: Intensity, organ: str = "", halo: float = 0, in_abdomen: bool = False
    ) -> None:
        paints.append(_Paint(solid, value, label[organ] if organ else 0, halo, in_abdomen))

    # --- chest, pelvis, bones: nothing here is labelled -----------------------------------------
    add(_ellipsoid(p.near((20, -32, 138)), p.about(60, 48, 56), (0, 25, 20)), -90)
    add(_ellipsoid(p.near((20, -32, 138)), p.about(55, 43, 51), (0, 25, 20)), hu["heart"])
    add(_tube([(0, 8, 215), (0, 2, 260), (0, -8, 340)], [9, 9, 9]), -990)
    for side in (-1, 1):
        add(_tube([(side * 12, 14, 200), (0, 8, 218)], [6, 8]), -990)
        add(
            _tube(
                [
                    (side * 34, 42, -10),
                    (side * 44, 38, -80),
                    (side * 58, 22, -160),
                    (side * 78, -12, -250),
                ],
                [9, 21, 24, 18],
            ),
            hu["muscle"],
        )
        add(_ellipsoid((side * 82, 55, -60), (28, 9, 60), (0, 0, side * 25)), hu["muscle"])
        ilium = _ellipsoid((side * 92, 32, -185), (9, 62, 66), (0, side * 22, -side * 32))
        add(ilium, _bone())
        add(_ellipsoid((side * 84, 12, -272), (36, 36, 38)), _bone())
        add(_ellipsoid((side * 84, 12, -272), (27, 27, 27)), 60)
        add(_ellipsoid((side * 84, 10, -272), (24, 24, 24)), _bone())
        add(
            _tube(
                [
                    (side * 84, 10, -272),
                    (side * 118, 16, -300),
                    (side * 112, 12, -370),
                    (side * 84, 10, -900),
                ],
                [13, 19, 15, 13],
                25,
            ),
            _bone(),
        )
        add(_tube([(side * 70, -30, -275), (side * 12, -58, -290)], [12, 10]), _bone())
        add(_tube([(side * 60, 30, -290), (side * 48, 45, -322)], [15, 13]), _bone())
    skull = _ellipsoid((0, 5, 460), (70, 89, 98))
    add(skull, 900)
    add(_ellipsoid((0, 5, 462), (63, 82, 90)), 35)
    add(_spine_solid(23, 17, 0), _vertebra(165, 75))
    arch = _cut(_spine_solid(20, 16, 24), _arch(11.5))
    add(arch, 330)
    add(_cut(_ellipsoid((0, 60, 40), (46, 12, 400)), _arch(7), _above(-145), _near_spine(22)), 260)
    add(_cut(_ellipsoid((0, 92, 60), (4.5, 30, 400)), _arch(8.5), _above(-145)), 330)
    add(_spine_solid(9.5, 8, 25), 22)
    add(_spine_solid(5.5, 5, 25), 38)
    add(_tube([(0, -100, 190), (0, -106, 110)], [11, 9]), _bone())

    # --- bowel ------------------------------------------------------------------------------------
    add(
        _tube(_coils(rng), [float(r) for r in rng.uniform(10.5, 13.5, 90)], 12),
        _patchy(wall, p.oral, 2.2, float(rng.uniform(0, 6))),
        in_abdomen=True,
    )
    colon = p.path(
        (-92, 8, -168), (-108, 18, -128), (-110, 18, -92), (-98, -8, -78), (-82, -52, -92),
        (-35, -74, -108), (25, -78, -100), (75, -62, -72), (104, -22, -28), (115, 18, -30),
        (116, 26, -75), (112, 26, -130), (92, 8, -178), (45, 8, -196), (20, 38, -222),
        (2, 50, -250), (0, 42, -290), spread=4)  # fmt: skip
    girth = [24, 23, 21, 19, 20, 19, 18, 19, 19, 17, 15, 15, 15, 15, 17, 20, 14]
    add(
        _haustra(colon, girth), _patchy(wall, float(rng.uniform(10, 60)), 2.5, 1.0), in_abdomen=True
    )
    add(
        _ellipsoid(p.near((0, -22, -262), 4), p.about(42, 34, 32, spread=0.15)),
        _gut(wall, 6, 3, None),
    )
    add(_ellipsoid((0, 14, -292), (24, 18, 20)), hu["muscle"])

    # --- the 13 organs and the vessels between them ---------------------------------------------
    stomach = p.path((62, 14, 52), (74, -8, 36), (78, -32, 12), (66, -52, -10), (40, -60, -28),
                     (10, -54, -28), (-10, -46, -20))  # fmt: skip
    add(
        _tube(stomach, p.about(31, 33, 29, 25, 20, 16, 10, spread=0.1)),
        _gut(wall, p.oral, 4, float(rng.uniform(-70, -30))),
        "stomach",
        in_abdomen=True,
    )

    spleen = _ellipsoid(p.near((100, 38, 28)), p.about(34, 52, 56, spread=0.1), (18, 10, -28))
    add(
        _cut(spleen, _outside(_ellipsoid((60, 6, 24), (37, 46, 60)))),
        hu["spleen"],
        "spleen",
        in_abdomen=True,
    )

    right = _ellipsoid(p.near((-70, -6, 22)), p.about(76, 92, 98), (0, 0, 8))
    left = _ellipsoid(p.near((0, -52, 48)), p.about(78, 36, 34), (-8, 14, 6))
    tilt = float(rng.uniform(0.52, 0.62))
    # The visceral surface: from the low right edge up to the left, higher at the back.
    under = _above(float(rng.uniform(10, 20)), tilt, 0.2)
    liver = _cut(_melt(right, left, 26), under, _outside(_ellipsoid((6, 30, 20), (30, 28, 90))))
    add(liver, hu["liver"], "liver", in_abdomen=True)
    caudate = _ellipsoid(p.near((-14, 4, 44)), (15, 13, 24))
    add(caudate, hu["liver"], "liver", in_abdomen=True)
    cleft = _ellipsoid((6, -52, 26), (1.6, 26, 22), (0, 0, 8))
    add(cleft, -70.0)
    veins = (
        ([(-26, 8, 84), (-62, -2, 66), (-98, 4, 40)], [5, 4, 2]),
        ([(-26, 6, 84), (-44, -34, 64), (-58, -62, 34)], [5, 4, 2]),
        ([(-24, 4, 84), (2, -34, 66), (16, -58, 54)], [5, 3.5, 2]),
        ([(-28, -14, 16), (-58, -8, 22), (-88, 12, 14)], [6, 5, 2.5]),
        ([(-58, -8, 22), (-84, -38, 18)], [5, 2.5]),
        ([(-28, -14, 16), (-10, -36, 34), (20, -52, 44)], [6, 4, 2]),
    )
    for points, radii in veins:
        add(_tube(p.path(*points, spread=2), radii), hu["portal_vein"], "liver", in_abdomen=True)

    bladder = p.path((-50, -26, 2), (-58, -44, -14), (-64, -58, -32))
    add(_tube(bladder, p.about(6, 13, 15, spread=0.15)), _gut(wall, 9, 1.5, None), "gallbladder")

    duodenum = p.path(
        (-14, -44, -20),
        (-36, -34, -16),
        (-46, -14, -34),
        (-47, 2, -62),
        (-34, 10, -84),
        (-6, 0, -88),
        (20, 0, -80),
        (36, -6, -58),
        spread=1.5,
    )
    add(
        _tube(duodenum, p.about(10, 12, 12, 11.5, 11, 9.5, 10, 10)),
        _gut(wall, p.oral, 2.5, -38),
        "duodenum",
        halo=1.5,
    )

    pancreas = p.path((-22, -2, -50), (-25, -14, -30), (-6, -26, -14), (18, -22, -2), (46, -8, 8),
                      (80, 12, 18), spread=1.5)  # fmt: skip
    lobules = p.about(11, 13.5, 8.5, 9, 9.5, 8.5, spread=0.08)
    add(_tube(pancreas, lobules), hu["pancreas"], "pancreas", halo=1.2)
    splenic = [(x, y + 9, z) for x, y, z in pancreas[2:]]
    add(_tube(splenic, [4] * 4), hu["portal_vein"])
    add(_tube([splenic[0], (-24, -12, 14)], [6.5, 7]), hu["portal_vein"])
    add(_tube([(-4, -16, -14), (4, -14, -70), (0, -30, -120)], [5.5, 5, 3]), hu["portal_vein"])

    for organ, centre, side in (
        ("right_kidney", (-66, 40, -32), -1),
        ("left_kidney", (64, 40, -16), 1),
    ):
        place = np.asarray(p.near(centre, 3))
        kidney = _ellipsoid(_point(place), p.about(28, 25.5, 54), (-10, -side * 11, side * 28))
        hollow = _point(place + (-side * 19, -9, 0))
        sinus = _ellipsoid(hollow, (15, 9, 21), (-10, -side * 11, side * 28))
        add(kidney, _renal(hu["cortex"], hu["medulla"], float(place[2])), organ, halo=6)
        add(sinus, -85.0)
        add(_ellipsoid(hollow, (9, 5, 13), (-10, -side * 11, side * 28)), hu["renal_pelvis"])
        ureter = [_point(place + (-side * 22, -4, -8)), (side * 42, 22, -90), (side * 48, 10, -160),
                  (side * 38, 20, -240)]  # fmt: skip
        add(_tube(ureter, [3.5, 2.5, 2.5, 2.5], 12), hu["renal_pelvis"])

    for organ, (cx, cy, cz), side in (
        ("right_adrenal_gland", p.near((-33, 34, 30), 1.5), -1),
        ("left_adrenal_gland", p.near((33, 26, 22), 1.5), 1),
    ):
        body = _ellipsoid((cx, cy - 5, cz), p.about(3.4, 8, 13), (8, 0, side * 8))
        inner = _ellipsoid((cx - side * 2.5, cy + 6, cz - 3), p.about(2.8, 10, 14),
                           (8, 0, side * 12))  # fmt: skip
        outer = _ellipsoid((cx + side * 4.5, cy + 5, cz - 4), p.about(2.8, 10.5, 14),
                           (8, 0, -side * 28))  # fmt: skip
        add(body | inner | outer, hu["adrenal"], organ, halo=2)

    aorta = p.path(
        (-8, -22, 246),
        (4, 2, 262),
        (20, 36, 244),
        (24, 46, 180),
        (22, 46, 120),
        (13, 37, 66),
        (9, 27, 10),
        (8, 21, -50),
        (5, 21, -116),
        spread=1.5,
    )
    width = p.about(14, 14, 13, 12.5, 12, 11.5, 10.5, 9.5, 8.5, spread=0.1)
    add(_tube(aorta, width), hu["artery"], "aorta", halo=1.5)
    end = aorta[-1]
    for side in (-1, 1):
        add(_tube([(end[0] + side * 6, end[1], end[2] - 9), (side * 38, 28, -170),
                   (side * 64, -14, -250)], [6, 5.5, 5], 12), hu["artery"])  # fmt: skip
        add(_tube([(side * 8, 22, -14), (side * 42, 30, -24)], [3.5, 3]), hu["artery"])
    add(
        _tube([(9, 18, 14), (8, 2, 2), (10, -12, -60), (6, -28, -120)], [4.2, 4, 3.8, 2.5]),
        hu["artery"],
    )
    add(_tube([(10, 20, 26), (12, 0, 26), (52, 2, 20)], [4.5, 4, 3]), hu["artery"])

    cava = p.path((-20, 28, -120), (-23, 23, -60), (-25, 18, 0), (-27, 14, 50), (-24, 2, 92),
                  (-18, -12, 118), spread=1.5)  # fmt: skip
    add(
        _tube(cava, p.about(9, 9.5, 10.5, 11.5, 11.5, 11, spread=0.1)),
        hu["vena_cava"],
        "inferior_vena_cava",
    )
    for side in (-1, 1):
        add(_tube([(-20 + side * 8, 30, -128), (side * 44, 36, -180), (side * 58, -2, -250)],
                  [8, 7, 6], 12), hu["vena_cava"])  # fmt: skip
    add(_tube([(-16, 12, -10), (8, 9, -14), (42, 26, -16)], [4, 4, 4.5]), hu["vena_cava"])

    gullet = p.path((4, 30, 300), (6, 28, 230), (8, 26, 160), (10, 20, 110), (18, 14, 76),
                    (36, 8, 56), spread=1.5)  # fmt: skip
    add(_tube(gullet, p.about(7, 7, 8, 8.5, 9, 9)),
        _gut(hu["esophagus"], float(rng.choice([-300, 20, 30])), 5.5, None), "esophagus",
        halo=1.0)  # fmt: skip
    return paints


def _haustra(points: Sequence[Point], radii: Sequence[float]) -> _Solid:
    """The colon: a tube whose girth swells and narrows along its way."""
    dense_points: list[Point] = []
    dense_radii: list[float] = []
    for (a, ra), (b, rb) in pairwise(zip(points, radii, strict=True)):
        for t in (0.0, 1 / 3, 2 / 3):
            dense_points.append(_point(np.asarray(a) + t * (np.asarray(b) - np.asarray(a))))
            dense_radii.append((ra + t * (rb - ra)) * (1.0 if len(dense_radii) % 2 else 0.84))
    return _tube([*dense_points, points[-1]], [*dense_radii, radii[-1]], 8)


def _bone() -> Intensity:
    """HU of a flat or long bone: spongy inside, hard outside."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        hard = np.clip((d + 4) / 1.5 + 0.5, 0, 1)
        return (130 + hard * 420).astype(np.float32)

    return hu


def _near_spine(dy: float) -> Distance:
    """A tool for `_cut`: keeps what lies within 9 mm before or behind a line along the spine."""

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        middle = np.interp(z, *_SPINE).astype(np.float32) + np.float32(dy)
        return np.abs(y - middle) - np.float32(9)

    return distance


def _grain(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> Float32Array:
    """Noise with the short-range correlation that reconstruction kernels leave."""
    grain = rng.standard_normal(tuple(shape), np.float32)
    for axis in (1, 2):
        grain = grain + 0.45 * np.roll(grain, 1, axis)
    grain *= np.float32(sigma / (1 + 0.45**2))
    return grain
