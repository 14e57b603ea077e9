"""What no label map shows and is drawn beside its organs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from inference.organs import LABEL_OF
from training.data.tissues import (
    Tissue,
    organs_only,
)
from training.sampling.chance import Chance
from training.synthetic.colon import add_colon
from training.synthetic.neighbours import add_neighbours
from training.synthetic.pancreas import age_pancreas
from training.synthetic.tubes import tube


def test_an_old_pancreas_has_lost_its_outer_layer_and_nothing_else_changes() -> None:
    tissues = torch.full((20, 30, 40), int(Tissue.MUSCLE), dtype=torch.uint8)
    tissues[4:16, 8:22, 10:34] = pancreas = LABEL_OF["pancreas"]
    before = (tissues == pancreas).numpy()
    depth = ndimage.distance_transform_edt(before)
    shrunk = 0
    for seed in range(60):
        aged = age_pancreas(tissues, 2.0, Chance(seed))
        after = (aged == pancreas).numpy()
        lost = before & ~after
        assert set(np.unique(aged.numpy()[lost])) <= {Tissue.NONE}
        assert np.array_equal(aged.numpy()[~lost], tissues.numpy()[~lost])
        if lost.any():
            shrunk += 1
            assert depth[lost].mean() < depth[after].mean()
            assert after.sum() > 0.2 * before.sum()
    assert 12 < shrunk < 36  # 24 are expected


@pytest.fixture
def upper_abdomen() -> torch.Tensor:
    """Spine, great vessels, kidneys and pancreas in fat, as boxes; 2 mm, LPS."""
    tissues = torch.zeros((70, 70, 100), dtype=torch.uint8)
    tissues[:, 45:60, 42:58] = Tissue.BONE
    tissues[:, 34:42, 50:58] = LABEL_OF["aorta"]
    tissues[:, 34:42, 36:46] = LABEL_OF["inferior_vena_cava"]
    tissues[10:40, 40:56, 14:28] = LABEL_OF["right_kidney"]
    tissues[12:42, 40:56, 72:86] = LABEL_OF["left_kidney"]
    tissues[44:52, 40:46, 66:70] = LABEL_OF["left_adrenal_gland"]
    tissues[20:44, 16:26, 34:50] = tissues[34:46, 16:24, 50:84] = LABEL_OF["pancreas"]
    return tissues


def _drawn_beside(tissues: torch.Tensor, kind: Tissue) -> tuple[np.ndarray, int]:
    """How often, in 60 drawings, a voxel became a kind of tissue; in how many any did."""
    counts, drawings = np.zeros(tuple(tissues.shape), int), 0
    for seed in range(60):
        after = add_neighbours(tissues, 2.0, Chance(seed))
        changed = after != tissues
        assert not tissues[changed].any()  # only what nothing was labelled
        drawn = {Tissue.MUSCLE, Tissue.VEIN, Tissue.BLADDER, Tissue.ARTERY, Tissue.SOFT}
        assert set(after[changed].tolist()) <= drawn
        mask = (changed & (after == kind)).numpy()
        counts += mask
        drawings += bool(mask.any())
    return counts, drawings


def test_crura_lie_on_both_sides_of_the_aorta_and_end_with_the_kidneys(
    upper_abdomen: torch.Tensor,
) -> None:
    crura, drawings = _drawn_beside(upper_abdomen, Tissue.MUSCLE)
    assert 40 < drawings < 60  # 51 are expected
    from_aorta = ndimage.distance_transform_edt((upper_abdomen != LABEL_OF["aorta"]).numpy()) * 2
    assert from_aorta[crura > 0].max() < 60
    assert from_aorta[crura > 15].min() <= 4
    assert min(crura[:, :, :50].max(), crura[:, :, 58:].max()) > 20
    assert crura[30:50].sum() > 0.5 * crura.sum()
    assert not crura[66:].any() and not crura[:6].any()


def test_veins_run_behind_the_pancreas_and_the_renal_one_in_front_of_the_aorta(
    upper_abdomen: torch.Tensor,
) -> None:
    veins, drawings = _drawn_beside(upper_abdomen, Tissue.VEIN)
    assert 45 < drawings <= 60  # 59 are expected
    splenic = veins[:, :, 60:80]
    behind, before = splenic[34:46, 24:30].sum(), splenic[34:46, :16].sum()
    assert behind > 500 and before == 0
    renal = veins[20:40, 28:42, 59:70].max()
    assert renal > 5
    without = upper_abdomen.masked_fill(upper_abdomen == LABEL_OF["pancreas"], 0)
    renal_only, _ = _drawn_beside(without, Tissue.VEIN)
    at_aorta = renal_only[:, :, 52:56]
    assert at_aorta[:, :34].any() and not at_aorta[:, 42:].any()


@pytest.mark.parametrize("part", [slice(12, 28), slice(30, 38), slice(44, 60)])
@pytest.mark.parametrize("spacing", [2.0, 10.0])
def test_neighbours_of_organs_that_the_patch_cuts(
    upper_abdomen: torch.Tensor, part: slice, spacing: float
) -> None:
    for tissues in (upper_abdomen[part], upper_abdomen[part, :, 50:], upper_abdomen[part, :, :50]):
        for seed in range(20):
            after = add_neighbours(tissues, spacing, Chance(seed))
            assert torch.equal(organs_only(after), organs_only(tissues))


@pytest.mark.parametrize(
    ("bottom", "top", "expected"), [(10, 55, 32), (0, 45, 17), (30, 70, 57), (0, 70, 34)]
)
def test_renal_veins_of_a_kidney_of_which_an_end_is_seen(
    upper_abdomen: torch.Tensor, bottom: int, top: int, expected: int
) -> None:
    """A whole one has them in its middle, a cut one half of a usual kidney from its end."""
    for kidney, x in (("right_kidney", slice(14, 28)), ("left_kidney", slice(72, 86))):
        upper_abdomen[:, 40:56, x] = 0
        upper_abdomen[bottom:top, 40:56, x] = LABEL_OF[kidney]
    upper_abdomen[upper_abdomen == LABEL_OF["pancreas"]] = 0
    veins, drawings = _drawn_beside(upper_abdomen, Tissue.VEIN)
    assert 38 < drawings < 60  # 51 are expected
    heights = veins[:, :, 59:70].sum(axis=(1, 2))
    middle = float((heights * np.arange(70)).sum() / heights.sum())
    assert abs(middle - expected - 2) < 4  # they lie from 8 mm below it to 15 mm above


def test_urine_leaves_the_kidneys_medially_and_runs_down(upper_abdomen: torch.Tensor) -> None:
    urine, drawings = _drawn_beside(upper_abdomen, Tissue.BLADDER)
    assert 22 < drawings < 50  # 36 are expected
    for kidney, beside in ((slice(14, 28), slice(28, 40)), (slice(72, 86), slice(60, 72))):
        assert (
            urine[:, :, beside].sum()
            > 0.9 * urine[:, :, kidney.start - 12 : kidney.stop + 12].sum()
        )
    per_slice = urine.sum(axis=(1, 2))
    assert per_slice[20:32].sum() > 0.6 * per_slice.sum()
    assert per_slice[5:15].any() and not per_slice[38:].any()


def test_arteries_leave_the_aorta_to_the_front_and_reach_the_spleen(
    upper_abdomen: torch.Tensor,
) -> None:
    upper_abdomen[40:60, 40:56, 88:98] = LABEL_OF["spleen"]
    arteries, drawings = _drawn_beside(upper_abdomen, Tissue.ARTERY)
    assert 35 < drawings < 55  # 45 are expected
    assert arteries[:, 26:34, 48:60].sum() > 1000  # before the aorta, which ends at row 34
    assert not arteries[:, 56:].any()
    assert arteries[:, :, 80:88].any()  # at the spleen
    assert arteries[:, :, :36].any()  # and towards the liver
    # Below where it leaves, the mesenteric artery alone is left.
    assert arteries[10:25, :, 44:64].any() and not arteries[10:25, :, 66:].any()


def test_nodes_are_small_and_lie_near_the_aorta(upper_abdomen: torch.Tensor) -> None:
    nodes, drawings = _drawn_beside(upper_abdomen, Tissue.SOFT)
    assert 25 < drawings < 48  # 36 are expected
    from_aorta = ndimage.distance_transform_edt((upper_abdomen != LABEL_OF["aorta"]).numpy()) * 2
    assert from_aorta[nodes > 0].max() < 60
    assert nodes.sum() * 0.008 / drawings < 20  # ml


def test_below_the_glands_a_patch_has_no_crura(upper_abdomen: torch.Tensor) -> None:
    crura, _ = _drawn_beside(upper_abdomen[12:28], Tissue.MUSCLE)
    assert not crura.any()


def test_a_pancreas_in_two_pieces_has_veins(upper_abdomen: torch.Tensor) -> None:
    upper_abdomen[upper_abdomen == LABEL_OF["pancreas"]] = 0
    upper_abdomen[4:16, 16:24, 40:80] = upper_abdomen[46:58, 16:24, 40:80] = LABEL_OF["pancreas"]
    veins, _ = _drawn_beside(upper_abdomen, Tissue.VEIN)
    assert veins[:, 24:32].any()


def test_beside_no_organ_nothing_is_drawn() -> None:
    empty = torch.zeros((20, 20, 20), dtype=torch.uint8)
    empty[:, 10:, :] = Tissue.BONE
    for seed in range(5):
        assert torch.equal(add_neighbours(empty, 2.0, Chance(seed)), empty)


def test_a_tube_is_what_lies_near_its_course() -> None:
    rng = np.random.default_rng(0)
    like, voxels = torch.zeros(14, 18, 16), np.indices((14, 18, 16)).reshape(3, -1).T
    for _ in range(20):
        course = rng.uniform(-4, 20, (4, 3))
        radius = torch.from_numpy(rng.uniform(1, 5, like.shape))
        # Of a piece, its nearest of many points.
        along = np.linspace(0, 1, 400)[:, None]
        points = [a + along * (b - a) for a, b in pairwise(course)]
        nearest, _ = cKDTree(np.concatenate(points)).query(voxels)
        distances = nearest.reshape(like.shape)
        corners = [tuple(corner) for corner in course.tolist()]
        for wanted in (3.0, radius):
            far = np.abs(distances - np.asarray(wanted)) > 0.05  # from the tube's surface
            mask = tube(like, corners, wanted).numpy()
            assert np.array_equal(mask[far], (distances < np.asarray(wanted))[far])


def test_a_loop_of_colon_touches_the_stomach_and_takes_no_other_organs_place(
    upper_abdomen: torch.Tensor,
) -> None:
    tissues, stomach = upper_abdomen, LABEL_OF["stomach"]
    tissues[30:60, 8:14, 40:80] = tissues[36:60, 14:30, 60:84] = stomach
    tissues[24:30, 8:20, 40:70] = Tissue.SMALL_BOWEL
    tissues[30:60, 8:20, 34:40] = Tissue.VEIN
    hull = torch.full(tissues.shape, -30, dtype=torch.int8)
    hull[:, :3] = 10  # in front of it the body ends
    near = ndimage.distance_transform_edt((tissues != stomach).numpy()) * 2
    drawn, pressed = 0, 0
    for seed in range(80):
        after = add_colon(tissues, hull, 2.0, Chance(seed))
        changed = (after != tissues).numpy()
        assert set(after.numpy()[changed]) <= {Tissue.COLON}
        assert set(tissues.numpy()[changed]) <= {Tissue.NONE, Tissue.SMALL_BOWEL, stomach}
        assert not changed[:, :3].any()
        kept = int((after == stomach).sum()) / int((tissues == stomach).sum())
        assert kept >= 0.65
        if changed.any():
            drawn += 1
            pressed += kept < 1
            assert near[changed].min() <= 4  # mm
            assert 5 < changed.sum() * 0.008 < 1000  # ml
    assert 30 < drawn < 50 and 10 < pressed < drawn
    small = tissues.masked_fill(tissues == stomach, 0)
    small[30:35, 8:14, 40:50] = stomach
    assert all(torch.equal(add_colon(small, hull, 2.0, Chance(s)), small) for s in range(10))
