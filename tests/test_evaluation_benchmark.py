"""The benchmark: its bookkeeping with programs that are no networks, and the recipe itself."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_model import make_tiny_model

pytest.importorskip("nibabel", reason="needs the extra 'evaluation'")
pytest.importorskip("psutil", reason="needs the extra 'evaluation'")

from evaluation.benchmark import peak as peak_program
from evaluation.benchmark import run as module
from evaluation.benchmark import shared_network
from evaluation.benchmark import systems as systems_module
from evaluation.benchmark.peak import multiply_adds_of
from evaluation.benchmark.run import benchmark
from evaluation.benchmark.setting import Setting
from evaluation.benchmark.systems import PUBLISHED, System, list_systems
from evaluation.cli import main
from inference.api import segment
from inference.errors import ModelError, UsageError
from inference.model import Model
from inference.organs import LABEL_OF
from inference.phantom import make_phantom
from inference.plan import Plan

WORK = """
import json, os, sys, time
import numpy as np, SimpleITK as sitk
seconds, wrong, labels, stages = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
time.sleep(seconds)
array = np.zeros((2, 3, 50), np.uint8)
array[0] = 1
array.flat[:wrong] = 2
sitk.WriteImage(sitk.GetImageFromArray(array), labels)
level = os.environ.get("ONEDNN_MAX_CPU_ISA", "none")
json.dump({"network": seconds, "compile": 9}, open(stages, "w"))
print("level", level)
"""


def command(seconds: float, wrong: int) -> tuple[str, ...]:
    return (sys.executable, "-c", WORK, str(seconds), str(wrong), "{labels}", "{stages}")


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = [
        System("slow", command(0.9, 30), baseline=True),
        System(PUBLISHED, command(0.3, 0), baseline=True),
        System("limited", command(0.1, 3), isa="AVX2"),
        System("other", command(0.1, 0), same_network=False),
        System("absent", (), problem="it is not installed"),
        System("broken", (sys.executable, "-c", "raise SystemExit('no memory left')")),
    ]
    monkeypatch.setattr(module, "list_systems", lambda *_: systems)
    monkeypatch.setattr(module, "_make_model", lambda *_: None)
    rows = benchmark(
        tmp_path,
        slices=2,
        plane=8,
        setting=Setting(groups=("models",), repeats=2, quiet=True),
    )
    slow, published, limited, other, absent, broken = rows
    assert slow.stages["network"] == 0.9
    assert sum(slow.stages.values()) == pytest.approx(slow.seconds)  # medians of two are means
    assert slow.seconds > 0.9
    assert published.same_voxels == published.agreement == 1
    assert slow.same_voxels == pytest.approx(1 - 30 / 300)
    assert limited.same_voxels == pytest.approx(1 - 3 / 300)
    # Organ 1: 147 of 150 voxels; organ 2 is in one of the two only, so 0.
    assert limited.agreement == pytest.approx((2 * 147 / 297 + 0) / 2)
    assert np.isnan(other.same_voxels)
    assert "level AVX2" in (tmp_path / "logs" / "limited_1.txt").read_text()
    assert "level none" in (tmp_path / "logs" / "other_2.txt").read_text()
    assert absent.problem == "it is not installed"
    assert broken.problem == "failed (code 1): no memory left"
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["System"] for row in table] == [system.name for system in systems]
    assert table[4]["Seconds"] == "-"
    text = (tmp_path / "benchmark.md").read_text()
    assert "- (it is not installed)" in text
    assert "x slow" in text and f"x {PUBLISHED.split(',')[0]}" in text
    assert not list(tmp_path.glob(".benchmark-*"))


@pytest.mark.parametrize("stored", ["RAS", "LPS"])
def test_every_system_gets_the_case_upright_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    ct, _ = make_phantom((6, 20, 24), (5.0, 4.0, 3.0))
    case = tmp_path / "ct_0000.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(ct, stored), str(case))
    shutil.copy(case, tmp_path / "ct_0001.nii.gz")  # beside it, _0000 would be a number
    given: list[sitk.Image] = []

    def look(model: Path, problem: str | None, case: Path, *_: object) -> list[System]:
        assert case.name == "ct_0000.nii.gz"  # labels are named after it
        assert [path.name for path in case.parent.glob("*.nii.gz")] == [case.name]
        given.append(sitk.ReadImage(str(case)))
        return []

    monkeypatch.setattr(module, "list_systems", look)
    benchmark(tmp_path / "out", case, setting=Setting(groups=("models",), repeats=1, quiet=True))
    (image,) = given
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert image.GetOrigin() == pytest.approx(ct.GetOrigin(), abs=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(ct))
    assert "24 x 20 x 6 voxels" in (tmp_path / "out" / "benchmark.md").read_text()


def test_a_case_that_is_no_ct_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.nii.gz").write_text("hello")
    flat = make_phantom((2, 8, 8), (5.0, 4.0, 4.0))[0][:, :, 0]
    sitk.WriteImage(flat, str(tmp_path / "flat.nii.gz"))
    monkeypatch.setattr(module, "_make_model", lambda *_: pytest.fail("it went on"))
    monkeypatch.setattr(module, "list_systems", lambda *_: pytest.fail("it went on"))
    for name, reason in (("text", "is not a NIfTI file"), ("flat", "is a 2D image")):
        case = tmp_path / f"{name}.nii.gz"
        assert main(["benchmark", "--out", str(tmp_path / "out"), "--case", str(case)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: {case}: {reason}")


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails(*_: object) -> None:
    raise ModelError("network.xml: one pass failed (no memory for it)")


@pytest.mark.parametrize(
    ("build", "reason"), [(killed, "its process was killed"), (fails, ".*no memory for it")]
)
def test_network_that_cannot_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[..., None], reason: str
) -> None:
    """As where the kernel ends a process that wants more memory than there is."""
    monkeypatch.setattr(shared_network, "missing", lambda: None)
    monkeypatch.setattr(shared_network, "make_model", build)
    with pytest.raises(UsageError, match=f"the shared network cannot be built: {reason}"):
        benchmark(tmp_path, slices=2, plane=8, setting=Setting(groups=("ours",), quiet=True))


def waits(*_: object) -> None:
    time.sleep(300)


def test_stopped_while_the_network_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(shared_network, "missing", lambda: None)
    monkeypatch.setattr(shared_network, "make_model", waits)
    # Where the tests run in the background of a shell, Ctrl-C is ignored from the start.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        benchmark(tmp_path, slices=2, plane=8, setting=Setting(groups=("ours",), quiet=True))
    assert time.monotonic() - began < 100
    assert not active_children()


@pytest.mark.parametrize("pays", [False, True])
def test_the_shared_network_is_trained_in_bf16_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    """Emulated, as with AVX2 alone, the steps would take hours."""
    torch = pytest.importorskip("torch", reason="needs the extra 'training'")
    monkeypatch.setattr(shared_network, "bf16_pays", lambda: pays)
    network = torch.nn.Conv3d(1, 14, 1)
    kinds = []
    network.register_forward_hook(lambda _, __, logits: kinds.append(logits.dtype))
    patch = np.zeros((1, 1, 4, 4, 4), np.float32), np.zeros((1, 4, 4, 4), np.int64)
    shared_network._train(network, iter([patch] * 2), 2, quiet=True)
    assert kinds == [torch.bfloat16 if pays else torch.float32] * 2


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_checkpoints_of_either_numpy_are_read(tmp_path: Path, core: bytes) -> None:
    """nnU-Net's losses are numpy numbers, which NumPy 1 and 2 store under different names."""
    torch = pytest.importorskip("torch", reason="needs the extra 'training'")
    stored, own = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    logging = {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(-0.5)]}
    content = {"network_weights": stored.state_dict(), "logging": logging}
    file = tmp_path / "checkpoint_final.pth"
    # torch's older format is the bare pickle: names can be replaced in it.
    torch.save(content, file, _use_new_zipfile_serialization=False)
    pickled = file.read_bytes()
    assert b"numpy._core.multiarray\n" in pickled
    file.write_bytes(pickled.replace(b"numpy._core.", b"numpy." + core + b"."))
    shared_network._load(own, file)
    assert torch.equal(own.weight, stored.weight)
    with pytest.raises(UsageError, match="not a checkpoint of this network"):
        shared_network._load(torch.nn.Linear(2, 4), file)


def test_multiply_adds_are_those_of_the_network(tmp_path: Path) -> None:
    """Against the sum written out for a small U-Net: strides, groups, transposed convolutions."""
    import openvino as ov
    from openvino import opset13 as ops

    def kernel(*shape: int) -> object:
        return ops.constant(np.zeros(shape, np.float32))

    one, zero = [1, 1, 1], [0, 0, 0]
    image = ops.parameter([1, 2, -1, -1, -1], np.float32)
    wide = ops.convolution(image, kernel(8, 2, 3, 3, 3), one, one, one, one)
    half = ops.convolution(wide, kernel(4, 8, 2, 2, 2), [2, 2, 2], zero, zero, one)
    depthwise = ops.group_convolution(half, kernel(4, 1, 1, 3, 3, 3), one, one, one, one)
    grown = ops.convolution_backprop_data(depthwise, kernel(4, 3, 2, 2, 2), [2, 2, 2])
    ov.save_model(ov.Model([grown], [image]), tmp_path / "n.xml", compress_to_fp16=False)
    full, small = 4 * 6 * 8, 2 * 3 * 4
    expected = full * 8 * 2 * 27 + small * 4 * 8 * 8 + small * 4 * 27 + small * 4 * 3 * 8
    assert multiply_adds_of(tmp_path / "n.xml", (4, 6, 8)) == expected


def test_peak_is_measured() -> None:
    """int8 convolutions are really int8: their weights are, in the network that is run."""
    found = peak_program.measure(1, ("f32", "int8"), (4, 8, 8))
    assert all(speed and speed > 1e8 for speed in found.values())
    quantised = peak_program.stack((4, 8, 8), True)
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    run = ov.Core().compile_model(quantised, "CPU", settings).get_runtime_model()
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in run.get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    assert kinds == ["u8"] * peak_program.LAYERS


def test_the_peak_alone(tmp_path: Path) -> None:
    rows = benchmark(
        tmp_path,
        slices=8,
        plane=32,
        setting=Setting(groups=("peak",), repeats=1, small=True, quiet=True),
    )
    assert not rows
    assert re.search(r"\| all +\| +1 +\| +[1-9]", (tmp_path / "benchmark.md").read_text())


def test_network_speed_beside_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own engine, run for real: its operations are those of its window and passes."""
    weights = tmp_path / "weights"
    weights.mkdir()
    make_tiny_model(weights / "small")
    monkeypatch.setattr(systems_module, "weights_folders", lambda: [weights])
    monkeypatch.setattr(systems_module, "usable_threads", lambda: 2)
    rows = benchmark(
        tmp_path / "out",
        slices=16,
        plane=48,
        setting=Setting(
            groups=("models", "scaling", "peak"), levels=(), repeats=1, small=True, quiet=True
        ),
    )
    absent, ours, scaled = rows
    assert absent.problem
    assert (ours.problem, scaled.problem) == (None, None)
    assert ours.system.name == "ours, small, f32, its default"
    assert scaled.system.name == "ours, small, f32, its default, 2 threads"
    operations = ours.speed * ours.stages["network"]
    blocks = operations / (2 * 27 * 4**3)
    assert blocks == pytest.approx(round(blocks), abs=1e-6)
    assert blocks >= 1
    assert sum(ours.stages.values()) == pytest.approx(ours.seconds)
    with (tmp_path / "out" / "benchmark.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["Share_of_int8_peak"] == "-" for row in table] == [True, False, False]
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "plain stack" in text
    assert "| all | 2 |" in text


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems_module, "find_spec", lambda name: None)
    monkeypatch.setattr(systems_module, "weights_folders", lambda: [tmp_path])
    systems = list_systems(tmp_path, None, tmp_path, Setting(levels=("AVX2",)))
    problems = {system.name: system.problem for system in systems}
    assert "nnunetv2 is not installed" in (problems["nnU-Net v2 predictor, fp32"] or "")
    assert "torch is not installed" in (problems[PUBLISHED] or "")
    assert "nncf is not installed" in (problems["ours, same network, int8"] or "")
    assert problems["ours, dsunet_eca"] == "no such model in the weights folder"
    assert "nncf is not installed" in (problems["ours, same network, int8, AVX2"] or "")
    assert not any("bf16" in name and "AVX2" in name for name in problems)


def pointwise_model(folder: Path) -> None:
    """A network whose windows do not matter: each voxel's logits are lines of its intensity."""
    import openvino as ov
    from openvino import opset13 as ops

    image = ops.parameter([1, 1, -1, -1, -1], np.float32)
    slopes = np.linspace(-6.5, 6.5, 14, dtype=np.float32)
    offsets = -(slopes**2) / 2  # tangents of a parabola: every one wins somewhere
    logits = ops.add(
        ops.multiply(image, ops.constant(slopes.reshape(1, 14, 1, 1, 1))),
        ops.constant(offsets.astype(np.float32).reshape(1, 14, 1, 1, 1)),
    )
    folder.mkdir()
    ov.save_model(ov.Model([logits], [image]), folder / "network.xml", compress_to_fp16=False)
    Plan(
        name="pointwise",
        version="1",
        spacing=(4.0, 3.0, 3.0),
        clip=(-1000.0, 300.0),
        subtract=0.0,
        divide=60.0,
        patch=(8, 16, 16),
        multiple=(1, 1, 1),
        networks={"f32": "network.xml"},
        precision="f32",
        labels=LABEL_OF,
        bytes_per_voxel={"f32": 100.0},
        crop="none",
    ).save(folder)


def test_published_recipe_is_the_same_computation(tmp_path: Path) -> None:
    """On a network that sees single voxels, windows and full-size logits must change nothing."""
    pytest.importorskip("torch", reason="needs the extra 'training'")
    from evaluation.benchmark.published_recipe import segment as segment_as_published

    pointwise_model(tmp_path / "model")
    # Coarser than the network's grid: growing interpolates, and averages nothing in either.
    ct, _ = make_phantom((20, 30, 30), (8.0, 9.0, 9.0))
    case, out = tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz"
    sitk.WriteImage(ct, str(case))
    seconds = segment_as_published(tmp_path / "model", case, out, 1)
    assert {"read", "preprocess", "network", "labels", "write"} <= set(seconds)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
    ours = sitk.GetArrayFromImage(segment(ct, Model.load(tmp_path / "model", threads=1)))
    assert len(np.unique(ours)) > 8
    assert np.mean(theirs == ours) > 0.999


@pytest.mark.nnunet
def test_shared_network_is_the_published_one() -> None:
    pytest.importorskip("dynamic_network_architectures", reason="needs the extra 'nnunet'")
    network = shared_network.make_network()
    assert sum(p.numel() for p in network.parameters()) == 30_713_158


@pytest.mark.nnunet
@pytest.mark.slow
def test_nnunet_and_the_recipe_agree(tmp_path: Path) -> None:
    """Same weights, same windows: what is left is nnU-Net's half-precision sum of windows."""
    pytest.importorskip("nnunetv2", reason="needs the extra 'nnunet'")
    ct, _ = make_phantom((24, 64, 64), (2.5, 2.5, 2.5))
    case = tmp_path / "ct.nii.gz"
    sitk.WriteImage(ct, str(case))
    rows = benchmark(
        tmp_path / "out",
        case,
        setting=Setting(
            groups=("nnunet", "published"), levels=(), threads=2, repeats=1, small=True, quiet=True
        ),
    )
    assert [row.problem for row in rows] == [None, None]
    assert rows[0].same_voxels > 0.97
