"""What becomes of a channel's intensities: nnU-Net v2's normalisations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import CaseError
from inference.grid import Mask
from inference.kinds import FLAG, TEXT, number, one_of, optional, several, with_tuples, wrong
from inference.preprocess.resample import Float32Array

_EPSILON = 1e-8  # nnU-Net's: nothing is divided by less

_KINDS = {
    "name": TEXT,
    "normalisation": one_of("ct", "z-score", "none", "rescale", "rgb"),
    "clip": optional(several(number(), 2)),
    "subtract": number(),
    "divide": number(0),
    "masked": FLAG,
}


@dataclass(frozen=True)
class Channel:
    """What becomes of a channel's intensities.

    Attributes:
        name: what the channel shows ("CT", "T1", ...).
        normalisation: "ct" (clip, subtract and divide by fixed values), "z-score" (by the
            volume's own mean and standard deviation), "none", "rescale" (to 0 to 1) or "rgb"
            (0 to 255 becomes 0 to 1).
        clip: for "ct", the range to which intensities are limited.
        subtract: for "ct", taken from the clipped intensities.
        divide: for "ct", then they are divided by this.
        masked: for "z-score", whether mean and deviation are those of what is not zero (with
            the holes in it), and all else is left as it is.
    """

    name: str
    normalisation: str
    clip: tuple[float, float] | None = None
    subtract: float = 0.0
    divide: float = 1.0
    masked: bool = False

    def __post_init__(self) -> None:
        kinds = _KINDS | ({"clip": several(number(), 2)} if self.normalisation == "ct" else {})
        problems = wrong(vars(self), kinds)
        if self.clip is not None and not problems and self.clip[0] > self.clip[1]:
            problems.append(f"clip {list(self.clip)} is not a range")
        if problems:
            raise ValueError("; ".join(problems))

    @staticmethod
    def of(content: Mapping[str, Any]) -> Channel:
        """The channel that a plan describes.

        Raises:
            ValueError: it describes none.
        """
        try:
            return Channel(**with_tuples(content))
        except TypeError as error:  # a key that it does not have, or lacks
            raise ValueError(str(error).split("__init__() ")[-1]) from None

    def apply(self, values: Float32Array, inside: Mask | None = None) -> None:
        """Normalise in place.

        Args:
            values: float32 array (z, y, x).
            inside: what is not zero, where ``masked`` wants to know.

        Raises:
            CaseError: "rgb" values that are not in 0 to 255.
        """
        if self.normalisation == "ct":
            assert self.clip is not None
            np.clip(values, *self.clip, out=values)
            values -= np.float32(self.subtract)
            values /= np.float32(max(self.divide, _EPSILON))
        elif self.normalisation == "z-score":
            part = values[inside] if self.masked and inside is not None else values
            mean, deviation = part.mean(), max(part.std(), np.float32(_EPSILON))
            if part is values:
                values -= mean
                values /= deviation
            else:
                values[inside] = (part - mean) / deviation
        elif self.normalisation == "rescale":
            values -= values.min()
            values /= max(values.max(), np.float32(_EPSILON))
        elif self.normalisation == "rgb":
            if values.min() < 0 or values.max() > 255:
                raise CaseError(f"channel {self.name!r} is no colour: it is not within 0 to 255")
            values /= np.float32(255)
