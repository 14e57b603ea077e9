"""What the importer understands of nnU-Net's plans, beside nnU-Net itself; no network is run."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_models import KINDS, ORGANS, Kind, make_case, plans_and_dataset, understood

from inference.labels.labels import fill_labels
from inference.nnunet.channels import preprocess_channels
from inference.organs import LABEL_OF
from inference.pipeline import turn_case
from inference.read.file import read
from training.nnunet.card import write_card
from training.nnunet.checkpoint import Checkpoint
from training.nnunet.label_map import LabelMap
from training.nnunet.plan import outputs_of
from training.nnunet.results import Results


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIO"])
@pytest.mark.parametrize(
    ("scheme", "normalisation"),
    [
        ("CTNormalization", "ct"),
        ("NoNormalization", "none"),
        ("RescaleTo01Normalization", "rescale"),
        ("RGBTo01Normalization", "rgb"),
    ],
)
def test_input_is_that_of_nnunets_preprocessor(
    scheme: str, normalisation: str, reader: str, tmp_path: Path
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    kind = Kind(
        {"normalization_schemes": [scheme], "spacing": [3.0, 2.2, 2.1]},
        ORGANS,
        plans={"image_reader_writer": reader},
        direction=(0, 0, 1, -1, 0, 0, 0, -1, 0),
        spacing=(1.8, 1.7, 3.3),
    )
    (file,) = make_case(tmp_path, kind)
    if normalisation == "rgb":
        sitk.WriteImage(sitk.Clamp(sitk.ReadImage(file), sitk.sitkInt16, 0, 255), file)
    plans, dataset, name = plans_and_dataset(kind)
    plan = understood(plans, dataset, name, outputs_of(dataset))
    assert [channel["normalisation"] for channel in plan.channels] == [normalisation]
    case = turn_case([read(file).image], plan)
    found = preprocess_channels(case.volumes, case.spacing, plan, 1)

    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    with contextlib.redirect_stdout(io.StringIO()):
        image, properties = manager.image_reader_writer_class().read_images([str(file)])
        expected, *_ = configuration.preprocessor_class(verbose=False).run_case_npy(
            image, None, properties, manager, configuration, dataset
        )
    assert found.values.shape == expected.shape
    assert expected.std() > 0.05
    assert np.allclose(found.values, expected, atol=1e-4 * np.abs(expected).max())


def test_many_classes_become_the_organs(tmp_path: Path) -> None:
    """117 classes, of which each organ is one, two or three; decided between all of them."""
    sources = {
        organ: [f"{organ} {part}" for part in "abc"[: 1 + LABEL_OF[organ] % 3]]
        for organ in LABEL_OF
    }
    wanted = [source for names in sources.values() for source in names]
    names = [*wanted, *(f"other {i}" for i in range(117 - len(wanted)))]
    rng = np.random.default_rng(0)
    rng.shuffle(names)
    labels = {"background": 0, **{name: value for value, name in enumerate(names, 1)}}
    kind = Kind({"spacing": [3.0, 2.2, 2.1]}, labels)
    plans, dataset, configuration = plans_and_dataset(kind)
    file = tmp_path / "map.json"
    file.write_text(json.dumps(sources))

    outputs = outputs_of(dataset, LabelMap.load(file))
    assert (outputs.channels, len(outputs.kept)) == (118, 118)
    plan = understood(plans, dataset, configuration, outputs)
    assert plan.labels == LABEL_OF, "organs have their usual values"
    logits = rng.normal(size=(118, 12, 13, 14)).astype(np.float32)
    found = np.full(logits.shape[1:], 99, np.uint8)
    fill_labels(logits, plan, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), found)

    organ_of = {source: LABEL_OF[organ] for organ, names in sources.items() for source in names}
    new = np.array([organ_of.get(name, 0) for name in labels])
    assert np.array_equal(found, new[logits.argmax(0)])
    assert len(np.unique(found)) == 14
    # Merging before the decision, by adding up probabilities, would be something else.
    shares = np.exp(logits)
    sums = np.stack([shares[new == value].sum(0) for value in range(14)])
    assert (found != sums.argmax(0)).mean() > 0.1


def test_the_card_lists_regions_as_they_are_painted(tmp_path: Path) -> None:
    plans, dataset, configuration = plans_and_dataset(KINDS["regions"])
    file = tmp_path / "map.yaml"
    file.write_text("core: tumor core\nall of it: whole tumor\n")
    plan = understood(plans, dataset, configuration, outputs_of(dataset, LabelMap.load(file)))
    results = Results("model", plans, dataset, {"0": tmp_path / "checkpoint_final.pth"})
    checkpoint = Checkpoint({}, configuration, "nnUNetTrainer", 1000, ())
    write_card(tmp_path, plan, results, configuration, [checkpoint], [], 1, "single", 0.0)
    card = (tmp_path / "README.md").read_text()
    assert "painted in this order" in card
    # The whole is nnU-Net's first region: the core is painted over it.
    assert "| 2 | all of it |\n| 1 | core |" in card
