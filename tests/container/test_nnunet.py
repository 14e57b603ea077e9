"""README, 'You have an nnU-Net model: three commands to a container': the container."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from .conftest import ISOLATED, REPOSITORY, Folders, docker


def test_three_commands(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net v2 is not installed")
    from nnunet_models import KINDS, make_case, make_results, predict_as_nnunet
    from test_nnunet_readme import commands

    from training.__main__ import main as training

    kind = KINDS["two_channels"]
    results = make_results(tmp_path, kind)
    # A checkout of its own, so that the image that other tests use stays as it is.
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("Dockerfile", ".dockerignore", "predict.sh", "inference", "weights", "wheelhouse"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, checkout / name)

    _, second, third = (line.split() for line in commands())
    words = [str(results) if word == "RESULTS_FOLDER" else word for word in second]
    assert words[:3] == ["python", "-m", "training"]
    words = [str(checkout / word) if word.startswith("weights/") else word for word in words]
    assert training(words[3:]) == 0

    assert third[:2] == ["docker", "build"]
    assert third[-1] == "."
    # As in README's build without a network, where wheelhouse/ has the wheels.
    offline = ["--network=none"] if (REPOSITORY / "wheelhouse").is_dir() else []
    tag = third[third.index("-t") + 1]
    try:
        built = docker("build", *offline, *third[2:-1], str(checkout))
        assert built.returncode == 0, built.stderr
        files = make_case(folders.inputs, kind)
        done = docker(
            "run", *ISOLATED, "--rm", "-v", f"{folders.inputs}:/inputs:ro",
            "-v", f"{folders.outputs}:/outputs", tag,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # Without a build: the usual image with the folder mounted.
        mounted = docker(
            "run", *ISOLATED, "--rm", "-v", f"{folders.inputs}:/inputs:ro",
            "-v", f"{checkout / 'weights'}:/weights:ro", "-e", "ABDOSEG_MODEL=mymodel",
            "abdoseg", "sh", "-c",
            "sh predict.sh /inputs /tmp/outputs >&2 && cat /tmp/outputs/case.nii.gz | sha256sum",
        )  # fmt: skip
        assert mounted.returncode == 0, mounted.stderr
        again = docker("run", *ISOLATED, "--rm", "-v", f"{folders.outputs}:/outputs:ro", tag,
                       "sha256sum", "/outputs/case.nii.gz")  # fmt: skip
        assert mounted.stdout.split()[0] == again.stdout.split()[0]
    finally:
        docker("image", "rm", "-f", tag)
    found = sitk.GetArrayFromImage(sitk.ReadImage(folders.outputs / "case.nii.gz"))
    expected = predict_as_nnunet(results, files, tmp_path, mirror=False)
    assert len(np.unique(expected)) == 4
    assert (found == expected).mean() >= 0.999
