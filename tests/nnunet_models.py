"""Small nnU-Net v2 models, made with nnU-Net's own classes, and nnU-Net's answer to a case.

Each is trained for a few steps to tell intensities apart, so that its labels vary and have
shapes; the folder is what nnU-Net's trainer leaves behind.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import nn

from inference.plan import Plan
from training.nnunet.plan import Outputs, plan_of
from training.nnunet.results import configuration_of

pytest.importorskip("nnunetv2", reason="nnU-Net v2 is not installed")
pytest.importorskip("dynamic_network_architectures")

UNET = "dynamic_network_architectures.architectures.unet."


@dataclass(frozen=True)
class Kind:
    """What is particular about a model and its case.

    Attributes:
        configuration: of the plans, besides what all share.
        labels: of dataset.json.
        channels: names of the input channels.
        plans: of the plans, outside the configuration.
        order: regions_class_order, for regions.
        shape: of the case's volume (z, y, x).
        spacing: of the case's image (x, y, z).
        direction: of the case's image.
        folds: how many there are.
        mirror: axes along which nnU-Net mirrors.
    """

    configuration: dict[str, Any]
    labels: dict[str, Any]
    channels: tuple[str, ...] = ("CT",)
    plans: dict[str, Any] | None = None
    order: tuple[int, ...] | None = None
    shape: tuple[int, int, int] = (26, 44, 40)
    spacing: tuple[float, float, float] = (2.0, 2.0, 3.0)
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    folds: int = 1
    mirror: tuple[int, ...] = (0, 1, 2)


def architecture(
    name: str = "PlainConvUNet",
    strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernels: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The part of a configuration that names the network, in nnU-Net's present form."""
    dimensions, stages = len(strides[0]), len(strides)
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": UNET + name,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [8, 16, 24][:stages],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [list(k) for k in kernels or [[3] * dimensions] * stages],
            "strides": [list(step) for step in strides],
            blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


SHARED: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [16, 32, 32],
    "spacing": [2.5, 2.5, 2.5],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {
        "is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None,
    },
    "resampling_fn_seg_kwargs": {
        "is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None,
    },
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {
        "is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None,
    },
    "architecture": architecture(),
}  # fmt: skip

ORGANS = {"background": 0, "liver": 1, "spleen": 2, "kidney left": 3}

KINDS = {
    "plain_2p5mm": Kind(
        # As the 117 classes' model has it: reoriented by nibabel, written as what differs.
        {"inherits_from": "3d_fullres"},
        ORGANS,
        plans={"image_reader_writer": "NibabelIOWithReorient"},
        direction=(0, -1, 0, -1, 0, 0, 0, 0, -1),
        spacing=(1.6, 2.1, 3.0),
        folds=2,
    ),
    "residual": Kind(
        {"architecture": architecture("ResidualEncoderUNet"), "spacing": [3.0, 2.2, 2.2]}, ORGANS
    ),
    "another_class": Kind(
        {"architecture": architecture("ResidualUNet"), "spacing": [3.0, 2.2, 2.2]}, ORGANS
    ),
    "anisotropic": Kind(
        {
            "spacing": [5.0, 1.4, 1.5],
            "patch_size": [8, 32, 32],
            "architecture": architecture(
                strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3))
            ),
        },
        ORGANS,
        plans={"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
        shape=(40, 46, 18),
        spacing=(6.0, 1.2, 1.3),
        direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1),
    ),
    "two_channels": Kind(
        {
            "normalization_schemes": ["ZScoreNormalization"] * 2,
            "use_mask_for_norm": [True, True],
            "spacing": [3.0, 2.2, 2.1],
        },
        ORGANS,
        channels=("T1", "T2"),
    ),
    "regions": Kind(
        {"spacing": [3.0, 2.2, 2.1]},
        {
            "background": 0,
            "whole tumor": [1, 2, 3],
            "tumor core": [2, 3],
            "enhancing": 3,
            "ignore": 4,
        },
        order=(1, 2, 3),
    ),
    "resampled_by_torch": Kind(
        {
            "spacing": [3.0, 2.2, 2.1],
            **{
                f"resampling_fn_{kind}": "resample_torch_fornnunet"
                for kind in ("data", "seg", "probabilities")
            },
            **{
                f"resampling_fn_{kind}_kwargs": {"is_seg": kind == "seg", "force_separate_z": None}
                for kind in ("data", "seg", "probabilities")
            },
        },
        ORGANS,
        plans={"image_reader_writer": "SimpleITKIOWithReorient"},
        spacing=(1.8, 1.7, 7.0),
        direction=(0, 0, 1, -1, 0, 0, 0, -1, 0),
    ),
    "flat": Kind(
        {
            "spacing": [2.3, 2.2],
            "patch_size": [32, 40],
            "architecture": architecture(strides=((1, 1), (2, 2), (2, 2))),
        },
        ORGANS,
        spacing=(2.0, 2.0, 7.0),
        mirror=(0, 1),
    ),
}


def plans_and_dataset(
    kind: Kind, name: str = "3d_fullres"
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What ``plans.json`` and ``dataset.json`` hold, and the trained configuration's name."""
    trained = "model" if "inherits_from" in kind.configuration else name
    content = {**deepcopy(SHARED), **(kind.configuration if trained == name else {})}
    configurations = {name: content}
    if trained != name:
        configurations[trained] = kind.configuration
    plans = {
        "dataset_name": "Dataset001_Test",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): {
                "mean": 60.0, "std": 150.0, "percentile_00_5": -500.0, "percentile_99_5": 450.0,
                "min": -1024.0, "max": 3000.0, "median": 50.0,
            }
            for i in range(len(kind.channels))
        },
        "configurations": configurations,
        **(kind.plans or {}),
    }  # fmt: skip
    dataset = {
        "channel_names": {str(i): channel for i, channel in enumerate(kind.channels)},
        "labels": kind.labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **({"regions_class_order": list(kind.order)} if kind.order else {}),
    }
    return deepcopy(plans), deepcopy(dataset), trained


def understood(plans: dict[str, Any], dataset: dict[str, Any], name: str, outputs: Outputs) -> Plan:
    """Our plan of nnU-Net's plans, as the importer makes it by default."""
    return plan_of("model", plans, configuration_of(plans, name), dataset, outputs)


def make_results(folder: Path, kind: Kind, name: str = "3d_fullres") -> Path:
    """Write what nnU-Net leaves behind; returns the folder with ``plans.json``."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, dataset, trained = plans_and_dataset(kind, name)
    folder = folder / "Dataset001_Test" / f"nnUNetTrainer__nnUNetPlans__{trained}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=4))
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=4))
    manager = PlansManager(deepcopy(plans))
    configuration = manager.get_configuration(trained)
    labels = manager.get_label_manager(dataset)
    for fold in range(kind.folds):
        torch.manual_seed(fold)
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            len(kind.channels),
            labels.num_segmentation_heads,
            deep_supervision=False,
        )
        _train(network, len(kind.channels), configuration.patch_size, labels)
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            checkpoint_of(network, trained, plans, dataset, kind.mirror),
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


def checkpoint_of(
    network: nn.Module,
    configuration: str,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    mirror: tuple[int, ...],
) -> dict[str, Any]:
    """What nnUNetTrainer.save_checkpoint writes, losses as NumPy's numbers included."""
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {
            "train_losses": [np.float32(0.5), np.float64(0.25)],
            "dice_per_class_or_region": [[np.float64(0.5)]],
            "epoch_end_timestamps": [1.0],
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": 0,
            "dataset_json": dataset,
            "unpack_dataset": True,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirror,
    }


def _train(network: nn.Module, inputs: int, patch: Sequence[int], labels: Any) -> None:
    """A few steps towards telling four levels of smooth noise apart."""
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    heads = labels.num_segmentation_heads
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        noise = torch.rand((2, inputs, *patch), generator=generator)
        pool = nn.functional.avg_pool3d if len(patch) == 3 else nn.functional.avg_pool2d
        image = pool(noise, 5, stride=1, padding=2)
        image = (image - image.mean()) / image.std()
        target = torch.bucketize(image[:, 0].contiguous(), torch.tensor([-0.7, 0.2, 0.9]))
        logits = network(image)
        if labels.has_regions:
            wanted = torch.stack([target > i for i in range(heads)], dim=1).float()
            loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            loss = nn.functional.cross_entropy(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def make_case(folder: Path, kind: Kind, seed: int = 0) -> list[Path]:
    """A case's files ``case_0000.nii.gz``, ...: smooth noise in HU, zero around it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for channel in range(len(kind.channels)):
        volume: NDArray[Any] = rng.normal(0, 1, kind.shape)
        image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(volume), 2.0)
        volume = sitk.GetArrayFromImage(image)
        volume = 60 + 220 * volume / volume.std()
        volume[:3] = volume[:, -4:] = volume[:, :, :2] = 0
        volume[10:12, 20:22, 7:9] = 0  # a hole
        image = sitk.GetImageFromArray(volume.round().astype(np.int16))
        image.SetSpacing(kind.spacing)
        image.SetDirection(kind.direction)
        image.SetOrigin((-11.0, 23.0, 5.0))
        files.append(folder / f"case_{channel:04d}.nii.gz")
        sitk.WriteImage(image, files[-1])
    return files


def predict_as_nnunet(
    results: Path, files: Sequence[Path], out: Path, mirror: bool
) -> NDArray[np.uint8]:
    """nnU-Net's own labels of a case, written by its own writer and read again."""
    with contextlib.redirect_stdout(io.StringIO()):
        predictor, image, properties = _predictor(results, files, mirror)
        predictor.predict_single_npy_array(image, properties, None, str(out / "nnunet"), False)
    return sitk.GetArrayFromImage(sitk.ReadImage(out / "nnunet.nii.gz"))


def probabilities_of_nnunet(results: Path, files: Sequence[Path]) -> NDArray[np.float32]:
    """nnU-Net's own probabilities (C, z, y, x) of a case, not mirrored, on its reader's axes."""
    with contextlib.redirect_stdout(io.StringIO()):
        predictor, image, properties = _predictor(results, files, mirror=False)
        _, found = predictor.predict_single_npy_array(image, properties, None, None, True)
    return np.asarray(found)


def _predictor(results: Path, files: Sequence[Path], mirror: bool) -> tuple[Any, Any, Any]:
    """nnU-Net's predictor of a model, and a case's volume and properties by nnU-Net's reader."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=mirror,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(results), None)
    reader = predictor.plans_manager.image_reader_writer_class()
    return predictor, *reader.read_images([str(file) for file in files])
