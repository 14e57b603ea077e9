"""Tissues, bodies, synthesis and patches: what the training sees."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from inference.organs import LABEL_OF, ORGANS
from inference.phantom import make_phantom
from training import synthesis
from training.augment import vary_hu
from training.bodies import _reached, complete, finish, transfer
from training.cases import find_cases
from training.chance import Chance
from training.colon import add_colon
from training.config import Config
from training.isotropic import isotropic
from training.lent_organs import join_to_stomach, lay, lead_past
from training.neighbours import add_neighbours
from training.pancreas import age_pancreas
from training.prepare import prepare, what_is_not_drawn
from training.pseudolabel import judge, look_at
from training.registration import register
from training.samples import Samples
from training.separable import blur, share_nearby, upsample
from training.synthesis import (
    _fill_body,
    _gallbladder,
    _hollow_organs,
    _is_large,
    _loose_colon,
    _mean_hu,
    _pancreas,
    _unmixed_blood,
    synthesise,
)
from training.tissues import (
    UNKNOWN,
    Tissue,
    end_at_heart,
    on_wrong_sides,
    organs_only,
    tissue_of,
    tissues_from_names,
)
from training.tubes import tube
from training.warp import (
    random_places,
    regular_places,
    rotation,
    sample_linear,
    sample_nearest,
    turned_places,
)

SHARED = Path(__file__).parents[2] / "shared"
ADRENAL = "left_adrenal_gland"


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


def test_upsample_equals_torch() -> None:
    knots = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        knots[None], size=(7, 4, 11), mode="trilinear", align_corners=True
    )[0]
    assert torch.allclose(upsample(knots, (7, 4, 11)), expected, atol=1e-5)


def test_sampling_at_the_own_places_gives_the_volume_back() -> None:
    volume = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    places = regular_places(volume.shape, 2.5)
    assert torch.equal(sample_nearest(volume, places, 2.5, 0), volume)
    assert torch.allclose(sample_linear(volume[None], places, 2.5)[0], volume, atol=1e-4)
    assert (sample_nearest(volume, places + 100, 2.5, 7) == 7).all()


@pytest.mark.parametrize("spacing", [2.5, (3.0, 0.7, 1.3)])
def test_the_nearest_voxel_is_the_one_whose_box_holds_the_place(spacing: Any) -> None:
    rng = np.random.default_rng(2)
    volume = torch.from_numpy(rng.integers(0, 200, (4, 5, 6)).astype(np.uint8))
    places = torch.from_numpy(rng.uniform(-4, 18, (7, 3, 2, 3)).astype(np.float32))
    found = sample_nearest(volume, places, spacing, 255)
    steps = np.broadcast_to(spacing, 3)
    for at in np.ndindex(7, 3, 2):
        voxel = [math.floor(places[at][i].item() / steps[i]) for i in range(3)]
        inside = all(0 <= v < n for v, n in zip(voxel, volume.shape, strict=True))
        assert found[at] == (volume[tuple(voxel)] if inside else 255)


def test_a_turned_grid_is_the_matrix_product_about_its_middle() -> None:
    matrix = rotation([20, -35, 70]) * torch.tensor([1.1, 0.9, 1.3])
    centre = torch.tensor([40.0, -3.0, 8.0])
    shape, spacing = (4, 5, 6), (3.0, 1.5, 0.5)
    middle = torch.tensor([n * s / 2 for n, s in zip(shape, spacing, strict=True)])
    expected = (regular_places(shape, spacing) - middle) @ matrix + centre
    assert torch.allclose(turned_places(shape, spacing, matrix, centre), expected, atol=1e-5)


@pytest.mark.parametrize("sigmas", [(0.3, 0.8, 1.4), (0.05, 6.0, 0.6)])
def test_blur_is_a_gaussian_filter_with_continued_borders(sigmas: tuple[float, ...]) -> None:
    volume = np.random.default_rng(3).normal(size=(9, 12, 7)).astype(np.float32)
    expected = volume
    for axis, sigma in enumerate(sigmas):
        expected = ndimage.gaussian_filter1d(
            expected, sigma, axis=axis, mode="nearest", radius=max(1, round(3 * sigma))
        )
    assert np.allclose(blur(torch.from_numpy(volume), sigmas).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [3, 5, 13])
def test_the_share_nearby_is_a_mean_filter_with_continued_borders(size: int) -> None:
    mask = np.random.default_rng(4).random((9, 12, 7)) > 0.5
    expected = ndimage.uniform_filter(mask.astype(float), size, mode="nearest")
    assert np.allclose(share_nearby(torch.from_numpy(mask), size).numpy(), expected, atol=1e-6)


def test_a_warp_of_strength_zero_is_a_shift_to_the_centre() -> None:
    places = random_places((4, 4, 4), 3.0, torch.tensor([10.0, 20.0, 30.0]), 0.0, Chance(2))
    assert torch.allclose(places.reshape(-1, 3).mean(0), torch.tensor([10.0, 20.0, 30.0]))
    assert torch.allclose(places[1, 0, 0] - places[0, 0, 0], torch.tensor([3.0, 0.0, 0.0]))


@pytest.mark.parametrize("shape", [(6, 48, 48), (3, 48, 48), (48, 6, 48)])
@pytest.mark.parametrize("mm", [1.0, 2.5, 5.0])
def test_few_slices_are_bent_together(shape: tuple[int, int, int], mm: float) -> None:
    """None comes before the one below it, and none is shifted by far against its neighbour."""
    axis = shape.index(min(shape))
    spacing = [mm if n == min(shape) else 7.0 for n in shape]
    moved = 0.0
    for seed in range(20):
        places = random_places(shape, spacing, torch.zeros(3), 0.6, Chance(seed))
        step = places.diff(dim=axis)
        assert (step[..., axis] > 0).all()
        # Turned and bent, a slice lies about above the one below it.
        beside = step[..., [i for i in range(3) if i != axis]].norm(dim=-1)
        assert beside.max() < 1.4 * mm and beside.mean() < 0.4 * mm
        moved = max(moved, float(places.mean(dim=axis).std()))
    assert moved > 1  # bent all the same


@pytest.fixture(scope="module")
def tissues() -> np.ndarray:
    """A small whole body: the phantom's organs, with a spine and ribs' worth of bone."""
    _, labels = make_phantom(shape=(40, 48, 64), spacing=(6.0, 6.0, 6.0), seed=1)
    array = isotropic(sitk.GetArrayFromImage(labels), (6.0, 6.0, 6.0))
    spine = np.zeros(array.shape, bool)
    spine[:, -60:-45, array.shape[2] // 2 - 8 : array.shape[2] // 2 + 8] = True
    return np.where((array == 0) & spine, Tissue.BONE, array).astype(np.uint8)


def _organs(tissues: np.ndarray) -> np.ndarray:
    return organs_only(torch.from_numpy(tissues)).numpy()


def test_shares_may_be_whole_numbers() -> None:
    assert {Chance(seed).pick([0, 3, 0]) for seed in range(5)} == {1}


def test_thick_slices_are_smoothed_without_losing_volume() -> None:
    zz, yy, xx = np.indices((16, 60, 60))
    ball = ((zz - 7.5) * 5) ** 2 + (yy - 30) ** 2 * 4 + (xx - 30) ** 2 * 4 < 34**2
    fine = isotropic(ball.astype(np.uint8), (5.0, 2.0, 2.0))
    assert fine.shape == (40, 60, 60)
    assert fine.sum() == pytest.approx(ball.sum() * 2.5, rel=0.05)
    # No pair of neighbouring slices differs as much as two 5 mm slices do.
    steps = np.abs(np.diff(fine.astype(int).sum(axis=(1, 2))))
    coarse = np.abs(np.diff(ball.astype(int).sum(axis=(1, 2))))
    assert steps.max() < coarse.max()


def test_the_hull_holds_every_structure(tissues: np.ndarray) -> None:
    body = finish(tissues)
    assert body.tissues.shape == body.hull.shape
    assert (body.hull[(body.tissues > 0)] <= 10).mean() > 0.99
    assert body.hull[:, 0, 0].min() > 20
    assert sorted(np.unique(body.tissues)) == sorted(np.unique(tissues))


def test_completion_keeps_the_patients_organs_and_adds_the_atlas_tissues(
    tissues: np.ndarray,
) -> None:
    """The patient: the same body, bent and 10 % smaller, with four organs labelled."""
    shown = (1, 2, 3, 13)
    patient = ndimage.zoom(_organs(tissues), 0.9, order=0)
    patient = np.where(np.isin(patient, shown), patient, 0).astype(np.uint8)
    whole = complete(patient, shown, tissues, Chance(0))
    assert Tissue.BONE in whole
    assert LABEL_OF["aorta"] in whole
    for organ in shown:
        assert (whole == organ).sum() == (patient == organ).sum()
    truth = ndimage.zoom(_organs(tissues), 0.9, order=0) == LABEL_OF["aorta"]
    offset = np.argwhere(whole == 1).min(0) - np.argwhere(patient == 1).min(0)
    middle = np.argwhere(whole == LABEL_OF["aorta"])[:, 1:].mean(0) - offset[1:]
    assert np.abs(middle - np.argwhere(truth)[:, 1:].mean(0)).max() < 6  # voxels of 2 mm
    assert not on_wrong_sides(whole)


def test_completion_believes_what_is_annotated_whatever_the_atlas_has(
    tissues: np.ndarray,
) -> None:
    """A patient without gallbladder, with a stomach that the atlas has lost and a tiny adrenal."""
    stomach, gallbladder, adrenal = (LABEL_OF[n] for n in ("stomach", "gallbladder", ADRENAL))
    atlas = np.where(tissues == stomach, 0, tissues).astype(np.uint8)
    assert gallbladder in atlas and adrenal in atlas
    shown = (1, 2, 3, 13, stomach)
    patient = np.where(np.isin(tissues, shown), tissues, 0).astype(np.uint8)
    patient[tuple(np.argwhere(tissues == adrenal)[0])] = adrenal
    whole = complete(patient, (*shown, gallbladder, adrenal), atlas, Chance(0))
    assert gallbladder not in whole
    for organ in (*shown, adrenal):
        assert (whole == organ).sum() == (patient == organ).sum(), ORGANS[organ]
    assert LABEL_OF["aorta"] in whole  # not annotated: the atlas's


def test_what_the_patients_map_cuts_off_goes_on_beyond_its_end(tissues: np.ndarray) -> None:
    """The aorta is cut off at the map's top, the stomach ends there by itself."""
    aorta, stomach = LABEL_OF["aorta"], LABEL_OF["stomach"]
    shown = (1, 2, 3, 13, aorta, stomach)
    organs = np.where(np.isin(tissues, shown), tissues, 0).astype(np.uint8)
    heights = {v: np.flatnonzero((organs == v).any(axis=(1, 2))) for v in shown}
    end = max(int(h[-1]) for v, h in heights.items() if v != aorta) + 2
    assert heights[aorta][-1] > end + 10
    patient = organs[:end]
    whole = complete(patient, shown, tissues, Chance(0))
    below = np.flatnonzero((whole == 1).any(axis=(1, 2)))[0] - heights[1][0]
    cut = below + end  # where the patient's map ends in the body
    beyond = (whole[cut:] == aorta).sum(axis=(1, 2))
    assert (beyond > 0).sum() > 0.8 * (heights[aorta][-1] + 1 - end)
    assert np.array_equal(whole[below:cut] == aorta, _laid(patient == aorta, whole))
    assert not np.isin(whole[cut:], [v for v in shown if v != aorta]).any()


def _laid(mask: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A patient's mask with the room around that bodies have."""
    side = (whole.shape[1] - mask.shape[1]) // 2
    return np.pad(mask, ((0, 0), (side, side), (side, side)))


def test_a_cut_organ_does_not_stretch_the_body() -> None:
    """A patient of whom the whole chest's aorta is seen, and of the atlas none, is no taller."""
    aorta, box = 5, {1: (30, 10, 40), 2: (12, 40, 44), 3: (36, 40, 8), 11: (38, 8, 14)}
    box |= {13: (14, 40, 8), 4: (24, 24, 22)}
    atlas = np.zeros((56, 60, 60), np.uint8)
    for organ, (z, y, x) in box.items():
        atlas[z : z + 12, y : y + 10, x : x + 10] = organ
    atlas[:, 36:41, 28:33] = aorta
    patient = np.pad(atlas, ((0, 100), (0, 0), (0, 0)))
    patient[:, 36:41, 28:33] = aorta
    told = {value: np.ones(len(patient), bool) for value in (*box, aorta)}
    places = register(patient, atlas, [*box, aorta], told)
    distance = (places - regular_places(patient.shape, 2.0)).norm(dim=-1)
    organs = torch.from_numpy(np.isin(patient, [*box]))
    assert distance[organs].max() < 3.0  # mm


def test_glands_keep_their_shape_where_the_body_is_stretched(tissues: np.ndarray) -> None:
    """A patient twice as tall: registered organs are, the adrenal gland is not."""
    gland = LABEL_OF[ADRENAL]
    shown = (1, 2, 3, 13)
    patient = np.repeat(np.where(np.isin(tissues, shown), tissues, 0), 2, axis=0).astype(np.uint8)
    whole = complete(patient, shown, tissues, Chance(0))

    def height(labels: np.ndarray, value: int) -> int:
        return int((labels == value).any(axis=(1, 2)).sum())

    assert height(whole, 3) == 2 * height(tissues, 3)
    assert 0 < height(whole, gland) <= 1.3 * height(tissues, gland)


def test_a_gland_gives_way_to_the_patients_organs() -> None:
    """The registration puts it half into the liver: it is laid beside, of the atlas's shape."""
    liver, gland = 1, LABEL_OF[ADRENAL]
    atlas = np.zeros((30, 30, 30), np.uint8)
    atlas[10:20, 12, 8:14] = atlas[10:14, 12:18, 8:10] = gland
    tissues = np.zeros((40, 40, 40), np.uint8)
    tissues[:, :, :20] = liver
    warped = np.zeros(tissues.shape, bool)
    warped[15:25, 20, 17:23] = warped[15:19, 20:26, 17:19] = True
    laid = []
    for seed in range(8):
        body = tissues.copy()
        lay(body, warped, atlas, gland, Chance(seed))
        assert np.array_equal(body[:, :, :20], tissues[:, :, :20])
        laid.append(body == gland)
    own = np.argwhere(atlas == gland)
    for mask in laid:  # each nearly of the atlas's shape, no two of the same
        places = np.argwhere(mask)
        assert 0.6 < len(places) / len(own) < 1.6
        assert (np.abs(np.ptp(places, axis=0) - np.ptp(own, axis=0)) <= 4).all()
        assert np.linalg.norm(places.mean(0) - np.argwhere(warped).mean(0)) * 2 < 18  # mm
    assert len({mask.tobytes() for mask in laid}) == len(laid)


def test_a_vessel_that_an_organ_cuts_is_led_past_it() -> None:
    liver, cava = 1, LABEL_OF["inferior_vena_cava"]
    y, x = np.ogrid[:40, :40]
    tissues = np.zeros((60, 40, 40), np.uint8)
    tissues[:, np.hypot(y - 20, x - 20) <= 4] = cava
    cut = tissues.copy()
    cut[20:34, 6:34, 6:22] = liver  # all but a rim of it
    led = cut.copy()
    lead_past(led, cava)
    assert np.array_equal(led == liver, cut == liver)
    assert np.array_equal(led[:18], tissues[:18]) and np.array_equal(led[36:], tissues[36:])
    areas = (led == cava).sum(axis=(1, 2))
    assert areas.min() > 0.6 * areas[0]  # where it bends
    assert areas[20:34].mean() > 0.85 * areas[0]
    assert ndimage.label(led == cava)[1] == 1

    untouched = tissues.copy()
    lead_past(untouched, cava)
    lead_past(untouched, LABEL_OF["aorta"])  # of which there is none
    assert np.array_equal(untouched, tissues)


@pytest.mark.parametrize("name", ["esophagus", "duodenum"])
def test_what_belongs_to_the_stomach_reaches_it_through_fat_alone(name: str) -> None:
    organ, stomach, spleen = LABEL_OF[name], LABEL_OF["stomach"], LABEL_OF["spleen"]
    apart = np.zeros((40, 40, 40), np.uint8)
    apart[20:40, 18:23, 10:15] = organ  # its lower end lies 12 mm above the stomach
    apart[4:14, 14:28, 8:30] = stomach
    apart[14:17, 14:28, 12:30] = spleen  # of what lies between, this stays
    joined = apart.copy()
    join_to_stomach(joined, organ)
    _, count = ndimage.label(np.isin(joined, (organ, stomach)))
    assert count == 1
    changed = joined != apart
    assert (apart[changed] == 0).all() and (joined[changed] == organ).all()
    assert np.argwhere(changed)[:, 0].max() < 25 and 20 < changed.sum() < 400

    again = joined.copy()
    join_to_stomach(again, organ)  # they touch
    assert np.array_equal(again, joined)
    for other in (np.where(apart == stomach, 0, apart), np.roll(apart, 25, axis=2) * 1):
        if stomach in other:
            other[:, :, :20] = 0
            other[20:40, :, :] = 0
            other[39, 18:23, 0:5] = organ  # further than any joint
        before = other.copy()
        join_to_stomach(other, organ)
        assert np.array_equal(other, before)


def test_the_esophagus_is_joined_at_its_end_where_the_fundus_lies_beside_it() -> None:
    esophagus, stomach = LABEL_OF["esophagus"], LABEL_OF["stomach"]
    tissues = np.zeros((40, 30, 40), np.uint8)
    tissues[20:40, 12:17, 10:15] = esophagus
    tissues[10:36, 10:20, 20:36] = stomach
    tissues[33:36, 10:20, 15:20] = stomach  # touches it far above its end
    join_to_stomach(tissues, esophagus)
    assert (tissues[18:25, 12:17, 15:20] == esophagus).any(axis=(0, 1)).all()


def test_a_body_ends_where_the_atlas_laid_obliquely_ends_in_a_wedge() -> None:
    """And is one run of slices, however little a far one shows."""
    inside = np.zeros((30, 10, 10), bool)
    inside[5:20] = True
    for z in range(20, 28):
        inside[z, : 27 - z] = True  # ever less: 0.7, 0.6, ...
    assert _reached(inside) == slice(5, 20)
    inside[29] = True
    assert _reached(inside) == slice(5, 20)
    with pytest.raises(ValueError, match="could not be laid"):
        _reached(np.zeros((3, 4, 4), bool))


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


@pytest.mark.parametrize("voxels", [(61, 78, 90), (64, 80, 88)])
def test_a_body_laid_over_itself_is_where_it_was(voxels: tuple[int, ...]) -> None:
    """Whether or not the coarse grid divides its size: bones far from any organ tell."""
    atlas = np.zeros(voxels, np.uint8)
    atlas[20:40, 20:45, 10:40] = 1
    atlas[25:40, 25:45, 60:80] = 3
    atlas[22:30, 50:62, 40:50] = 5
    told = {value: np.ones(len(atlas), bool) for value in (1, 3, 5)}
    places = register(atlas, atlas, [1, 3, 5], told)
    distance = (places - regular_places(atlas.shape, 2.0)).norm(dim=-1)
    assert distance[4:-4, 4:-4, 4:-4].max() < 1.0  # mm


@pytest.fixture(scope="module")
def bent(tissues: np.ndarray) -> dict[str, np.ndarray]:
    """The body's CT, in which HU tell the label and the place, bent to a narrower patient.

    The CT is twice as fine along x as the tissue map; its labels are the body's organs.
    """
    atlas = _organs(tissues)
    labels = np.repeat(atlas, 2, axis=2)
    hu = (labels.astype(np.int16) * 60).astype(np.int16)
    patient = ndimage.zoom(atlas, (0.9, 1.0, 0.8), order=0)
    shared = (1, 2, 3, 13)
    patient = np.where(np.isin(patient, shared), patient, 0).astype(np.uint8)
    moved, moved_labels = transfer(hu, labels, (2.0, 2.0, 1.0), tissues, patient, shared)
    return {"patient": patient, "atlas": atlas, "hu": moved, "labels": moved_labels}


def test_a_ct_is_bent_to_the_other_patients_organs(bent: dict[str, np.ndarray]) -> None:
    """Laid liver on liver, the bent labels overlap the patient's; those of the atlas do not."""

    def overlap(labels: np.ndarray, organ: int) -> float:
        """DSC with both livers' first corners in one place."""
        patient = bent["patient"]
        boxes = []
        for array in (labels, patient):
            first = np.argwhere(array == 1).min(0)
            wide = np.pad(array == organ, [(150, 150)] * 3)
            boxes.append(wide[tuple(slice(150 + f - 60, 150 + f + 140) for f in first)])
        a, b = boxes
        return float(2 * (a & b).sum() / (a.sum() + b.sum()))

    for organ in (1, 2, 3, 13):
        before, after = overlap(bent["atlas"], organ), overlap(bent["labels"], organ)
        assert after > before and after > 0.75, ORGANS[organ]
    # What the patient has no labels of comes along with the CT.
    assert (bent["labels"] == LABEL_OF["aorta"]).any()


def test_hu_and_labels_are_bent_alike(bent: dict[str, np.ndarray]) -> None:
    hu, labels = bent["hu"], bent["labels"]
    assert hu.shape == labels.shape and hu.dtype == np.int16 and labels.dtype == np.uint8
    assert set(np.unique(labels)) <= set(np.unique(bent["atlas"]))
    # Away from outlines, where interpolation mixes two tissues, HU tell the label exactly.
    same = ndimage.maximum_filter(labels, 3) == ndimage.minimum_filter(labels, 3)
    inside = same & (labels > 0)
    assert inside.sum() > 5000
    assert (np.abs(hu[inside] - labels[inside] * 60.0) <= 1).mean() > 0.99
    assert hu.min() == -1024  # air where the CT has ended


def test_patients_without_a_common_organ_are_refused(tissues: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no organ is labelled in it"):
        complete(np.zeros((20, 20, 20), np.uint8), (1, 2), tissues, Chance(0))


def test_synthesis_is_reproducible_varies_and_stays_physical(tissues: np.ndarray) -> None:
    body = finish(tissues)
    arrays = torch.from_numpy(body.tissues), torch.from_numpy(body.hull)

    def draw(seed: int) -> torch.Tensor:
        return synthesise(*arrays, 2.0, Chance(seed))[0]

    draws = [draw(seed) for seed in range(6)]
    assert torch.equal(draws[0], draw(0))
    assert not torch.equal(draws[0], draws[1])
    liver = arrays[0] == LABEL_OF["liver"]
    bone = arrays[0] == Tissue.BONE
    for hu in draws:
        assert torch.isfinite(hu).all()
        assert hu.min() >= -1024 and hu.max() <= 3071
        assert -60 < hu[liver].median() < 220
        assert hu[bone].median() > hu[liver].median() - 60
    corner = torch.stack([hu[:, 0, 0].median() for hu in draws])
    assert (corner < -700).all()
    livers = torch.stack([hu[liver].median() for hu in draws])
    assert livers.max() - livers.min() > 20


def test_fat_and_cysts_lie_in_many_a_pancreas_and_in_no_vein_beside_it() -> None:
    tissues = torch.full((20, 36, 30), int(Tissue.MUSCLE), dtype=torch.uint8)
    pancreas, vein = (slice(2, 18), slice(3, 18), slice(2, 28)), (slice(2, 18), slice(20, 34))
    tissues[pancreas], tissues[vein] = LABEL_OF["pancreas"], int(Tissue.VEIN)
    hull = torch.full(tissues.shape, -60, dtype=torch.int8)
    inner = (slice(4, 16), slice(5, 16), slice(4, 26)), (slice(4, 16), slice(22, 32))
    other = 0
    for seed in range(40):
        hu, seen = synthesise(tissues, hull, 2.0, Chance(seed))
        organ, blood = (hu[part][seen[part]] for part in inner)
        spread, noise = organ - organ.median(), blood - blood.median()
        below, noisy = (spread < -50).float().mean(), (noise < -50).float().mean()
        other += bool(below > noisy + 0.01)
        assert noisy < 0.3 and below < 0.5
    assert 6 <= other <= 28  # 16 are expected


class _Always(Chance):
    """Whatever may happen does."""

    def happens(self, probability: float) -> bool:
        return True


def test_a_duct_runs_within_the_pancreas_and_masses_are_no_brighter() -> None:
    tissues = torch.full((24, 24, 60), int(Tissue.MUSCLE))
    tissues[6:18, 6:18, 2:58] = LABEL_OF["pancreas"]
    mean_hu = _mean_hu(Chance(0), 0.3, 0.8)
    for seed in range(10):
        hu = mean_hu[tissues]
        before = hu.clone()
        _pancreas(hu, tissues, mean_hu, _Always(seed), 2.0)
        changed = hu != before
        assert changed.any() and not changed[tissues != LABEL_OF["pancreas"]].any()
        assert (hu <= before).all()


def test_contrast_comes_to_the_vena_cava_with_the_kidneys_blood() -> None:
    """Below them it is darker, by how much is chance; without contrast it is the same all along."""
    cava, kidney = LABEL_OF["inferior_vena_cava"], LABEL_OF["left_kidney"]
    tissues = torch.full((60, 20, 20), int(Tissue.MUSCLE))
    tissues[:, 4:10, 4:10], tissues[25:35, 12:18, 12:18] = cava, kidney
    veins, darker = tissues == cava, []
    for seed in range(20):
        for enhanced in (0.0, 1.0):
            hu = torch.full(tissues.shape, 40 + 80 * enhanced)
            _unmixed_blood(hu, tissues, _Always(seed), 2.0, 0.0, enhanced)
            assert (hu[~veins] == 40 + 80 * enhanced).all()
            above, below = (
                float(hu[part][veins[part]].mean()) for part in (slice(48, 60), slice(12))
            )
            if enhanced:
                darker.append(above - below)
            else:
                assert abs(above - below) < 30  # uneven
    assert 20 < np.mean(darker) < 60 and max(darker) > 50 and min(darker) < 30


@pytest.mark.parametrize(("beside", "unmixed"), [("liver", False), ("duodenum", True)])
def test_a_slab_without_kidneys_lies_above_or_below_them(beside: str, unmixed: bool) -> None:
    cava = LABEL_OF["inferior_vena_cava"]
    tissues = torch.full((16, 20, 20), int(Tissue.MUSCLE))
    tissues[:, 4:10, 4:10], tissues[:, 12:18, 12:18] = cava, LABEL_OF[beside]
    means = []
    for seed in range(20):
        hu = torch.full(tissues.shape, 120.0)
        _unmixed_blood(hu, tissues, _Always(seed), 2.0, 0.0, 1.0)
        assert (hu[tissues != cava] == 120).all()
        means.append(float(hu[tissues == cava].mean()))
    assert (min(means) < 70) is unmixed and max(means) > 100


def test_a_stomach_of_which_a_slab_shows_a_part_is_large_by_its_width() -> None:
    stomach = torch.zeros((16, 60, 60), dtype=torch.bool)
    stomach[:, 10:50, 10:50] = True  # 64 cm2, 102 ml
    assert _is_large(stomach, 2.0)
    stomach[:, 30:] = False
    assert not _is_large(stomach, 2.0)
    assert _is_large(stomach.repeat(3, 1, 1), 2.0)  # the whole of it: 154 ml


def test_no_colon_lies_beside_the_spine_or_the_lungs() -> None:
    tissues = torch.zeros((40, 90, 120), dtype=torch.long)
    tissues[:, 60:66, 57:63] = Tissue.NERVE
    tissues[25:, 20:60, 10:40] = Tissue.LUNG
    hull = torch.full(tissues.shape, 60.0)
    hull[:, 5:85, 5:115] = -60.0
    distance = ndimage.distance_transform_edt((tissues == 0).numpy(), sampling=2.0)
    gas, near = 0, 0
    for seed in range(12):
        hu = torch.where(tissues > 0, 40.0, -100.0)
        _fill_body(hu, tissues, hull, _mean_hu(Chance(0), 0.0, 0.0), _Always(seed), 2.0)
        found = (hu == -950).numpy() & (hull < 0).numpy()
        gas += int(found.sum())
        near += int((found & (distance < 14)).sum())
    assert gas > 1000 and near == 0


def test_stones_and_sludge_lie_at_the_back_of_the_gallbladder() -> None:
    tissues = torch.full((20, 24, 20), int(Tissue.MUSCLE))
    tissues[4:16, 4:20, 4:16] = LABEL_OF["gallbladder"]
    inner = (slice(6, 14), slice(6, 18), slice(6, 14))
    for seed in range(10):
        hu = torch.zeros(tissues.shape)
        _gallbladder(hu, tissues, _Always(seed), 2.0, 0.8)
        assert not hu[tissues != LABEL_OF["gallbladder"]].any()
        assert (hu[4, 4:20, 4:16] > 0).any()  # the wall
        settled = torch.nonzero(hu[inner])[:, 1]
        assert not len(settled) or settled.min() >= 4  # none in the front third


def test_a_large_stomach_is_full_of_something() -> None:
    for side, full in ((20, False), (30, True)):  # 64 and 216 ml
        tissues = torch.full((40, 40, 40), int(Tissue.MUSCLE))
        tissues[4 : 4 + side, 4 : 4 + side, 4 : 4 + side] = LABEL_OF["stomach"]
        hu = torch.zeros(tissues.shape)
        _hollow_organs(hu, tissues, _mean_hu(Chance(0), 0, 0), _Always(1), 2.0)
        assert bool(hu.any()) == full


def test_bowel_is_brighter_than_the_pancreas_as_often_as_not() -> None:
    for arterial, venous in ((0.35, 0.75), (0.75, 0.25)):
        drawn = [_mean_hu(Chance(seed), arterial, venous) for seed in range(300)]
        for bowel in (LABEL_OF["duodenum"], int(Tissue.SMALL_BOWEL)):
            brighter = sum(bool(hu[bowel] > hu[LABEL_OF["pancreas"]]) for hu in drawn)
            assert 0.25 < brighter / len(drawn) < 0.75


def test_most_kidneys_and_adrenal_glands_lie_in_fat() -> None:
    tissues = torch.zeros((40, 60, 60), dtype=torch.uint8)
    tissues[14:26, 20:40, 20:40] = LABEL_OF["left_kidney"]
    near = torch.zeros_like(tissues, dtype=torch.bool)
    near[11:29, 17:43, 17:43] = True  # 6 mm around it
    near &= tissues == 0
    hull = torch.full(tissues.shape, -60, dtype=torch.int8)
    fat = 0
    for seed in range(40):
        hu, seen = synthesise(tissues, hull, 2.0, Chance(seed))
        around = hu[near & seen]
        fat += bool(((around > -250) & (around < -20)).float().mean() > 0.75)
    assert fat > 24


def test_a_scan_is_blank_beyond_its_field_of_view_and_nowhere_else(tissues: np.ndarray) -> None:
    body = finish(tissues)
    arrays = torch.from_numpy(body.tissues), torch.from_numpy(body.hull)
    solid = arrays[0] == LABEL_OF["liver"]
    round_ones = 0
    for seed in range(40):
        hu, seen = synthesise(*arrays, 2.0, Chance(seed))
        assert (hu[~seen] == -1024).all()
        assert hu[seen & solid].median() > -100
        if not seen.all():
            round_ones += 1
            assert not seen[:, 0, 0].any() and seen[:, seen.shape[1] // 2, seen.shape[2] // 2].all()
    assert 1 <= round_ones < 15  # 5 are expected


def test_phases_leave_an_even_image_even() -> None:
    for seed in range(20):  # sharper, softer, brighter, but not otherwise at its edges
        noiseless = Chance(seed)
        noiseless.noise = lambda shape: torch.zeros(shape)  # type: ignore[method-assign]
        even, liver = torch.full((8, 8, 8), 40.0), torch.ones(8, 8, 8, dtype=torch.uint8)
        hu, _ = vary_hu(even, liver, True, {"phase": {}}, noiseless)
        assert hu.max() - hu.min() < 1e-3


def _shift_of_a_phase(hu: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """What a change of phase adds where labels are, beside the same without any; no noise."""
    results = []
    for of in (labels, torch.zeros_like(labels)):
        noiseless = Chance(seed)
        noiseless.noise = lambda shape: torch.zeros(shape)  # type: ignore[method-assign]
        results.append(vary_hu(hu, of, True, {"phase": {}}, noiseless)[0])
    return results[0] - results[1]


def test_phases_shift_organs_but_not_fat_gas_and_bone() -> None:
    hu = torch.linspace(-1000, 1000, 4096).reshape(16, 16, 16)
    labels = torch.ones(hu.shape, dtype=torch.uint8)
    shifted = 0
    for seed in range(20):
        change = _shift_of_a_phase(hu, labels, seed).abs().amax(dim=(1, 2))  # HU rise with z
        assert change[:5].max() < 0.1 and change[14:].max() < 0.1
        shifted += bool(change[8] > 0.1)
    assert 3 <= shifted <= 13  # 7 are expected


def test_phases_leave_no_grain_in_bright_blood() -> None:
    """Noise about the HU from which contrast keeps its own must not be told apart by it."""
    hu = 250 + 20 * torch.randn(24, 24, 24, generator=torch.manual_seed(0))
    labels = torch.full(hu.shape, LABEL_OF["aorta"], dtype=torch.uint8)
    for seed in range(20):
        change = _shift_of_a_phase(hu, labels, seed)
        assert change.std() < 0.05 * change.mean().abs() + 1e-3


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


def test_colon_that_no_map_labels_keeps_to_its_place_and_gas_rises_in_each_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthesis, "_folds", lambda shape, *_: torch.zeros(shape, dtype=torch.bool))
    loose = torch.zeros((40, 60, 80), dtype=torch.bool)
    loose[5:35, 10:50, 10:70] = True
    above, behind = [], []
    for seed in range(40):
        hu = torch.full(loose.shape, -100.0)
        chance = Chance(seed)
        _loose_colon(hu, loose, _mean_hu(chance, 0.5, 0.5), chance, 2.0)
        assert (hu[~loose] == -100).all()
        gas, colon = hu < -900, (hu != -100) & (hu >= -900)
        assert 0 < int((gas | colon).sum()) < 0.6 * int(loose.sum())
        values, counts = hu[colon].unique(return_counts=True)
        stool = colon & (hu != values[counts.argmax()])  # the wall is of one value
        if min(gas.sum(), stool.sum()) > 500:
            # In a column of voxels the gas lies in front of the stool, nearly always.
            both = gas.any(dim=1) & stool.any(dim=1)
            if not both.any():
                continue
            y = torch.arange(60)[None, :, None]
            middles = [(m * y).sum(dim=1)[both] / m.sum(dim=1)[both] for m in (gas, stool)]
            above.append(float((middles[0] < middles[1]).float().mean()))
            behind.append(int(torch.nonzero(gas)[:, 1].max() - torch.nonzero(stool)[:, 1].min()))
    assert len(above) > 10 and np.mean(above) > 0.93
    # Of some, one loop's gas lies far behind another's stool, beside the spleen say.
    assert max(behind) > 15 and min(behind) < 5


def test_folds_across_the_colons_gas_are_of_its_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    loose = torch.ones((40, 60, 80), dtype=torch.bool)

    def drawn(seed: int) -> tuple[torch.Tensor, float]:
        hu = torch.full(loose.shape, -100.0)
        _loose_colon(hu, loose, _mean_hu(Chance(seed), 0.5, 0.5), Chance(seed), 2.0)
        solid, counts = hu[(hu != -100) & (hu > -900)].unique(return_counts=True)
        return hu, float(solid[counts.argmax()])  # the wall is of one value

    with_folds = [drawn(seed) for seed in range(20)]
    monkeypatch.setattr(synthesis, "_folds", lambda shape, *_: torch.zeros(shape, dtype=torch.bool))
    shares = []
    for seed, (hu, wall) in enumerate(with_folds):
        without, _ = drawn(seed)
        changed = hu != without
        assert (without[changed] == -950).all() and (hu[changed] == wall).all()
        if (without == -950).any():
            shares.append(float(changed.sum() / (without == -950).sum()))
    assert min(shares) == 0 and 0.02 < max(shares) < 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: two phantoms with all organs, one of them an atlas, and one mirrored."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("good", "whole", "mirrored")):
        ct, labels = make_phantom(shape=(40, 48, 64), spacing=(7.0, 7.0, 7.0), seed=number)
        if name == "mirrored":
            flipped = sitk.GetArrayFromImage(labels)[:, :, ::-1]
            wrong = sitk.GetImageFromArray(np.ascontiguousarray(flipped))
            wrong.CopyInformation(labels)
            labels = wrong
        folder = root / "cases" / name
        folder.mkdir(parents=True)
        sitk.WriteImage(ct, str(folder / "ct.nii.gz"))
        sitk.WriteImage(labels, str(folder / "labels.nii.gz"))
        if name == "whole":
            sitk.WriteImage(labels, str(folder / "full_labels.nii.gz"))
            names = {str(v): n for v, n in ORGANS.items()}
            (folder / "full_labels_names.json").write_text(json.dumps(names))
        (folder / "meta.json").write_text(json.dumps({"annotated_labels": [1, 3, 5]}))
    return root


def _config(**changes: Any) -> Config:
    base = Config.load(Path(__file__).parents[1] / "training" / "configs" / "abdoseg.yaml")
    small = {
        "patch": (32, 32, 48),
        "spacing": (6.0, 6.0, 6.0),
        "synthesis_spacing": 6.0,
        "drawn_at_once": 1,
        "coarse_first": {},
        "shares": {"synthetic": 0.6, "transferred": 0.2, "labelled": 0.2},
        "holdout": (),
        "empty": (),
    }
    return replace(base, **{**small, **changes})


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    refused = prepare(find_cases(data), out, _config())
    assert any(line.startswith("mirrored: the liver lies left") for line in refused)
    assert (out / "refused.txt").read_text().splitlines() == refused
    return out


@pytest.fixture
def config() -> Config:
    return _config()


def test_preparation_writes_bodies_and_images_and_goes_on(data: Path, prepared: Path) -> None:
    assert {p.stem for p in (prepared / "images").iterdir()} == {"good", "whole"}
    assert {p.stem for p in (prepared / "bodies").iterdir()} == {"whole", "good__whole"}
    with np.load(prepared / "images" / "good.npz") as case:
        assert case["hu"].shape == case["labels"].shape
        assert case["annotated"].tolist() == [1, 3, 5]
        assert np.abs(case["spacing"] - 6).max() < 0.1
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*.npz")}
    prepare(find_cases(data), prepared, _config())
    assert before == {p: p.stat().st_mtime_ns for p in prepared.rglob("*.npz")}


def test_a_real_ct_is_bent_to_every_other_patient(prepared: Path, config: Config) -> None:
    """The atlas has a CT: it is bent to the other case; the labels are the atlas's own."""
    assert [p.stem for p in (prepared / "transferred").iterdir()] == ["good__whole"]
    with np.load(prepared / "transferred" / "good__whole.npz") as case:
        assert case["hu"].shape == case["labels"].shape
        assert case["annotated"].tolist() == [1, 3, 5]
        assert case["spacing"].tolist() == [2.0, 2.0, 2.0]
        liver, air = case["labels"] == 1, case["hu"] < -500
        assert liver.any() and air.any()
        # Its other organs have labels too, which nobody vouches for.
        assert set(np.unique(case["labels"])) == {0, 1, 3, 5, UNKNOWN}
        # Only at an edge to air can interpolated values be nearer to air's.
        assert (liver & air).sum() < 0.02 * liver.sum()
    samples = Samples(prepared, replace(config, shares={"transferred": 1.0}))
    assert samples[0].image.shape == (1, 32, 32, 48)
    with pytest.raises(FileNotFoundError, match="nothing to train on"):
        Samples(prepared, replace(config, shares={"transferred": 1.0}), ("whole",))


def test_held_out_cases_never_become_patches(data: Path, tmp_path: Path, config: Config) -> None:
    prepare(find_cases(data), tmp_path, _config(holdout=("whole",)))
    # The only atlas is held out, and of organs without a body nothing is drawn.
    assert not list((tmp_path / "bodies").glob("*.npz"))
    samples = Samples(tmp_path, replace(config, holdout=("whole",)))
    assert [p.stem for p in samples.sources["labelled"]] == ["good"]


def test_organs_are_drawn_without_a_body_only_where_there_is_no_ct(
    data: Path, tmp_path: Path
) -> None:
    cases = [case for case in find_cases(data) if not case.tissue_file]
    said = what_is_not_drawn(cases, _config())
    assert said is not None and "no CT is drawn" in said
    prepare(cases, tmp_path / "cts", _config())
    assert not list((tmp_path / "cts" / "bodies").glob("*.npz"))
    maps = [replace(case, kind="labelmap", image=None) for case in cases if case.name == "good"]
    said = what_is_not_drawn(maps, _config())
    assert said is not None and "organs are drawn alone" in said
    prepare(maps, tmp_path / "maps", _config())
    assert [p.name for p in (tmp_path / "maps" / "bodies").glob("*.npz")] == ["good.npz"]
    assert what_is_not_drawn(find_cases(data), _config()) is None
    assert what_is_not_drawn(cases, _config(shares={"labelled": 1.0})) is None


def test_patches_depend_on_their_index_alone(prepared: Path, config: Config) -> None:
    first, second = Samples(prepared, config), Samples(prepared, config)
    second[3]
    for a, b in zip(first[7], second[7], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[7][0], first[8][0])


def test_bodies_whose_organs_are_all_of_one_patient_are_drawn_more_often(
    prepared: Path, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "bodies").mkdir()
    for name, annotated in (("all", list(ORGANS)), ("some", [1, 3, 5])):
        with np.load(prepared / "bodies" / "whole.npz") as content:
            assert content["annotated"].tolist() == [1, 3, 5]
            arrays = {key: content[key] for key in content.files}
        arrays["annotated"] = np.array(annotated, np.uint8)
        np.savez(tmp_path / "bodies" / f"{name}.npz", **arrays)
    samples = Samples(tmp_path, replace(config, shares={"synthetic": 1.0}))
    drawn = []
    load = samples._load
    samples._load = lambda path: (drawn.append(path.stem), load(path))[1]  # type: ignore[method-assign, func-returns-value]
    for index in range(60):
        samples[index]
    assert 2 < drawn.count("some") < 24  # 12 are expected, of equals 30


def test_patches_say_what_was_annotated(prepared: Path, config: Config) -> None:
    real = Samples(prepared, replace(config, shares={"labelled": 1.0}))
    image, labels, annotated, weight = real[0]
    assert image.shape == (1, 32, 32, 48) and labels.shape == (32, 32, 48)
    assert weight == 1
    assert annotated.nonzero().flatten().tolist() == [0, 1, 3, 5]
    low = (config.clip[0] - config.subtract) / config.divide
    high = (config.clip[1] - config.subtract) / config.divide
    assert image.min() >= low - 1e-5 and image.max() <= high + 1e-5
    drawn = Samples(prepared, replace(config, shares={"synthetic": 1.0}))
    assert drawn[0].annotated.all()


def test_no_organ_is_labelled_beyond_a_synthetic_field_of_view(
    prepared: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_half(shape: torch.Size, chance: Chance) -> torch.Tensor:
        return (torch.arange(shape[2]) < shape[2] // 2).expand(shape[1:])

    monkeypatch.setattr("training.synthesis.field_of_view", left_half)
    samples = Samples(prepared, replace(config, shares={"synthetic": 1.0}))
    labels = torch.stack([samples[index].labels for index in range(8)])
    middle = labels.shape[-1] // 2
    assert (labels[..., : middle - 1] > 0).any()
    assert not labels[..., middle + 1 :].any()


def test_patches_drawn_at_once_are_one_larger_patch(prepared: Path, config: Config) -> None:
    """In any order, and whichever kind of data they come from."""
    whole = replace(config, patch=(32, 32, 48), shares={"labelled": 0.5, "synthetic": 0.5})
    large = Samples(prepared, whole)
    parts = Samples(prepared, replace(whole, patch=(8, 32, 48), drawn_at_once=4, batch=4))
    for number, order in ((2, (0, 1, 2, 3)), (0, (3, 0, 2, 1)), (1, (2, 3, 0, 1))):
        found = {part: parts[4 * number + part] for part in order}
        pieces = [found[part] for part in (0, 1, 2, 3)]
        assert torch.equal(torch.cat([p.image for p in pieces], dim=1), large[number].image)
        assert torch.equal(torch.cat([p.labels for p in pieces]), large[number].labels)
        assert all(torch.equal(p.annotated, large[number].annotated) for p in pieces)
    later = Samples(prepared, parts.config)  # as a training that goes on within a group
    assert torch.equal(later[6].image, parts[6].image)


def test_synthetic_scans_have_the_spacing_of_some_scanner(prepared: Path, config: Config) -> None:
    def liver(slice_: float, pixel: float) -> float:
        scan = {"slice": [slice_, slice_], "pixel": [pixel, pixel]}
        samples = Samples(
            prepared,
            replace(
                config,
                spacing=(None, None, None),
                augmentation={"scan": scan},
                placement={"rule": "labelled_slices"},
                shares={"synthetic": 1.0},
            ),
        )
        counts = [int((samples[i].labels == LABEL_OF["liver"]).sum()) for i in range(6)]
        return float(np.mean(counts))

    usual = liver(8.0, 8.0)
    assert usual > 200
    assert liver(16.0, 8.0) == pytest.approx(usual / 2, rel=0.3)
    assert liver(8.0, 16.0) == pytest.approx(usual / 4, rel=0.3)


@pytest.mark.parametrize("kind", ["synthetic", "labelled"])
def test_a_cropped_field_of_view_ends_about_where_the_body_does(
    prepared: Path, config: Config, kind: str
) -> None:
    def shares(pixel: float) -> list[float]:
        scan = {"slice": [8.0, 8.0], "pixel": [pixel, pixel]}
        samples = Samples(
            prepared,
            replace(
                config,
                spacing=(8.0, None, None),
                augmentation={"scan": scan, "cropped": {"probability": 1.0}},
                placement={"rule": "anywhere", "foreground": 1.0},
                shares={kind: 1.0},
            ),
        )
        found = []
        for number in range(4):
            body = (samples[number].image[0] > samples[number].image.min()).any(dim=0)
            for axis in (0, 1):
                found.append(float(body.any(dim=axis).float().mean()))
        return found

    cropped = shares(2.0)
    # 1 / 1.25 where the body is widest; bodies are not the same on every processor.
    assert np.mean(cropped) > 0.8 and min(cropped) > 0.6
    assert len(set(cropped)) > 1 or min(cropped) == 1
    if kind == "synthetic":
        assert shares(30.0) == cropped  # whatever the scanner's pixels


def test_nothing_to_train_on_is_said(tmp_path: Path, config: Config) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to train on"):
        Samples(tmp_path, config)
    with pytest.raises(FileNotFoundError, match="no imagesTr/, cases/"):
        find_cases(tmp_path)


def _looks() -> list[np.ndarray]:
    labels = np.zeros((30, 40, 60), np.uint8)
    labels[5:25, 10:30, 5:25] = LABEL_OF["liver"]
    labels[10:20, 10:25, 40:50] = LABEL_OF["spleen"]
    return [labels.copy() for _ in range(3)]


def test_agreeing_looks_are_kept() -> None:
    found = judge(_looks(), (5.0, 5.0, 5.0), 0.85)
    assert found.kept == (LABEL_OF["liver"], LABEL_OF["spleen"])
    assert (found.labels == _looks()[0]).all()


def test_the_airways_gas_is_not_the_esophagus_in_any_look(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network takes a fifth of a wide pocket of gas with it, and all of a small one."""
    esophagus = LABEL_OF["esophagus"]
    hu = np.full((40, 40, 40), 40, np.int16)
    hu[:, 4:20, 10:26] = -1000  # the trachea
    hu[10:14, 26:29, 16:19] = -1000  # swallowed
    seen = np.zeros((1 + len(ORGANS), *hu.shape), np.float32)
    seen[esophagus, :, 17:32, 12:24] = 1.0

    def as_seen(network: Any, values: np.ndarray, config: Config) -> np.ndarray:
        grown = [ndimage.zoom(part, np.divide(values.shape, hu.shape), order=0) for part in seen]
        return np.stack(grown)

    monkeypatch.setattr("training.pseudolabel.logits_of", as_seen)
    looks = look_at([torch.nn.Identity()], hu, (2.0, 2.0, 2.0), config)
    assert len(looks) == 3
    for look in looks:
        assert set(np.unique(look)) == {0, esophagus}
        assert not (look[:, 4:20, 10:26] == esophagus).any()
        assert (look[10:14, 26:29, 16:19] == esophagus).all()
        assert (look[2:-2, 23:30, 14:22] == esophagus).all()


def test_looks_that_differ_leave_the_organ_unknown() -> None:
    looks = _looks()
    looks[1][looks[1] == LABEL_OF["spleen"]] = 0
    found = judge(looks, (5.0, 5.0, 5.0), 0.85)
    assert found.kept == (LABEL_OF["liver"],)
    assert (found.labels[_looks()[0] == LABEL_OF["spleen"]] == UNKNOWN).all()


def test_mirrored_and_tiny_organs_are_not_believed() -> None:
    assert judge([look[:, :, ::-1] for look in _looks()], (5.0, 5.0, 5.0), 0.85).kept == ()
    assert judge(_looks(), (1.0, 1.0, 1.0), 0.85).kept == ()
