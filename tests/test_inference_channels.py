"""Plans of several channels and regions, nnU-Net's patches, without nnU-Net itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from tiny_model import make_ct, make_tiny_model

from inference.cases import find_cases
from inference.errors import CaseError, ModelError
from inference.labels.labels import fill_labels
from inference.model import Model
from inference.nnunet.channels import preprocess_channels
from inference.nnunet.normalisation import Channel
from inference.nnunet.patches import Mirrored, patch_weights, predict_in_patches
from inference.pipeline import segment_in_stages
from inference.plan import Plan

LINEAR = {"order": 1, "order_z": 0, "separate": None}
CUBIC = {"order": 3, "order_z": 0, "separate": None}


def many(plan: Plan, *channels: dict[str, Any], **changes: Any) -> Plan:
    """A plan as the importer writes it."""
    fields: dict[str, Any] = {
        "channels": channels,
        "crop": "nonzero",
        "resampling": {"data": CUBIC, "logits": LINEAR},
        "outside": 0.0,
        "orientation": None,
        "tiling": "nnunet",
    }
    return replace(plan, **{**fields, **changes})


def test_plan_is_read_as_it_was_written(tiny: Model, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "m")
    plan = many(
        tiny.plan,
        {"name": "CT", "normalisation": "ct", "clip": [-100.0, 300.0]},
        transpose=(2, 0, 1),
        mirror=(0, 2),
        outputs=(0, 1, 1, 13, 2),
        regions=True,
        members={"liver": [1, 13]},
    )
    plan.save(tmp_path / "m")
    read = Plan.load(tmp_path / "m")
    assert read == plan
    assert read.inputs == 1
    assert read.label_values == (0, 1, 1, 13, 2)
    tiny.plan.save(tmp_path / "m")
    text = (tmp_path / "m/plan.json").read_text()
    assert "channels" not in text, "plans without them do not show these keys"
    assert "outside" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resampling": {}}, "channels need a resampling"),
        ({"crop": "body"}, "crop is 'body', not one of nonzero, none"),
        ({"transpose": (0, 0, 1)}, "transpose"),
        ({"mirror": (3,)}, "mirror"),
        ({"regions": True}, "regions need outputs"),
        ({"outputs": (0, 256)}, "outputs"),
    ],
)
def test_contradicting_plans(tiny: Model, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        many(tiny.plan, {"name": "CT", "normalisation": "none"}, **changes)


@pytest.mark.parametrize("changes", [{"patch": [32, 32]}, {"colour": 1}, {"patch": 5}])
def test_broken_plan_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_tiny_model(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(ModelError, match=r"plan\.json: "):
        Plan.load(tmp_path)


def test_normalisations() -> None:
    values = np.random.default_rng(0).normal(40, 90, (6, 7, 8)).astype(np.float32)
    inside = values > 20

    def apply(**fields: Any) -> NDArray[np.float32]:
        copy = values.copy()
        Channel("x", **fields).apply(copy, inside)
        return copy

    assert np.array_equal(apply(normalisation="none"), values)
    ct = apply(normalisation="ct", clip=(0.0, 100.0), subtract=50.0, divide=25.0)
    assert np.allclose(ct, (np.clip(values, 0, 100) - 50) / 25)
    whole = apply(normalisation="z-score")
    assert np.allclose([whole.mean(), whole.std()], [0, 1], atol=1e-5)
    masked = apply(normalisation="z-score", masked=True)
    assert np.allclose([masked[inside].mean(), masked[inside].std()], [0, 1], atol=1e-5)
    assert np.array_equal(masked[~inside], values[~inside])
    rescaled = apply(normalisation="rescale")
    assert (rescaled.min(), rescaled.max()) == (0, 1)
    with pytest.raises(CaseError, match="no colour"):
        apply(normalisation="rgb")


def test_crop_and_mask_of_what_is_not_zero(tiny: Model) -> None:
    rng = np.random.default_rng(0)
    volumes = [np.zeros((12, 13, 14)) for _ in range(2)]
    volumes[0][2:8, 3:9, 4:10] = rng.normal(100, 5, (6, 6, 6))
    volumes[1][4:10, 3:9, 4:10] = rng.normal(50, 5, (6, 6, 6))
    for volume in volumes:
        volume[5:7, 5:7, 5:7] = 0  # a hole counts as inside
        volume[4, 3, 4] = 0  # a notch does not
    scores = [{"name": n, "normalisation": "z-score", "masked": True} for n in "ab"]
    plan = many(tiny.plan, *scores, spacing=(1.0, 1.0, 1.0))
    prepared = preprocess_channels(volumes, (1.0, 1.0, 1.0), plan)
    assert prepared.box == (slice(2, 10), slice(3, 9), slice(4, 10))
    mask = ndimage.binary_fill_holes((volumes[0] != 0) | (volumes[1] != 0))[prepared.box]
    assert mask[4, 3, 3]
    assert not mask[2, 0, 0]
    for found, volume in zip(prepared.values, volumes, strict=True):
        part = volume[prepared.box]
        expected = (part - part[mask].mean()) / part[mask].std()
        assert np.allclose(found[mask], expected[mask], atol=1e-4)
        assert (found[~mask] == 0).all()
    with pytest.raises(CaseError, match="zero everywhere"):
        preprocess_channels([np.zeros((3, 3, 3))] * 2, (1.0, 1.0, 1.0), plan)


def test_patch_weights_are_nnunets() -> None:
    patches: list[tuple[int, int, int]] = [(8, 16, 12), (1, 20, 32)]
    for patch in patches:
        spike = np.zeros([n for n in patch if n > 1])
        spike[tuple(n // 2 for n in spike.shape)] = 1
        blurred = ndimage.gaussian_filter(spike, [n / 8 for n in spike.shape], mode="constant")
        expected = (blurred / blurred.max() * 10).astype(np.float16)
        expected[expected == 0] = expected[expected > 0].min()
        found = patch_weights(patch).reshape(expected.shape)
        assert np.allclose(found.astype(float), expected.astype(float), rtol=2e-3, atol=1e-7)


class Double:
    """A 'network' whose two logits are twice its input, and its position along x."""

    def run(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        volume = volume[0] if volume.ndim == 4 else volume
        across = np.broadcast_to(np.arange(volume.shape[2], dtype=np.float32), volume.shape)
        return np.stack([2 * volume, across])


def test_patches_add_up(tiny: Model) -> None:
    plan = many(
        tiny.plan, {"name": "CT", "normalisation": "none"}, outputs=(0, 1), patch=(8, 16, 16)
    )
    volume = np.random.default_rng(0).normal(size=(1, 19, 13, 30)).astype(np.float32)
    logits = predict_in_patches(Double(), volume, plan, 10**9)
    assert logits.dtype == np.float16
    assert logits.shape == (2, 19, 13, 30)
    # Where a voxel lies in patches' corners alone, half precision leaves multiples of a weight.
    error = np.abs(logits[0] - 2 * volume[0])
    assert np.median(error) < 2e-3
    assert (error < 0.02).mean() > 0.9
    with pytest.raises(CaseError, match="GiB of memory"):
        predict_in_patches(Double(), volume, plan, 1000)


@pytest.mark.parametrize("value", [7000.0, -7000.0, np.inf, np.nan])
def test_logits_that_half_precision_cannot_hold(tiny: Model, value: float) -> None:
    """As nnU-Net, which raises where its sums of logits times weights (up to 10) are infinite."""

    class Large:
        def run(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = np.zeros((2, *volume.shape[-3:]), np.float32)
            logits[1, 4, 8, 8] = value  # in the middle, where the weight is largest
            return logits

    plan = many(
        tiny.plan, {"name": "CT", "normalisation": "none"}, outputs=(0, 1), patch=(8, 16, 16)
    )
    volume = np.zeros((1, 8, 16, 30), np.float32)
    with pytest.raises(CaseError, match="not finite in the half precision") as caught:
        predict_in_patches(Large(), volume, plan, 10**9)
    assert len(str(caught.value).splitlines()) == 1


def test_mirroring_averages_all_reflections() -> None:
    volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    found = Mirrored(Double(), (0, 2)).run(volume)
    assert np.allclose(found[0], 2 * volume, atol=1e-6)
    assert np.allclose(found[1], 2.5)


@pytest.mark.parametrize("rule", [LINEAR, CUBIC, {**LINEAR, "order_z": 1}, {**LINEAR, "order": 0}])
@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_labels_by_each_rule(tiny: Model, rule: dict[str, Any], axis: int | None) -> None:
    """Against resampling every channel in full by SciPy and taking the largest."""
    rng = np.random.default_rng(0)
    logits = ndimage.gaussian_filter(rng.normal(0, 9, (3, 6, 7, 8)), (0, 1, 1, 1))
    new = (9, 11, 13)
    spacing = [1.0, 1.0, 1.0]
    if axis is not None:
        spacing[axis] = 4.0
    plan = many(
        tiny.plan,
        {"name": "CT", "normalisation": "none"},
        outputs=(0, 1, 13),
        resampling={"data": CUBIC, "logits": rule},
    )
    full = np.stack([_resampled(channel, new, rule, axis) for channel in logits])
    out = np.zeros(new, np.uint8)
    there = (spacing[0], spacing[1], spacing[2])
    fill_labels(logits.astype(np.float32), plan, there, (1.0, 1.0, 1.0), out, 2)
    assert (out == np.array([0, 1, 13])[full.argmax(axis=0)]).mean() > 0.999

    regions = replace(plan, regions=True, outputs=(13, 2, 3))
    fill_labels(logits.astype(np.float32), regions, there, (1.0, 1.0, 1.0), out, 2)
    expected = np.zeros(new, np.uint8)
    for channel, value in zip(full, (13, 2, 3), strict=True):
        expected[channel > 0] = value
    assert (out == expected).mean() > 0.999


def _resampled(
    volume: NDArray[Any], new: tuple[int, ...], rule: dict[str, Any], axis: int | None
) -> NDArray[Any]:
    def zoom(values: NDArray[Any], shape: Sequence[int], order: int) -> NDArray[Any]:
        factors = [m / n for n, m in zip(values.shape, shape, strict=True)]
        found = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
        return np.clip(found, values.min(), values.max()) if order > 1 else found

    if axis is None:
        return zoom(volume, new, rule["order"])
    planes = np.moveaxis(volume, axis, 0)
    flat = [m for a, m in enumerate(new) if a != axis]
    stack = np.stack([zoom(plane, flat, rule["order"]) for plane in planes])
    return np.moveaxis(zoom(stack, (new[axis], *flat), rule["order_z"]), 0, axis)


def test_cases_of_two_channels(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "c_0001", "d"):
        sitk.WriteImage(make_ct(), tmp_path / f"{name}.nii.gz")
    cases = {case.target.name: case for case in find_cases(tmp_path, Path("out"), 2)}
    assert cases["a.nii.gz"].problem is None
    assert cases["a.nii.gz"].further_channels == (tmp_path / "a_0001.nii.gz",)
    assert "b_0001.nii.gz is missing" in str(cases["b.nii.gz"].problem)
    assert "c_0000.nii.gz is missing" in str(cases["c.nii.gz"].problem)
    assert "wants 2 channels" in str(cases["d.nii.gz"].problem)
    (single,) = find_cases(tmp_path / "a_0000.nii.gz", Path("out"), 2)
    assert single.problem is None
    assert single.further_channels == (tmp_path / "a_0001.nii.gz",)


def test_channels_must_fit(tiny: Model) -> None:
    pair = [{"name": n, "normalisation": "none"} for n in ("T1", "T2")]
    model = replace(tiny, plan=many(tiny.plan, *pair))
    ct = make_ct()
    with pytest.raises(CaseError, match=r"1 channel\(s\) were given, the model wants 2"):
        segment_in_stages([ct], model)
    with pytest.raises(CaseError, match="'T2' has 44 x 40 x 19 voxels"):
        segment_in_stages([ct, ct[:, :, :-1]], model)
    other = make_ct()
    other.SetSpacing((1.0, 1.0, 1.0))
    with pytest.raises(CaseError, match="another spacing"):
        segment_in_stages([ct, other], model)
    with pytest.raises(CaseError, match="2 channels were given"):
        segment_in_stages([ct, ct], tiny)


def test_transpose_and_orientation_come_back(tiny: Model) -> None:
    """A one-channel plan that says what the tiny model's says, along other axes."""
    plan = many(
        tiny.plan,
        {"name": "CT", "normalisation": "ct", "clip": [-1000.0, 1000.0], "divide": 100.0},
        spacing=(None, None, None),
        patch=(32, 32, 16),
        tiling="whole",
        transpose=(2, 1, 0),
        outside=-10.0,
    )
    straight = replace(plan, transpose=(0, 1, 2), patch=(16, 32, 32))
    first, second = (
        segment_in_stages([make_ct()], replace(tiny, plan=p)).labels for p in (plan, straight)
    )
    assert len(np.unique(first)) == 5
    assert (first == second).mean() > 0.999


def test_half_precision_decides_ties_for_the_first(tiny: Model) -> None:
    rng = np.random.default_rng(0)
    logits = (1000 + rng.normal(0, 1, (3, 5, 6, 7))).astype(np.float16)  # multiples of 1/2
    rule = {**LINEAR, "half": True}
    plan = many(
        tiny.plan,
        {"name": "CT", "normalisation": "none"},
        outputs=(0, 1, 13),
        resampling={"data": CUBIC, "logits": rule},
    )
    new = (9, 11, 13)
    full = np.stack([_resampled(c.astype(float), new, LINEAR, None) for c in logits])
    values = np.array([0, 1, 13])
    rounded, exact = values[full.astype(np.float16).argmax(axis=0)], values[full.argmax(axis=0)]
    assert (rounded == exact).mean() < 0.95, "a test of nothing"
    out = np.zeros(new, np.uint8)
    fill_labels(logits, plan, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), out)
    assert (out == rounded).mean() > 0.995
