"""CTs that are drawn for a body, as a scanner would see it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from scipy import ndimage

from inference.organs import LABEL_OF
from training.data.tissues import (
    Tissue,
)
from training.sampling.chance import Chance
from training.synthetic import intensities
from training.synthetic.bodies import finish
from training.synthetic.intensities import (
    _fill_body,
    _gallbladder,
    _hollow_organs,
    _is_large,
    _loose_colon,
    _pancreas,
    _unmixed_blood,
    synthesise,
)
from training.synthetic.mean_hu import draw_mean_hu


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
    mean_hu = draw_mean_hu(Chance(0), 0.3, 0.8)
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
        _fill_body(hu, tissues, hull, draw_mean_hu(Chance(0), 0.0, 0.0), _Always(seed), 2.0)
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
        _hollow_organs(hu, tissues, draw_mean_hu(Chance(0), 0, 0), _Always(1), 2.0)
        assert bool(hu.any()) == full


def test_bowel_is_brighter_than_the_pancreas_as_often_as_not() -> None:
    for arterial, venous in ((0.35, 0.75), (0.75, 0.25)):
        drawn = [draw_mean_hu(Chance(seed), arterial, venous) for seed in range(300)]
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


def test_colon_that_no_map_labels_keeps_to_its_place_and_gas_rises_in_each_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        intensities, "_folds", lambda shape, *_: torch.zeros(shape, dtype=torch.bool)
    )
    loose = torch.zeros((40, 60, 80), dtype=torch.bool)
    loose[5:35, 10:50, 10:70] = True
    above, behind = [], []
    for seed in range(40):
        hu = torch.full(loose.shape, -100.0)
        chance = Chance(seed)
        _loose_colon(hu, loose, draw_mean_hu(chance, 0.5, 0.5), chance, 2.0)
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
        _loose_colon(hu, loose, draw_mean_hu(Chance(seed), 0.5, 0.5), Chance(seed), 2.0)
        solid, counts = hu[(hu != -100) & (hu > -900)].unique(return_counts=True)
        return hu, float(solid[counts.argmax()])  # the wall is of one value

    with_folds = [drawn(seed) for seed in range(20)]
    monkeypatch.setattr(
        intensities, "_folds", lambda shape, *_: torch.zeros(shape, dtype=torch.bool)
    )
    shares = []
    for seed, (hu, wall) in enumerate(with_folds):
        without, _ = drawn(seed)
        changed = hu != without
        assert (without[changed] == -950).all() and (hu[changed] == wall).all()
        if (without == -950).any():
            shares.append(float(changed.sum() / (without == -950).sum()))
    assert min(shares) == 0 and 0.02 < max(shares) < 0.3
