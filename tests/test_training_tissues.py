"""The tissues that label names stand for, and where they may lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from inference.organs import LABEL_OF
from training.data.tissues import (
    Tissue,
    end_at_heart,
    organs_only,
    tissue_of,
    tissues_from_names,
)

SHARED = Path(__file__).parents[2] / "shared"


def test_names_of_both_label_vocabularies_map_to_tissues() -> None:
    expected = {
        "kidney_left": LABEL_OF["left_kidney"],
        "kidney_cyst_right": LABEL_OF["right_kidney"],
        "adrenal_gland_right": LABEL_OF["right_adrenal_gland"],
        "inferior_vena_cava": LABEL_OF["inferior_vena_cava"],
        "portal_vein_and_splenic_vein": Tissue.VEIN,
        "pulmonary_artery": Tissue.ARTERY,
        "vertebrae_L1": Tissue.BONE,
        "urinary_bladder": Tissue.BLADDER,
        "gallbladder": LABEL_OF["gallbladder"],
        "autochthon_left": Tissue.MUSCLE,
        "lung_upper_lobe_left": Tissue.LUNG,
        "heart_ventricle_left": Tissue.HEART,
    }
    assert {name: tissue_of(name) for name in expected} == expected
    with pytest.raises(ValueError, match="antlers"):
        tissue_of("antlers")


@pytest.mark.real_ct
@pytest.mark.skipif(not SHARED.is_dir(), reason="real_ct: ../shared is absent")
def test_every_structure_of_the_shared_maps_is_known() -> None:
    paths = [*SHARED.glob("*/*/full_labels_names.json")]
    assert paths
    for path in paths:
        for name in json.loads(path.read_text()).values():
            assert tissue_of(name) > 0


def test_tissue_maps_keep_organ_labels() -> None:
    labels = np.array([[[1, 2, 3]]], np.uint8)
    tissues = tissues_from_names(labels, {"1": "liver", "2": "sacrum", "3": "spleen"})
    assert tissues.tolist() == [[[1, Tissue.BONE, 3]]]
    assert organs_only(torch.from_numpy(tissues)).tolist() == [[[1, 0, 3]]]


def test_structures_without_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="7 have no name"):
        tissues_from_names(np.array([0, 1, 7], np.uint8), {"1": "liver"})


def test_the_vena_cava_ends_at_the_heart() -> None:
    cava, liver = LABEL_OF["inferior_vena_cava"], 1
    tissues = np.zeros((20, 20, 20), np.uint8)
    tissues[:12, :, 12:] = liver
    tissues[:, 8:12, 6:10] = cava
    tissues[9:, :6] = Tissue.HEART  # beside the liver's dome already, and not touching yet
    tissues[15:, :8, :] = Tissue.HEART
    ended = end_at_heart(tissues)
    assert np.array_equal(ended == cava, (tissues == cava) & (np.arange(20) < 15)[:, None, None])
    changed = ended != tissues
    assert (tissues[changed] == cava).all() and (ended[changed] == Tissue.HEART).all()
    without = np.where(tissues == Tissue.HEART, 0, tissues).astype(np.uint8)
    assert np.array_equal(end_at_heart(without), without)
