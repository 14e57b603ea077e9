"""nnU-Net v2's own predictor on the CPU, file to file, as a process of its own: for the benchmark.

Its reader, preprocessing, sliding window (half overlapping, Gaussian, no mirroring) and export
are called one after the other, so that each can be timed. Resampling is nnU-Net's with PyTorch,
the faster of the two that it has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape as to_labels,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from evaluation.benchmark.program import run, timed
from evaluation.benchmark.shared_network import WEIGHTS, make_network
from inference.plan import Plan


def segment(folder: Path, case: Path, out: Path, threads: int) -> dict[str, float]:
    """Segment one CT.

    Args:
        folder: a model folder that `evaluation.benchmark.shared_network` made.
        case: the CT.
        out: the label file.
        threads: how many threads PyTorch uses.

    Returns:
        Seconds per stage.
    """
    seconds: dict[str, float] = {}
    plan = Plan.load(folder)
    with timed("compile", seconds):
        predictor, plans = _predictor(plan, folder / WEIGHTS)
        configuration = predictor.configuration_manager
    with timed("read", seconds):
        image, properties = SimpleITKIO().read_images([str(case)])
    with timed("preprocess", seconds):
        preprocessor = configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            image, None, properties, plans, configuration, predictor.dataset_json
        )
    with timed("network", seconds):
        # It limits its threads to a number of its own here, which the environment sets.
        logits = predictor.predict_logits_from_preprocessed_data(torch.as_tensor(data)).cpu()
    with timed("labels", seconds):
        channels = to_labels(
            logits,
            plans,
            configuration,
            predictor.label_manager,
            properties,
            num_threads_torch=threads,
        )
        labels = np.array(plan.label_values, np.uint8)[np.asarray(channels)]
    with timed("write", seconds):
        SimpleITKIO().write_seg(labels, str(out), properties)
    return seconds


def _predictor(plan: Plan, weights: Path) -> tuple[Any, Any]:
    """nnU-Net's predictor with the benchmark's network in it."""
    resampling = {
        f"resampling_fn_{kind}": "resample_torch_fornnunet"
        for kind in ("data", "seg", "probabilities")
    }
    arguments = {
        f"resampling_fn_{kind}_kwargs": {"is_seg": kind == "seg", "force_separate_z": False}
        for kind in ("data", "seg", "probabilities")
    }
    intensities = {
        "percentile_00_5": plan.clip[0],
        "percentile_99_5": plan.clip[1],
        "mean": plan.subtract,
        "std": plan.divide,
    }
    plans = PlansManager(
        {
            "dataset_name": "Dataset001_Benchmark",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "configurations": {
                "3d": {
                    "preprocessor_name": "DefaultPreprocessor",
                    "patch_size": list(plan.patch),
                    "spacing": [float(step or 1.0) for step in plan.spacing],
                    "normalization_schemes": ["CTNormalization"],
                    "use_mask_for_norm": [False],
                    "architecture": {},
                    **resampling,
                    **arguments,
                }
            },
        }
    )
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: i for i, name in enumerate(plan.labels, start=1)}},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    state = torch.load(weights, map_location="cpu", weights_only=True)
    configuration = plans.get_configuration("3d")
    predictor.manual_initialization(
        make_network(), plans, configuration, [state], dataset, "nnUNetTrainer", None
    )
    return predictor, plans


if __name__ == "__main__":
    run(segment, __doc__)
