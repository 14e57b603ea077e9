"""Which way round a volume lies, and how to turn it to the model's axes and back.

SimpleITK images are patient coordinates in LPS: x to the Left, y to the Posterior, z to the
Superior. A volume turned to the orientation "LPS" has its first *image* axis to the left; as a
numpy array, whose axes run the other way round, it is (z to superior, y to posterior, x to left).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LETTERS = ("LR", "PA", "SI")  # positive and negative sense of the patient's x, y, z


@dataclass(frozen=True)
class Turn:
    """A permutation of array axes and flips: a view, never a copy.

    What is written to the view lies in the stored array as it should: nothing has to be turned
    back.

    Attributes:
        axes: ``axes[i]`` is the input array axis that becomes output axis ``i`` (z, y, x).
        flips: whether output axis ``i`` is reversed after the permutation.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array of shape (z, y, x) as stored to the model's axes."""
        turned: NDArray[Any] = array.transpose(self.axes)[self._slices]
        return turned

    def reorder(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Put one value per stored array axis (a spacing, say) in the model's axis order."""
        return tuple(values[axis] for axis in self.axes)

    @property
    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)


def turn_to(
    direction: tuple[float, ...],
    orientation: str | None = "LPS",
    transpose: tuple[int, int, int] = (0, 1, 2),
) -> Turn:
    """The turn from a stored image to an orientation.

    Oblique images are turned to the nearest orientation; they are not resampled.

    Args:
        direction: the image's direction cosines, nine numbers as ``GetDirection()`` gives them
            (columns are the image's axes).
        orientation: three letters, the sense of the x, y and z image axes after the turn, in
            SimpleITK's meaning ("LPS": towards left, posterior, superior); ``None`` keeps the
            axes as they are stored.
        transpose: the array axis after the turn that becomes each axis in the end.

    Returns:
        The turn for arrays of shape (z, y, x).

    Raises:
        ValueError: the orientation is not three letters naming each of the patient's axes once.
    """
    if orientation is None:
        return Turn(transpose, (False, False, False))
    wanted = []
    for letter in orientation:
        row = next((i for i, pair in enumerate(_LETTERS) if letter in pair), None)
        if row is None:
            raise ValueError(f"orientation {orientation!r}: {letter!r} is none of LRPASI")
        wanted.append((row, 1.0 if letter == _LETTERS[row][0] else -1.0))
    if sorted(row for row, _ in wanted) != [0, 1, 2]:
        raise ValueError(f"orientation {orientation!r} does not name each axis once")

    cosines = np.asarray(direction, dtype=float).reshape(3, 3)
    # order[i]: the stored image axis that best follows the patient's axis i.
    order = max(
        permutations(range(3)),
        key=lambda p: sum(abs(float(cosines[row, axis])) for row, axis in enumerate(p)),
    )
    image_axes = [order[row] for row, _ in wanted]
    flips = [bool(cosines[row, order[row]] * sense < 0) for row, sense in wanted]
    # Image axes are (x, y, z), array axes (z, y, x): number them from the other end.
    axes = [2 - axis for axis in reversed(image_axes)]
    flips.reverse()
    first, second, third = transpose
    return Turn(
        (axes[first], axes[second], axes[third]), (flips[first], flips[second], flips[third])
    )
