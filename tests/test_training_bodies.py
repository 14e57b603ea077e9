"""Whole bodies from label maps, and real CTs bent to other patients' organs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from scipy import ndimage

from inference.organs import LABEL_OF, ORGANS
from training.data.tissues import (
    Tissue,
    on_wrong_sides,
    organs_only,
)
from training.sampling.chance import Chance
from training.sampling.warp import (
    regular_places,
)
from training.synthetic.bodies import _reached, complete, finish, transfer
from training.synthetic.lent_organs import join_to_stomach, lay, lead_past
from training.synthetic.registration import register

ADRENAL = "left_adrenal_gland"


def _organs(tissues: np.ndarray) -> np.ndarray:
    return organs_only(torch.from_numpy(tissues)).numpy()


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
