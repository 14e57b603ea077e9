"""Paints a patient into slices: the body all over, then one solid over the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.grid import Box
from inference.phantom.anatomy import Paint
from inference.phantom.patient import Patient
from inference.phantom.solids import Float32Array, Point, ellipsoid

_WARP = 5.0  # mm by which anatomy is bent at most, per axis
_FAR = 1e3  # mm: outside, where no piece of a solid reaches

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


def render(
    patient: Patient,
    paints: Sequence[Paint],
    z: Float32Array,
    y: Float32Array,
    x: Float32Array,
    softness: float,
) -> tuple[Float32Array, NDArray[np.uint8]]:
    """HU and labels of shape (z, y, x).

    Args:
        patient: whose body is painted.
        paints: what is painted into it, in order.
        z: coordinates in mm, ascending.
        y: likewise.
        x: likewise.
        softness: mm over which surfaces are blurred.
    """
    z, y, x = (axis / np.float32(patient.scale) for axis in (z, y, x))
    canvas = _Canvas(patient, z, y, x, softness / patient.scale)
    canvas.paint_body()
    for paint in paints:
        canvas.paint(paint)
    return canvas.hu, canvas.labels


class _Canvas:
    """A few slices while they are painted."""

    def __init__(
        self, patient: Patient, z: Float32Array, y: Float32Array, x: Float32Array, soft: float
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
            head = ellipsoid((0.0, 5.0, 455.0), (74.0, 94.0, 108.0)).pieces[0][2](x, y, z)
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

    def paint(self, paint: Paint) -> None:
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
