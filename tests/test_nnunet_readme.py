"""README, 'You have an nnU-Net model: three commands to a container', followed literally.

The last of the three, the build, and the container are in ``container/test_nnunet.py``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunet_models import KINDS, make_case, make_results, predict_as_nnunet
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]


def commands() -> list[str]:
    """The three commands, as the README has them."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    page = text.split("## You have an nnU-Net model: three commands to a container")[1]
    lines = page.split("```sh\n")[1].split("```")[0].splitlines()
    assert len(lines) == 3
    return lines


def test_first_command_installs_what_the_second_needs() -> None:
    assert commands()[0] == "pip install '.[nnunet]'"
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^nnunet = \[(.*?)^\]", text, re.M | re.S)
    assert block
    (asked,) = (Requirement(word) for word in re.findall(r'"(nnunet.+?)"', block[1]))
    assert asked.specifier.contains(version("nnunetv2"))


def test_second_command_gives_a_model_that_runs(tmp_path: Path) -> None:
    kind = KINDS["anisotropic"]
    results = make_results(tmp_path / "nnunet", kind)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    line = commands()[1].replace("RESULTS_FOLDER", str(results))
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "weights/mymodel").iterdir()) == [
        "README.md",
        "network.bin",
        "network.xml",
        "plan.json",
    ]

    # As the image runs it: PyTorch is not there.
    files = make_case(tmp_path / "in", kind)
    code = (
        "import sys; sys.modules['torch'] = None; from inference.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-i", str(files[0].parent), "-o", "outputs"],
        cwd=tmp_path,
        env={**environment, "ABDOSEG_WEIGHTS": "weights", "ABDOSEG_MODEL": "mymodel"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "outputs/case.nii.gz"))
    expected = predict_as_nnunet(results, files, tmp_path, mirror=False)
    assert len(np.unique(expected)) == 4
    assert (found == expected).mean() >= 0.999
