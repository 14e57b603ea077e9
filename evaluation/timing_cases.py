"""Synthetic CTs of the sizes on which running times are reported in the challenge's papers."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from inference.errors import UsageError
from inference.grid import Spacing
from inference.phantom import make_phantom
from inference.write.files import appearing, make_folder, write_image

SLICES: tuple[int, ...] = (55, 124, 152, 218, 299, 316, 457, 597)
"""Slices of the eight cases, each of 512 x 512 pixels."""

SPACING_MM: dict[int, Spacing] = {
    # z as scanners reconstruct: thin slices are many slices. y and x: patients' sizes vary.
    55: (5.0, 0.82, 0.82),
    124: (2.5, 0.78, 0.78),
    152: (2.5, 0.74, 0.74),
    218: (2.0, 0.80, 0.80),
    299: (1.5, 0.76, 0.76),
    316: (1.25, 0.70, 0.70),
    457: (1.0, 0.84, 0.84),
    597: (0.8, 0.78, 0.78),
}
"""Slices to millimetres (z, y, x)."""


def make_timing_cases(
    out: Path, slices: tuple[int, ...] = SLICES, plane: int = 512, quiet: bool = False
) -> list[Path]:
    """Write the cases as ``timing_NNN_0000.nii.gz``, the same ones every time.

    Args:
        out: folder for them, made where missing.
        slices: which of `SLICES`.
        plane: pixels along y and x; fewer cover the same patient more coarsely.
        quiet: show no progress bar.

    Returns:
        The files.

    Raises:
        UsageError: ``out`` cannot be written.
    """
    paths = []
    try:
        make_folder(out)
        for number in tqdm(slices, unit="case", desc="timing cases", disable=quiet or None):
            z, y, x = SPACING_MM[number]
            spacing = (z, y * 512 / plane, x * 512 / plane)
            ct, _ = make_phantom((number, plane, plane), spacing, seed=number)
            path = out / f"timing_{number:03d}_0000.nii.gz"
            with appearing(path) as temporary:
                write_image(ct, temporary, compression=-1)
            paths.append(path)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
    return paths
