"""Solids given by signed distances: ellipsoids, bent tubes, and what is cut from or melted of them.

Coordinates are a patient's, in mm: x to the left, y to the back, z to the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Array: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Distance: TypeAlias = Callable[[Float32Array, Float32Array, Float32Array], Float32Array]
"""Signed distance in mm at x, y, z; negative inside."""


@dataclass(frozen=True)
class Solid:
    """A body given by a signed distance (negative inside), exact enough near its surface.

    Attributes:
        pieces: distance functions, each with the box (lower, upper corner, x y z) in which it
            matters; the solid is their union.
    """

    pieces: tuple[tuple[Point, Point, Distance], ...]

    def __or__(self, other: Solid) -> Solid:
        return Solid(self.pieces + other.pieces)

    @property
    def box(self) -> tuple[Point, Point]:
        """Lower and upper corner of what holds it all."""
        lower = np.min([piece[0] for piece in self.pieces], axis=0)
        upper = np.max([piece[1] for piece in self.pieces], axis=0)
        return point_of(lower), point_of(upper)


def ellipsoid(
    centre: Point, radii: Sequence[float], angles: tuple[float, float, float] = (0, 0, 0)
) -> Solid:
    """An ellipsoid, turned by angles in degrees about x, y and z."""
    turn = _turned(*angles)
    reach = np.sqrt(np.square(turn * np.asarray(radii)).sum(axis=1))
    lower, upper = point_of(np.asarray(centre) - reach), point_of(np.asarray(centre) + reach)
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

    return Solid(((lower, upper, distance),))


def tube(points: Sequence[Point], radii: Sequence[float], step: float = 7.0) -> Solid:
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
    return Solid(tuple(_capsule(a, b) for a, b in pairwise(curve)))


def cut(solid: Solid, *tools: Distance) -> Solid:
    """The part of a solid where every tool's distance is negative too."""

    def limited(piece: Distance) -> Distance:
        def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
            result = piece(x, y, z)
            for tool in tools:
                result = np.maximum(result, tool(x, y, z))
            return result

        return distance

    return Solid(tuple((low, high, limited(piece)) for low, high, piece in solid.pieces))


def melt(first: Solid, second: Solid, reach: float) -> Solid:
    """Union of two one-piece solids with a smooth seam (Quilez's polynomial minimum)."""
    one, two = first.pieces[0][2], second.pieces[0][2]
    k = np.float32(reach)

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        a, b = one(x, y, z), two(x, y, z)
        seam = np.maximum(k - np.abs(a - b), 0) / k
        return np.minimum(a, b) - seam * seam * (k / 4)

    lower, upper = (first | second).box
    return Solid(((lower, upper, distance),))


def outside(solid: Solid) -> Distance:
    """A tool for `cut`: keeps what lies outside a solid of one piece."""
    inner = solid.pieces[0][2]
    return lambda x, y, z: -inner(x, y, z)


def above(height: float, per_x: float = 0.0, per_y: float = 0.0) -> Distance:
    """A tool for `cut`: keeps what lies above the plane z = height + per_x x + per_y y."""
    norm = np.float32(1 / np.sqrt(1 + per_x**2 + per_y**2))
    return lambda x, y, z: ((height + per_x * x + per_y * y) - z) * norm


def point_of(values: Any) -> Point:
    """Three numbers of any kind as a point."""
    x, y, z = (float(value) for value in values)
    return x, y, z


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
    lower, upper = point_of(np.minimum(a, b) - reach), point_of(np.maximum(a, b) + reach)
    return lower, upper, distance


def _turned(about_x: float, about_y: float, about_z: float) -> NDArray[np.float64]:
    """Rotation matrix from three angles in degrees."""
    a, b, c = np.deg2rad((about_x, about_y, about_z))
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx
