"""Imported models give nnU-Net's own labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_models import KINDS, make_case, make_results, predict_as_nnunet

from inference.cli import main as segment
from training.__main__ import main as training

FAST = ("plain_2p5mm", "anisotropic")
"""Those that every run of the tests looks at."""


@pytest.mark.parametrize("mirror", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize(
    "name", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_labels_are_those_of_nnunet(name: str, mirror: bool, tmp_path: Path) -> None:
    kind = KINDS[name]
    results = make_results(tmp_path, kind)
    files = make_case(tmp_path / "in", kind)
    expected = predict_as_nnunet(results, files, tmp_path, mirror)
    assert len(np.unique(expected)) == 4, "a test of nothing: labels are missing"
    assert min(np.bincount(expected.ravel())) > expected.size / 1000

    model = tmp_path / "weights" / name
    options = ["--mirror"] if mirror else []
    assert training(["import-nnunet", str(results), "--out", str(model), *options]) == 0
    out = tmp_path / "out"
    assert segment(["-i", str(tmp_path / "in"), "-o", str(out), "--model", str(model)]) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(out / "case.nii.gz"))
    same = (found == expected).mean()
    print(f"{name}{' mirrored' * mirror}: {100 * same:.4f} % of the voxels as nnU-Net has them")
    assert same >= 0.999
