"""Quantisation that looks at what it costs, and what the model card says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("nncf", reason="the training extra is not installed")

from inference.organs import ORGANS
from inference.plan import Plan
from inference.processor import instruction_sets
from training.agreement import Agreement
from training.config import Config
from training.data.case import Case
from training.export.export import volumes_for_checks
from training.export.model_card import write_model_card

REPOSITORY = Path(__file__).parents[1]

# In a process of its own: OpenVINO and PyTorch's training must not share one.
_QUANTISE = """
import json, sys
import numpy as np, openvino as ov, torch
from torch import nn
from training.export.openvino_model import (
    convolutions_of, quantise, quantise_by_accuracy, to_openvino,
)

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(),
    nn.Conv3d(8, 14, 1),
)
# One channel is a thousand times as large as the others and taken back in the next layer: fp32
# does not mind, but one scale for all channels leaves the others no steps.
with torch.no_grad():
    network[0].weight[0] *= 1000
    network[0].bias[0] *= 1000
    network[2].weight[:, 0] /= 1000
rng = np.random.default_rng(0)
patches = [rng.normal(size=(1, 1, 12, 12, 12)).astype(np.float32) for _ in range(4)]
model = to_openvino(network, (12, 12, 12))

def labels(model):
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled(patch)[0][0].argmax(0) for patch in patches]

truth = labels(model)
result = {}
two = convolutions_of(model, [0, -2])
for name, quantised_by, spared in (
    ("plain", quantise, ()), ("aware", quantise_by_accuracy, ()), ("spared", quantise, two)
):
    made = quantised_by(model, patches, spared)
    quantised = sum(op.get_type_name() == "FakeQuantize" for op in made.get_ops())
    scores = []
    for found, expected in zip(labels(made), truth):
        for organ in range(1, 14):
            a, b = found == organ, expected == organ
            if a.any() or b.any():
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    result[name] = [float(np.mean(scores)), quantised]
print("RESULT", json.dumps(result))
"""


_UPSAMPLE = """
import json
import numpy as np, openvino as ov, torch
from torch import nn
from training.export.openvino_model import quantise, to_openvino

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv3d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv3d(16, 32, 3, 2, 1),
    nn.LeakyReLU(0.1), nn.ConvTranspose3d(32, 16, 2, 2), nn.Conv3d(16, 14, 3, padding=1),
)
rng = np.random.default_rng(0)
patches = [rng.normal(size=(1, 1, 16, 16, 16)).astype(np.float32) for _ in range(2)]
model = to_openvino(network, (16, 16, 16), any_size=False)

def compiled(model):
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

quantised = compiled(quantise(model, patches))
truth, found = (m(patches[0])[0] for m in (compiled(model), quantised))
kinds = {}
for operation in quantised.get_runtime_model().get_ops():
    told = operation.get_rt_info()
    kinds[told["layerType"].value] = told["runtimePrecision"].value
error = float(np.sqrt(((found - truth) ** 2).mean()) / truth.std())
print("RESULT", json.dumps({"precision": kinds["Deconvolution"], "error": error}))
"""

_SUM = """
import json
import numpy as np, openvino as ov, torch
from training.export.openvino_model import convolutions_of, quantise, to_openvino
from training.networks.unets import UNet

torch.manual_seed(0)
network = UNet(
    (16, 32), ((3,) * 3,) * 2, ((1,) * 3, (2,) * 3), "batch", "relu", bias=False,
    deep_supervision=False, classes=14, light_finest=True,
)
rng = np.random.default_rng(0)
patches = [rng.normal(size=(1, 1, 16, 16, 16)).astype(np.float32) for _ in range(4)]
model = to_openvino(network, (16, 16, 16), any_size=False)

def compiled(model):
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

def comes_to_the_sum(made):
    total, = (
        op for op in made.get_ops() if op.get_type_name() == "Add"
        and not any(port.get_source_output().get_node().get_type_name() == "Constant"
                    for port in op.inputs())
    )
    return sorted(port.get_source_output().get_node().get_type_name() for port in total.inputs())

truth = compiled(model)(patches[0])[0]
result = {}
for name, spared in (("int8", []), ("floating", [-3])):
    made = quantise(model, patches, convolutions_of(model, spared))
    found = compiled(made)(patches[0])[0]
    error = float(np.sqrt(((found - truth) ** 2).mean()) / truth.std())
    result[name] = [comes_to_the_sum(made), error]
print("RESULT", json.dumps(result))
"""

_COMPARE = """
import json, sys
from pathlib import Path
import numpy as np, openvino as ov, torch
import inference.network.network
from dataclasses import replace
from training.config import Config
from training.export.export import CheckedVolume, _compare
from training.export.openvino_model import to_openvino
from training.networks.network import make_network

torch.manual_seed(0)
inference.network.network.best_float = lambda: "bf16"
config = Config.load(Path("training/configs/abdoseg.yaml"))
network = make_network({**config.network, "features": [4, 4, 8, 8, 8]}).eval()
config = replace(config, patch=(16, 16, 16))
folder = Path(sys.argv[1])
ov.save_model(to_openvino(network, config.patch), folder / "network.xml")
plan = config.plan((16, 16, 16), {"f32": "network.xml", "bf16": "network.xml"})
hu = np.random.default_rng(0).integers(-200, 300, (16, 32, 16)).astype(np.int16)
whole = CheckedVolume("it", hu, np.zeros(hu.shape, np.uint8))
found = _compare(network, folder, plan, config, whole)
print("RESULT", json.dumps({each.precision: each.logits_error for each in found}))
"""

_INT8_ONLY = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from inference.errors import ModelError
from inference.model import Model
from training.loop.checkpoint import load_average, save
from training.config import Config
from training.export.export import export
from training.networks.network import make_network

torch.manual_seed(0)
config = Config.load(Path("training/configs/abdoseg.yaml"))
network = {**config.network, "features": [4, 4, 8, 8, 8]}
config = replace(config, network=network, patch=(16, 16, 16), look={})
folder = Path(sys.argv[1])
(folder / "prepared" / "images").mkdir(parents=True)
hu = np.random.default_rng(0).integers(-200, 300, (16, 32, 16)).astype(np.int16)
np.savez(folder / "prepared" / "images" / "it.npz", hu=hu, labels=np.zeros(hu.shape, np.uint8))
network = make_network(dict(config.network))
save(folder / "checkpoint.pt", network, network, torch.optim.SGD(network.parameters(), 0.1), 1)
out = folder / "small"
agreements = export(
    folder / "checkpoint.pt", config, folder / "prepared", out, int8_only=True
)
refused = []
for use in (lambda: Model.load(out, precision="bf16"), lambda: load_average(out, config)):
    try:
        use()
    except (ModelError, ValueError) as error:
        refused.append(str(error))
print("RESULT", json.dumps({
    "compared": [each.precision for each in agreements],
    "files": sorted(path.name for path in out.iterdir()),
    "precision": Model.load(out).precision,
    "refused": refused,
}))
"""


def result_of(code: str, *arguments: str) -> dict[str, Any]:
    """What a program prints after RESULT."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
    return result


def test_every_precision_is_compared_with_pytorch(tmp_path: Path) -> None:
    """Also where logits are bits of bfloat16."""
    errors = result_of(_COMPARE, str(tmp_path))
    assert errors["f32"] < 1e-3 and errors["bf16"] < 0.1


def test_int8_alone_is_a_whole_model_but_no_start_of_a_training(tmp_path: Path) -> None:
    result = result_of(_INT8_ONLY, str(tmp_path))
    assert result["files"] == ["network_int8.bin", "network_int8.xml", "plan.json"]
    assert result["compared"] == ["int8"] and result["precision"] == "int8"
    no_bf16, no_start = result["refused"]
    assert "int8" in no_bf16
    assert "no network in floating point" in no_start


def test_layers_that_int8_hurts_are_spared() -> None:
    result = result_of(_QUANTISE)
    (plain, plain_layers), (aware, aware_layers) = result["plain"], result["aware"]
    assert plain < 0.9  # the trap works
    assert aware >= 0.99
    assert aware_layers < plain_layers
    spared, spared_layers = result["spared"]
    assert spared >= 0.99  # the layers named are those that hurt
    assert spared_layers < plain_layers


def test_upsampling_behind_a_leaky_relu_runs_in_int8() -> None:
    """OpenVINO itself says in what it computed."""
    result = result_of(_UPSAMPLE)
    assert result["precision"].lower() in ("i8", "u8")
    # Without VNNI two products of 8 bits are added in 16 bits: of weights like these some overflow.
    exact = {"avx512_vnni", "avx_vnni", "amx_int8"} & instruction_sets()
    assert result["error"] < (0.03 if exact else 0.2)


def test_what_is_upsampled_in_floating_point_comes_to_a_sum_as_it_is() -> None:
    result = result_of(_SUM)
    (inputs, error), (spared_inputs, spared_error) = result["int8"], result["floating"]
    assert inputs == ["FakeQuantize", "FakeQuantize"]
    assert spared_inputs == ["Add", "FakeQuantize"]  # its bias, and the skip connection
    assert spared_error < error


def test_held_out_cases_calibrate_only_where_there_are_no_others(tmp_path: Path) -> None:
    config = Config.load(REPOSITORY / "training/configs/abdoseg.yaml")
    config = replace(config, holdout=("kept",))
    labels = np.zeros((4, 4, 4), np.uint8)
    for name in ("images/fold", "images/kept", "images/bare", "pseudo/made"):
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, hu=labels.astype(np.int16), labels=labels + (path.stem != "bare"))

    def names() -> list[str]:
        return [volume.name for volume in volumes_for_checks(tmp_path, config, ("fold",))]

    assert names() == ["made", "bare"]
    (tmp_path / "images" / "bare.npz").unlink()
    (tmp_path / "pseudo" / "made.npz").unlink()
    assert names() == ["fold", "kept"]


_CLAIMS = ("Transferred patches", "Empty patches", "TCIA")


def test_the_model_card_tells_what_was_invented_and_bent(tmp_path: Path) -> None:
    config = Config.load(REPOSITORY / "training/configs/abdoseg.yaml")
    config = replace(
        config,
        version="9.9",
        shares={"synthetic": 0.5, "transferred": 0.2, "labelled": 0.2, "empty": 0.1, "pseudo": 0},
        coarse_first={"share": 0.25, "spacing": [None, 4.0, 4.0], "patch": [64, 64, 80]},
        freeze_norm=0.5,
        empty=("head",),
        holdout=("kept",),
    )
    path = Path("ct.nii.gz")
    cases = [
        Case("seen", "labelled", path, path, (1,), source="TotalSegmentator s0327"),
        Case("kept", "labelled", path, path, (1,), source="AMOS 13"),
        Case("head", "unlabelled", path, None, (), source="TCIA"),
        *(Case(f"m{i}", "labelmap", None, path, (1,), source=f"BTCV {i}") for i in range(9)),
        *(Case(f"n{i}", "labelmap", None, path, (1,), source=f"map s{i}") for i in (7, 12)),
        Case("other", "unlabelled", path, None, (), source="never drawn from"),
    ]
    plan = config.plan((16, 16, 16), {"f32": "network.xml"}, {"f32": 100.0})
    (tmp_path / "network.xml").touch()
    (tmp_path / "network.bin").touch()
    plan.save(tmp_path)
    assert Plan.load(tmp_path).name == "abdoseg"
    agreement = Agreement("f32", "seen", 0.001, 0.999, dict.fromkeys(plan.labels, None))
    maps = [f"bodies/{name}" for name in (*(f"m{i}" for i in range(9)), "n7", "n12")]
    for name in (*maps, "bodies/seen__seen", "transferred/seen__seen", "images/seen", "empty/head"):
        file = tmp_path / "prepared" / f"{name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, annotated=np.array([1]))

    def card(
        runs: list[Path], told: str = "", case: str = "seen", weights_from: Path | None = None
    ) -> str:
        agreed = [replace(agreement, case=case)]
        prepared = tmp_path / "prepared"
        write_model_card(
            tmp_path,
            config,
            cases,
            runs=runs,
            weights_from=weights_from,
            prepared=prepared,
            holdout=(),
            agreements=agreed,
            known_failures=told,
        )
        return (tmp_path / "README.md").read_text()

    text = card([tmp_path / "run"], "It sees cats.")
    for words in (
        "on a machine of which there is no record",
        "Shares of the patches: synthetic 0.5, labelled 0.2, transferred 0.2, empty 0.1.",
        "in one pass over the body where `abdoseg_look` finds organs. Default precision: ",
        "Synthetic patches",
        "Transferred patches are a real CT",
        "esophagus and the aorta: head.",
        "The first 25 % of the steps saw patches of 64 x 64 x 80 voxels at the CT's own spacing x "
        "4 mm x 4 mm.",
        "After 50 % of the steps batch norms kept their statistics.",
        "| TotalSegmentator s0327 | unknown | CT and labels | 1 |",
        "| AMOS 13 | unknown | held out | 1 |",
        "| BTCV 0 to 8 | unknown | label map, for synthesis | 9 |",
        "| map s7, 12 | unknown | label map, for synthesis | 2 |",
        "| TCIA | unknown | CT known to show none of the organs | 1 |",
        "## Known failures\n\nIt sees cats.\n",
    ):
        assert words in text, words
    assert "Pseudo-labelled" not in text and "never drawn from" not in text
    assert "calibrated on the held-out" not in text
    for kind in ("transferred", "empty"):  # what there is none of is not claimed
        shutil.rmtree(tmp_path / "prepared" / kind)
    text = card([tmp_path / "run"])
    assert "synthetic 0.71, labelled 0.29." in text
    assert "None have been written down" in text
    assert not [claim for claim in _CLAIMS if claim in text]
    settings = {"rounds": 2, "iterations": 700, "learning_rate": 0.001}
    config = replace(config, self_training=settings)
    runs = []
    for number, steps in enumerate((2000, 700, 700)):
        runs.append(tmp_path / f"run{number}")
        runs[-1].mkdir()
        (runs[-1] / "log.csv").write_text(f"iteration,seconds_per_iteration\n{steps},3.6\n")
        (runs[-1] / "machines.txt").write_text("a machine\n" + "another\n" * (number == 1))
    text = card(runs)
    assert "2000 + 700 + 700 steps of" in text
    assert " 3.40 hours on a machine and another." in text
    assert "a first training and 2 round(s) of self-training" in text
    assert "The first 25 % of the first training's steps saw" in text
    assert "After 50 % of each training's steps batch norms" in text
    assert "The training began with" not in text
    header, scores = ",".join(ORGANS.values()), ",".join(["0.9"] * len(ORGANS))
    (runs[2] / "scores.csv").write_text(f"iteration,case,{header}\n700,kept,{scores}\n")
    assert "DSC on 1 CT that was not trained on (kept)" in card(runs)
    (runs[0] / "initial.txt").write_text("abdoseg 0.8.0\n")
    text = card(runs)
    assert "The training began with the weights of abdoseg 0.8.0:" in text
    assert "this training did not see, though the weights it began with may have (kept)" in text
    assert "int8 was calibrated on the held-out cases" in card(runs, case="kept")
    text = card([], weights_from=tmp_path)  # weights that were not trained here
    assert "The weights are those of abdoseg 9.9: its card says" in text
    assert " steps of" not in text and "Not measured" in text
