"""Imported models give nnU-Net's own labels."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_models import KINDS, SHARED, Kind, make_case, make_results, predict_as_nnunet

from inference.cli import main as segment
from training.__main__ import main as training

REAL = Path(__file__).parents[2] / "shared/cases/totalseg_example_ct_3mm/ct.nii.gz"
FAST = (("plain_2p5mm", False), ("anisotropic", True))
"""Those that every run of the tests looks at: kind, mirrored or not."""


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in product(KINDS, (False, True))
    ],
)
def test_labels_are_those_of_nnunet(name: str, mirror: bool, tmp_path: Path) -> None:
    kind = KINDS[name]
    results = make_results(tmp_path, kind)
    files = make_case(tmp_path / "in", kind)
    expected = predict_as_nnunet(results, files, tmp_path, mirror)
    check(name, results, files[0].parent, expected, tmp_path, mirror)


@pytest.mark.slow
@pytest.mark.real_ct
@pytest.mark.parametrize("mirror", [False, True], ids=["", "mirrored"])
def test_labels_of_a_real_ct(mirror: bool, tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip(f"no {REAL}")
    plain = KINDS["plain_2p5mm"]
    kind = Kind(plain.configuration, plain.labels, plans=plain.plans)
    results = make_results(tmp_path, kind)
    plans = json.loads((results / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] = {**SHARED, "patch_size": [48, 64, 64]}
    (results / "plans.json").write_text(json.dumps(plans))
    case = tmp_path / "in" / "case_0000.nii.gz"
    case.parent.mkdir()
    case.write_bytes(REAL.read_bytes())
    expected = predict_as_nnunet(results, [case], tmp_path, mirror)
    check("real CT", results, case.parent, expected, tmp_path, mirror)


def check(
    name: str, results: Path, inputs: Path, expected: np.ndarray, folder: Path, mirror: bool
) -> None:
    """Import a model, run it on a case and compare its labels with nnU-Net's."""
    assert len(np.unique(expected)) == 4, "a test of nothing: labels are missing"
    assert min(np.bincount(expected.ravel())) > expected.size / 2000
    model, out = folder / "weights" / "model", folder / "out"
    options = ["--mirror"] if mirror else []
    assert training(["import-nnunet", str(results), "--out", str(model), *options]) == 0
    assert segment(["-i", str(inputs), "-o", str(out), "--model", str(model)]) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(out / "case.nii.gz"))
    same = (found == expected).mean()
    print(f"{name}{' mirrored' * mirror}: {100 * same:.4f} % of the voxels as nnU-Net has them")
    assert same >= 0.999
