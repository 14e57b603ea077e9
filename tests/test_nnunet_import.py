"""The importer: what it finds, what it refuses in one line, what a model folder then holds."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import put
from nnunet_models import (
    KINDS,
    ORGANS,
    Kind,
    architecture,
    make_case,
    make_results,
    plans_and_dataset,
    probabilities_of_nnunet,
    understood,
)

from inference.cli import main as segment
from inference.errors import ModelError, UsageError
from inference.labels.labels import fill_labels
from inference.plan import Plan
from training.__main__ import main as training
from training.nnunet.checkpoint import load_checkpoint
from training.nnunet.label_map import LabelMap
from training.nnunet.network import architecture_of, strides_of
from training.nnunet.plan import outputs_of
from training.nnunet.results import configuration_of, open_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of nnU-Net's, to be read only."""
    return make_results(tmp_path_factory.mktemp("nnunet"), KINDS["plain_2p5mm"])


def run(*words: object) -> int:
    return training(["import-nnunet", *(str(word) for word in words)])


def changed(results: Path, folder: Path, file: str = "plans.json", **changes: Any) -> Path:
    """A copy of a model with other plans; keys of the first configuration or of the plans."""
    copy = folder / results.name
    for path in (p for p in results.rglob("*") if p.is_file()):
        target = copy / path.relative_to(results)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    content = json.loads((copy / file).read_text())
    for key, value in changes.items():
        first = content.get("configurations", {}).get("3d_fullres", {})
        (first if key in first or key == "previous_stage" else content)[key] = value
    (copy / file).write_text(json.dumps(content))
    return copy


def test_inheritance() -> None:
    plans: dict[str, Any] = {
        "configurations": {
            "a": {"spacing": [1, 1, 1], "patch_size": [8, 8, 8]},
            "b": {"inherits_from": "a", "spacing": [2, 2, 2]},
            "c": {"inherits_from": "b", "batch_size": 1},
            "round": {"inherits_from": "about"},
            "about": {"inherits_from": "round"},
        }
    }
    found = configuration_of(plans, "c")
    assert (found["spacing"], found["patch_size"]) == ([2, 2, 2], [8, 8, 8])
    assert plans["configurations"]["a"]["spacing"] == [1, 1, 1]
    with pytest.raises(ModelError, match="inherits from itself"):
        configuration_of(plans, "round")
    with pytest.raises(ModelError, match="no configuration 'd', only a, b"):
        configuration_of(plans, "d")


def test_what_is_found(results: Path, tmp_path: Path) -> None:
    with open_results(results.parent) as found:  # a folder above
        assert list(found.checkpoints) == ["0", "1"]
        assert found.name == results.name
    with open_results(results, ["1"]) as found:
        assert list(found.checkpoints) == ["1"]
    with pytest.raises(ModelError, match=r"fold_4/checkpoint_final\.pth is missing"):
        open_results(results, ["4"]).__enter__()
    other = results.parent / "nnUNetTrainer__nnUNetPlans__other"
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in results.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(results.parents[1]))
            if path.name != "dataset.json":
                file.write(
                    path, (other / path.relative_to(results)).relative_to(results.parents[1])
                )
    with pytest.raises(ModelError, match="several models; choose with --configuration"):
        open_results(archive).__enter__()
    with open_results(archive, configuration="model") as found:
        assert found.dataset["labels"] == ORGANS
        assert all(path.is_file() for path in found.checkpoints.values())
    with pytest.raises(ModelError, match=r"dataset\.json is missing"):
        open_results(archive, configuration="other").__enter__()
    for path, message in ((tmp_path / "no", "no such"), (tmp_path, "no trained model")):
        with pytest.raises(ModelError, match=message):
            open_results(path).__enter__()
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ModelError, match="neither a folder nor a zip"):
        open_results(tmp_path / "text.zip").__enter__()


def hollow(folder: Path, *files: str) -> Path:
    """A model's folder that can be found and not read further: its checkpoints are empty."""
    for name in ("plans.json", "dataset.json"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    return folder


def test_models_of_one_configuration(tmp_path: Path) -> None:
    names = ["nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainer__nnUNetResEnc__3d_fullres"]
    checkpoint = "fold_0/checkpoint_final.pth"
    for name in names:
        hollow(tmp_path / "Dataset001_Test" / name, checkpoint)
    archive = tmp_path / "models.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tmp_path.rglob("*.*"):
            if path != archive:
                file.write(path, path.relative_to(tmp_path))
    for given in (tmp_path, archive):
        for name in names:
            with open_results(given, configuration=name) as found:
                assert found.name == name
        for configuration in (None, "3d_fullres"):
            with pytest.raises(ModelError, match="several") as caught:
                open_results(given, configuration=configuration).__enter__()
            assert str(caught.value).endswith(f": {', '.join(names)}")
        with pytest.raises(ModelError, match=f"no model '2d' here, only {', '.join(names)}$"):
            open_results(given, configuration="2d").__enter__()
    # Two data sets' models of one name are told apart by their folders, as the message lists them.
    hollow(tmp_path / "Dataset002_More" / names[0], checkpoint)
    with pytest.raises(ModelError, match=f"Dataset001_Test/{names[0]}, Dataset001_Test/") as caught:
        open_results(tmp_path).__enter__()
    last = str(caught.value).split(", ")[-1]
    with open_results(tmp_path, configuration=last) as found:
        assert found.checkpoints["0"] == tmp_path / "Dataset002_More" / names[0] / checkpoint


def test_the_working_directory_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "nnUNetTrainer__nnUNetPlans_v1.5__3d_fullres"
    model = hollow(tmp_path / name, "fold_0/checkpoint_final.pth")
    monkeypatch.chdir(model)
    for given in (".", "fold_0/.."):
        with open_results(Path(given), configuration="3d_fullres") as found:
            assert found.name == name
            assert found.checkpoints["0"].is_file()


def test_a_link_to_a_model_is_followed_and_one_above_itself_too(
    results: Path, tmp_path: Path
) -> None:
    """Results often lie on another disk; a link to a folder above must not go round for ever."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / results.name).symlink_to(results)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with open_results(tmp_path / "a") as found:
        assert found.name == results.name and set(found.checkpoints) == {"0", "1"}


def test_links_hide_no_fold_and_give_no_second_name(results: Path, tmp_path: Path) -> None:
    folder = changed(results, tmp_path)
    (folder / "fold_all").symlink_to("fold_0")
    for link in ("best", "zz"):
        (tmp_path / link).symlink_to(folder.name)
        with open_results(tmp_path, (), "model") as found:
            assert found.name == results.name and set(found.checkpoints) == {"0", "1"}
        with open_results(tmp_path, ("all",)) as found:
            assert set(found.checkpoints) == {"all"}


def test_a_zip_whose_end_is_damaged_is_one_line(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(results / "plans.json", "m/plans.json")
    content = bytearray(file.read_bytes())
    content[content.find(b"PK\x01\x02") + 1] = 0
    file.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"), open_results(file):
        pass


def test_an_encrypted_zip_is_one_line(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(results.rglob("*.*")):
            archive.write(path, f"{results.name}/{path.relative_to(results)}")
    content = bytearray(file.read_bytes())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + flags] |= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be unpacked \(.*encrypted"), open_results(file):
        pass


def test_folds(tmp_path: Path) -> None:
    """Numbered folds are nnU-Net's cross-validation; "all" is a training on everything."""
    checkpoint = "checkpoint_final.pth"
    every = ["fold_1", "fold_all", "fold_0"]
    several = hollow(tmp_path / "several", *(f"{fold}/{checkpoint}" for fold in every))
    single = hollow(tmp_path / "single", f"fold_all/{checkpoint}", "fold_0/checkpoint_best.pth")
    crossed = hollow(tmp_path / "crossed", f"fold_2/{checkpoint}", f"fold_0/{checkpoint}")
    for given, wanted, expected in (
        (several, [], ["0", "1"]),
        (several, ["all"], ["all"]),
        (several, ["1", "all"], ["1", "all"]),
        (single, [], ["all"]),
        (crossed, ["all"], ["0", "2"]),
    ):
        with open_results(given, wanted) as found:
            assert list(found.checkpoints) == expected
            for fold, path in found.checkpoints.items():
                assert path == given / f"fold_{fold}" / checkpoint
    with open_results(single, checkpoint="checkpoint_best.pth") as found:
        assert found.checkpoints == {"0": single / "fold_0/checkpoint_best.pth"}


def test_outputs() -> None:
    labels = outputs_of({"labels": {**ORGANS, "ignore": 4}})
    assert labels.values == (0, 1, 2, 3)
    assert labels.labels == {"liver": 1, "spleen": 2, "kidney left": 3}
    regions = outputs_of({"labels": KINDS["regions"].labels, "regions_class_order": [1, 2, 3]})
    assert regions.regions
    assert regions.channels == 3
    assert regions.values == (1, 2, 3)
    assert regions.members == {"whole tumor": (1, 2, 3), "tumor core": (2, 3)}
    for broken, message in (
        ({"a": 1}, "no label 'background'"),
        ({"background": 0, "a": 2}, "without a gap"),
        ({"background": 0, "a": [1, 2], "b": 2}, "regions_class_order"),
        ({"background": 0, **{str(i): i for i in range(1, 300)}}, "more than 255"),
    ):
        with pytest.raises(ModelError, match=message):
            outputs_of({"labels": broken})


def test_label_maps(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"

    def load(text: str) -> LabelMap:
        file.write_text(text)
        return LabelMap.load(file)

    # Our organs keep their values, others count from 1.
    assert load("left_kidney: kidney left\nliver: [liver, spleen]").labels == {
        "left_kidney": 13, "liver": 1,
    }  # fmt: skip
    both = load('{"kidneys": {"value": 7, "from": ["kidney left"]}, "rest": ["liver", "spleen"]}')
    assert both.labels == {"kidneys": 7, "rest": 2}
    merged = outputs_of({"labels": ORGANS}, both)
    assert merged.values == (0, 2, 2, 7), "labels are merged after the decision"
    assert merged.kept == (0, 1, 2, 3), "every class still takes part in it"
    dataset = {"labels": KINDS["regions"].labels, "regions_class_order": [1, 2, 3]}
    core = outputs_of(dataset, load("core: tumor core"))
    assert (core.kept, core.values) == ((1,), (1,)), "the other regions take no part"
    two = outputs_of(dataset, load("core: tumor core\nwhole: whole tumor"))
    assert (two.kept, two.values) == ((0, 1), (2, 1)), "painted in the model's order"
    assert two.members == {"whole": (1, 2)}, "the core's voxels count as the whole's too"
    for text, message in (
        ("[]", "no map"),
        ("a: []", "no class is named"),
        ("a: {value: 300, from: liver}", "not a whole number from 1 to 255"),
        ("a: {value: 2, from: liver}\nb: spleen", "the same value"),
        ("a: {b: [", "not YAML"),
        ("liver: {from: liver, valeu: 9}", "unknown valeu"),
        ("a: {value: true, from: liver}", "value is True"),
        ("a: liver\nb: spleen\na: kidney left", "'a' is given twice"),
    ):
        with pytest.raises(UsageError, match=message):
            load(text)
    with pytest.raises(UsageError, match="no class 'lung'"):
        outputs_of({"labels": ORGANS}, load("a: lung"))
    with pytest.raises(UsageError, match="to become two labels"):
        outputs_of({"labels": ORGANS}, load("a: liver\nb: liver"))
    with pytest.raises(UsageError, match="no such file"):
        LabelMap.load(tmp_path / "none.yaml")


class Evil:
    """Runs something where a checkpoint is read carelessly."""

    marker: Path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_checkpoints_run_nothing(results: Path, tmp_path: Path) -> None:
    good = load_checkpoint(results / "fold_0/checkpoint_final.pth")
    assert (good.trainer, good.configuration, good.epochs) == ("nnUNetTrainer", "model", 1000)
    assert good.mirror_axes == (0, 1, 2)

    Evil.marker = tmp_path / "was_run"
    evil = tmp_path / "fold_0" / "checkpoint_final.pth"
    evil.parent.mkdir()
    torch.save({"network_weights": {}, "trainer_name": "x", "logging": Evil()}, evil)
    with pytest.raises(ModelError, match=r"^fold_0/checkpoint_final\.pth: holds .*trust"):
        load_checkpoint(evil)
    assert not Evil.marker.exists()
    load_checkpoint(evil, trust=True)
    assert Evil.marker.exists()

    torch.save({"weights": 1}, evil)
    with pytest.raises(ModelError, match="no checkpoint of nnU-Net v2"):
        load_checkpoint(evil)
    evil.write_text("hello")
    with pytest.raises(ModelError, match="cannot be read"):
        load_checkpoint(evil)


def test_old_plans_name_the_network_otherwise() -> None:
    new = architecture()
    arguments = new["arch_kwargs"]
    old = {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 8,
        "unet_max_num_features": 24,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
        "patch_size": [16, 32, 32],
    }
    found = architecture_of(old)
    assert found["arch_kwargs"] == {**arguments, "features_per_stage": [8, 16, 24]}
    assert found["network_class_name"] == new["network_class_name"]
    assert strides_of(found, 3) == (4, 4, 4)
    assert strides_of({"arch_kwargs": {"strides": [1, 2, [2, 1, 2]]}}, 3) == (4, 2, 4)
    assert strides_of({"arch_kwargs": {"strides": [1, 2]}}, 2) == (2, 2)
    with pytest.raises(ModelError, match="unknown network"):
        architecture_of({**old, "UNet_class_name": "Other"})


ARGUMENTS = architecture()["arch_kwargs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"previous_stage": "3d_lowres"}, "a cascade's second stage"),
        ({"image_reader_writer": "NaturalImage2DIO"}, "image reader 'NaturalImage2DIO'"),
        ({"preprocessor_name": "Mine"}, "preprocessor 'Mine'"),
        ({"normalization_schemes": ["Mine"]}, "normalisation 'Mine'"),
        ({"normalization_schemes": []}, "0 normalisations for 1 channels"),
        ({"resampling_fn_data": "mine"}, "resampling by mine"),
        ({"label_manager": "Mine"}, "label manager 'Mine'"),
        (
            {"architecture": {**architecture(), "network_class_name": "os.system"}},
            "network os.system is none",
        ),
        (
            {"architecture": architecture(strides=((1, 1, 1), (2, 2, 2)))},
            "not those of the network in the plans",
        ),
        (
            {"architecture": {**architecture(), "arch_kwargs": ARGUMENTS | {"n_stages": 7}}},
            "architecture of PlainConvUNet: not as nnU-Net writes it",
        ),
        (
            {
                "architecture": {
                    **architecture(),
                    "arch_kwargs": ARGUMENTS | {"features_per_stage": [-8, 16]},
                }
            },
            "architecture of PlainConvUNet: not as nnU-Net writes it",
        ),
        ({"configurations": {}}, "no configuration 'model'"),
        ({"patch_size": [8, 8, 8, 8]}, "are not of 2 or 3 axes"),
        ({"spacing": [2.0, 2.0, float("nan")]}, "spacing is [2.0, 2.0, nan], not"),
        ({"spacing": None}, "plans.json: not as nnU-Net writes it"),
        ({"resampling_fn_data_kwargs": {"order": 7}}, "resampling: order is 7"),
        ({"image_reader_writer": ["SimpleITKIO"]}, "plans.json: not as nnU-Net writes it"),
    ],
)
def test_what_cannot_be_served_gets_one_line(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    copy = changed(results, tmp_path, **changes)
    assert run(copy, "--out", tmp_path / "weights/x", "--folds", "0") == 2
    _, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert line.startswith("training: ")
    assert message in line
    assert not (tmp_path / "weights/x").exists()


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("configurations", "plans"),
        ("image_reader_writer", "plans"),
        ("transpose_forward", "plans"),
        ("spacing", "configuration"),
        ("patch_size", "configuration"),
        ("use_mask_for_norm", "configuration"),
        ("resampling_fn_probabilities_kwargs", "configuration"),
        ("std", "intensities"),
        ("arch_kwargs", "architecture"),
    ],
)
def test_missing_keys_are_named(key: str, where: str) -> None:
    plans, dataset, name = plans_and_dataset(KINDS["residual"])
    configuration = plans["configurations"][name]
    parts = {
        "plans": plans,
        "configuration": configuration,
        "intensities": plans["foreground_intensity_properties_per_channel"]["0"],
        "architecture": configuration["architecture"],
    }
    del parts[where][key]
    with pytest.raises(ModelError, match=rf"^plans\.json: '{key}' is missing$"):
        understood(plans, dataset, name, outputs_of(dataset))
        architecture_of(configuration_of(plans, name))
    del dataset["labels"]
    with pytest.raises(ModelError, match=r"^dataset\.json: 'labels' is missing$"):
        outputs_of(dataset)


def test_other_missing_keys_are_not_blamed_on_the_plans(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("mine")

    monkeypatch.setattr("training.nnunet.command.build", broken)
    with pytest.raises(KeyError, match="mine"):
        run(results, "--out", tmp_path / "x", "--folds", "0")


def test_int8_wants_cts(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(results, "--out", tmp_path / "x", "--precision", "int8") == 2
    assert "--precision int8 needs --calibrate" in capsys.readouterr().err


def test_only_models_are_replaced(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    (weights / "other").mkdir(parents=True)
    assert run(results, "--out", weights, "--folds", "0") == 2
    assert "exists and is no model folder" in capsys.readouterr().err
    assert (weights / "other").is_dir()


def test_a_network_that_openvino_does_not_know(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unknown(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x[0, 0, 0, :4, :4]).real

    monkeypatch.setattr("training.nnunet.command.Together", lambda *_, **__: Unknown())
    assert run(results, "--out", tmp_path / "x", "--folds", "0") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "OpenVINO cannot convert this network" in line
    assert "linalg_eigvals" in line


def test_half_precision_is_compared(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tmp_path / "in"
    make_case(cases, Kind({}, ORGANS))
    model = tmp_path / "half"
    options = ["--out", model, "--folds", "0", "--precision", "fp16", "--calibrate", cases]
    assert run(results, *options) == 0
    found = re.search(r"case_0000\.nii\.gz: ([0-9.]+) % of the voxels", capsys.readouterr().out)
    assert found
    assert float(found[1]) > 98
    ct = sitk.ReadImage(cases / "case_0000.nii.gz")
    put(
        tmp_path / "dicom" / "study",
        sitk.Cast(sitk.Clamp(ct, sitk.sitkFloat32, -1024, 3000), sitk.sitkInt16),
    )
    assert run(results, *options[:-1], tmp_path / "dicom") == 0
    assert "study: " in capsys.readouterr().out
    (cases / "damaged_0000.nii.gz").write_text("hello")
    assert run(results, *options) == 2
    assert f"{cases}/damaged_0000.nii.gz: is not a NIfTI file" in capsys.readouterr().err
    assert (model / "plan.json").is_file(), "what was there before stays"


def test_a_trusted_best_checkpoint_of_fold_all(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Evil.marker = tmp_path / "was_run"
    copy = changed(results, tmp_path, image_reader_writer="NibabelIO")
    state = torch.load(copy / "fold_1/checkpoint_final.pth", weights_only=False)
    (copy / "fold_all").mkdir()
    torch.save(
        {**state, "current_epoch": 7, "logging": Evil()}, copy / "fold_all/checkpoint_best.pth"
    )
    model = tmp_path / "weights/x"
    options = ["--out", model, "--folds", "all", "--checkpoint-name", "checkpoint_best.pth"]
    assert run(copy, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"training: {copy}: fold_all/checkpoint_best.pth: holds ")
    assert "--trust-checkpoint" in line
    assert not Evil.marker.exists()

    # The folder of CTs is not even looked for: there is nothing to compare.
    options += ["--trust-checkpoint", "--calibrate", tmp_path / "none"]
    assert run(copy, *options) == 0
    assert Evil.marker.exists()
    assert capsys.readouterr().out.startswith("note: --calibrate is not used")
    card = (model / "README.md").read_text()
    assert "| folds | all |" in card
    assert "| epochs | 7 |" in card
    assert Plan.load(model).orientation is None, "NibabelIO does not reorient"


def test_a_zip_that_nnunet_wrote(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own ``nnUNetv2_export_model_to_zip``."""
    from nnunetv2.model_sharing.entry_points import export_pretrained_model_entry

    copy = changed(results, tmp_path / "Dataset001_Test")
    (copy / "dataset_fingerprint.json").write_text("{}")
    for fold in ("0", "1"):  # more that the export wants of a fold
        (copy / f"fold_{fold}/validation").mkdir()
        (copy / f"fold_{fold}/validation/summary.json").write_text("{}")
        (copy / f"fold_{fold}/progress.png").touch()
    archive = tmp_path / "model.zip"
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    command = f"nnUNetv2_export_model_to_zip -d Dataset001_Test -o {archive} -c model -f 0 1"
    monkeypatch.setattr("sys.argv", command.split())
    export_pretrained_model_entry()
    with open_results(archive) as found:
        assert found.name == results.name
        assert found.plans == json.loads((results / "plans.json").read_text())
        assert found.dataset == json.loads((results / "dataset.json").read_text())
        assert list(found.checkpoints) == ["0", "1"]
        for fold, path in found.checkpoints.items():
            original = results / f"fold_{fold}/checkpoint_final.pth"
            assert path.read_bytes() == original.read_bytes()


def test_a_map_and_one_fold_from_a_zip(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Merged labels are those of the whole model, merged."""
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in results.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(results.parents[1]))
    mapped = tmp_path / "map.json"
    mapped.write_text('{"left_kidney": "kidney left", "liver": ["liver", "spleen"]}')
    whole, few = tmp_path / "weights/whole", tmp_path / "weights/few"
    for out, more in ((whole, []), (few, ["--map-labels", mapped])):
        assert run(archive, "--out", out, "--folds", "1", *more) == 0, capsys.readouterr().err
    plan = Plan.load(few)
    assert plan.labels == {"left_kidney": 13, "liver": 1}
    card = (few / "README.md").read_text()
    assert "| folds | 1 |" in card
    assert "Not a medical device" in card
    make_case(tmp_path / "in", KINDS["plain_2p5mm"])
    found = []
    for model in (whole, few):
        out = tmp_path / f"out_{model.name}"
        assert segment(["-i", str(tmp_path / "in"), "-o", str(out), "--model", str(model)]) == 0
        found.append(read(out / "case.nii.gz"))
    assert np.array_equal(np.array([0, 1, 1, 13], np.uint8)[found[0]], found[1])
    assert len(np.unique(found[1])) == 3


@pytest.mark.parametrize(
    "wanted",
    [["whole tumor"], ["tumor core"], ["enhancing", "whole tumor"], ["enhancing", "tumor core"]],
)
def test_mapped_regions_are_those_of_nnunets_rule(wanted: list[str], tmp_path: Path) -> None:
    """nnU-Net: where the sigmoid of a region's channel is larger than 0.5."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    kind = KINDS["regions"]
    plans, dataset, name = plans_and_dataset(kind)
    logits = np.random.default_rng(0).normal(size=(3, 8, 9, 10)).astype(np.float32)
    manager = LabelManager(kind.labels, list(kind.order or ()))
    likely = manager.apply_inference_nonlin(logits).numpy() > 0.5
    regions = ["whole tumor", "tumor core", "enhancing"]
    expected = np.zeros(logits.shape[1:], np.uint8)
    for channel, region in enumerate(regions):
        if region in wanted:
            expected[likely[channel]] = 1 + wanted.index(region)

    file = tmp_path / "map.yaml"
    file.write_text("".join(f"new {region}: {region}\n" for region in wanted))
    outputs = outputs_of(dataset, LabelMap.load(file))
    plan = understood(plans, dataset, name, outputs)
    found = np.full(logits.shape[1:], 9, np.uint8)
    fill_labels(logits[list(outputs.kept)], plan, (1, 1, 1), (1, 1, 1), found)
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_regions_that_are_not_wanted_are_cut_off(tmp_path: Path) -> None:
    """One region alone is, whole, where nnU-Net's own predictor finds it likely."""
    kind = KINDS["regions"]
    results = make_results(tmp_path, kind)
    mapped = tmp_path / "map.yaml"
    mapped.write_text("whole: whole tumor\n")
    model = tmp_path / "weights/whole"
    assert run(results, "--out", model, "--map-labels", mapped) == 0
    assert Plan.load(model).outputs == (1,)
    files = make_case(tmp_path / "in", kind)
    assert segment(["-i", str(tmp_path / "in"), "-o", str(tmp_path), "--model", str(model)]) == 0
    found = read(tmp_path / "case.nii.gz")
    likely = probabilities_of_nnunet(results, files)[0] > 0.5
    assert 0.1 < likely.mean() < 0.9
    assert (found == likely).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "two_channels", "flat"])
def test_the_fast_form(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = KINDS.get(name) or Kind({"spacing": [3.0, 2.2, 2.1]}, ORGANS)
    results = make_results(tmp_path, kind)
    make_case(tmp_path / "in", kind)
    model = tmp_path / "weights/fast"
    options = ["--precision", "int8", "--calibrate", tmp_path / "in", "--tiling", "whole"]
    assert run(results, "--out", model, *options) == 0
    out, _ = capsys.readouterr()
    assert "times as fast" in out
    assert "kidney left: DSC 0." in out
    same = re.search(r"case_0000\.nii\.gz: ([0-9.]+) % of the voxels", out)
    assert same
    assert float(same[1]) > 80, "int8 in one pass has little to do with fp32"
    plan = Plan.load(model)
    assert (plan.precision, plan.tiling) == ("int8", "whole")
    assert set(plan.networks) == {"f32", "bf16", "int8"}
    assert set(plan.bytes_per_voxel) == set(plan.networks)
    assert min(plan.bytes_per_voxel.values()) > 4
    assert "seconds in the network" in (model / "README.md").read_text()
    labels = tmp_path / "out"
    assert segment(["-i", str(tmp_path / "in"), "-o", str(labels), "--model", str(model)]) == 0
    assert len(np.unique(read(labels / "case.nii.gz"))) == 4


def read(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(path))
