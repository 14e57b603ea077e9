"""The file of ``--label-table``: which number is which organ, for ITK-SNAP or 3D Slicer.

Both show label files as bare numbers otherwise. In ITK-SNAP it is loaded by "Segmentation >
Import Label Descriptions", in 3D Slicer as a color table beside the label map.
"""

from __future__ import annotations

from pathlib import Path

from inference.errors import UsageError
from inference.organs import colour_of
from inference.plan import Plan
from inference.write.files import write_text

_ITK_SNAP, _SLICER = ".txt", ".ctbl"


def check_label_table(path: Path) -> None:
    """Raise UsageError where the file's ending stands for neither program."""
    if path.suffix.lower() not in (_ITK_SNAP, _SLICER):
        raise UsageError(
            f"{path}: --label-table writes {_ITK_SNAP} for ITK-SNAP or {_SLICER} for 3D Slicer"
        )


def write_label_table(path: Path, plan: Plan) -> None:
    """Write the names and colours of a model's labels; an existing file is replaced.

    Args:
        path: where to; the ending says for which program.
        plan: the model's.

    Raises:
        OSError: it cannot be written.
        UsageError: the ending stands for neither program.
    """
    check_label_table(path)
    labels = sorted((value, name) for name, value in plan.labels.items() if value > 0)
    if path.suffix.lower() == _ITK_SNAP:
        lines = ["# IDX  R  G  B  A  VIS  MSH  LABEL", '0 0 0 0 0 0 0 "Clear Label"']
        for value, name in labels:
            red, green, blue = colour_of(value)
            spoken = name.replace('"', "'").replace("_", " ")
            lines.append(f'{value} {red} {green} {blue} 1 1 1 "{spoken}"')
    else:
        lines = [f"# {plan.name} {plan.version}: value name R G B A", "0 background 0 0 0 0"]
        for value, name in labels:
            red, green, blue = colour_of(value)
            lines.append(f"{value} {'_'.join(name.split())} {red} {green} {blue} 255")
    write_text(path, "\n".join(lines) + "\n")
