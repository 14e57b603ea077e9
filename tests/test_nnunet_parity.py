"""Imported models give nnU-Net's own labels."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given
from hypothesis import strategies as st
from nnunet_models import KINDS, make_case, make_results, predict_as_nnunet
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from inference.cli import main as segment
from inference.preprocess.resample import shape_at_spacing
from training.__main__ import main as training

REAL = Path(__file__).parents[2] / "shared/cases/totalseg_example_ct_3mm/ct.nii.gz"
FAST = (("plain_2p5mm", False), ("anisotropic", True))
"""Those that every run of the tests looks at: kind, mirrored or not."""


@given(
    st.integers(1, 800), st.floats(0.3, 8.0), st.sampled_from([0.8, 1.5, 1.6, 2.0, 2.5, 3.0, 5.0])
)
@example(575, 0.55, 2.5)  # 126.5 but for the order in which it is computed
def test_grids_have_the_size_that_nnunet_computes(n: int, spacing: float, wanted: float) -> None:
    (expected,) = compute_new_shape((n,), (spacing,), (wanted,))
    assert shape_at_spacing((n,), (spacing,), (wanted,)) == (max(1, expected),)


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
@pytest.mark.parametrize("name", KINDS)
def test_labels_of_a_real_ct(name: str, mirror: bool, tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip(f"no {REAL}")
    kind = KINDS[name]
    results = make_results(tmp_path, kind)
    # Patches of a usual CT are larger than those that train in a moment.
    plans = json.loads((results / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [2 * size for size in configuration["patch_size"]]
    (results / "plans.json").write_text(json.dumps(plans))
    files = real_case(tmp_path / "in", len(kind.channels))
    expected = predict_as_nnunet(results, files, tmp_path, mirror)
    check(f"real CT, {name}", results, files[0].parent, expected, tmp_path, mirror)


def real_case(folder: Path, channels: int) -> list[Path]:
    """The real CT around its liver; a second channel is the same, smoothed."""
    ct = sitk.ReadImage(REAL)
    liver = sitk.ReadImage(REAL.with_name("labels.nii.gz")) == 1
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(liver)
    box = shapes.GetBoundingBox(1)  # first voxel, then size, along x, y and z
    size = [min(n, most) for n, most in zip(ct.GetSize(), (96, 96, 48), strict=True)]
    first = [
        min(max(0, start + length // 2 - part // 2), n - part)
        for start, length, part, n in zip(box[:3], box[3:], size, ct.GetSize(), strict=True)
    ]
    ct = sitk.RegionOfInterest(ct, size, first)
    folder.mkdir()
    files = [folder / f"case_{channel:04d}.nii.gz" for channel in range(channels)]
    for channel, file in enumerate(files):
        smooth = sitk.SmoothingRecursiveGaussian(ct, 4.0) if channel else ct
        sitk.WriteImage(sitk.Cast(smooth, sitk.sitkInt16), file)
    return files


def check(
    name: str, results: Path, inputs: Path, expected: np.ndarray, folder: Path, mirror: bool
) -> None:
    """Import a model, run it on a case and compare its labels with nnU-Net's."""
    # Mirrored looks may average one of the four labels away; three that vary are a test.
    common = np.bincount(expected.ravel()) > expected.size / 2000
    assert common.sum() >= 3, "a test of nothing: labels are missing"
    model, out = folder / "weights" / "model", folder / "out"
    options = ["--mirror"] if mirror else []
    assert training(["import-nnunet", str(results), "--out", str(model), *options]) == 0
    assert segment(["-i", str(inputs), "-o", str(out), "--model", str(model)]) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(out / "case.nii.gz"))
    same = (found == expected).mean()
    print(f"{name}{' mirrored' * mirror}: {100 * same:.4f} % of the voxels as nnU-Net has them")
    assert same >= 0.999
