"""Clean-up on the network's grid that the upsampled labels follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from tiny_model import make_ct, make_tiny_model

from inference.api import segment
from inference.errors import ModelError
from inference.labels.decode import decode
from inference.labels.postprocess import postprocess
from inference.model import Model
from inference.network.logits import floats
from inference.network.winners import winners

SPACING = (2.0, 2.0, 2.5)  # 0.01 ml a voxel


def logits_of(labels: NDArray[Any]) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    one_hot = np.stack([labels == c for c in range(5)]).astype(np.float32)
    return (one_hot * 6 + rng.uniform(-2, 2, one_hot.shape)).astype(np.float32)


def apply(tiny: Model, labels: NDArray[Any], *steps: dict[str, Any]) -> NDArray[np.float32]:
    logits = logits_of(labels)
    postprocess(logits, SPACING, replace(tiny.plan, postprocessing=steps))
    return logits


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    """Channel 1 in parts of 64, 8 and 1 voxels, channel 2 in one of 27 that touches them not."""
    volume = np.zeros((14, 16, 18), np.uint8)
    volume[1:5, 1:5, 1:5] = 1
    volume[8:10, 8:10, 8:10] = 1
    volume[12, 2, 2] = 1
    volume[1:4, 10:13, 10:13] = 2
    return volume


def test_keep_largest(tiny: Model, labels: NDArray[np.uint8]) -> None:
    found = winners(apply(tiny, labels, {"step": "keep_largest", "labels": [1]}))
    assert (found == 1).sum() == 64
    assert np.array_equal(found[:6], labels[:6])


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("millilitres", [0.3, 0.9, None])
def test_parts_that_the_field_of_view_cuts_stay(
    tiny: Model, end: int, millilitres: float | None
) -> None:
    """An aorta's two parts below the arch, of 1.2 and 0.6 ml, and what is none of it."""
    labels = np.zeros((12, 16, 18), np.uint8)
    parts = {
        name: np.zeros(labels.shape, bool) for name in ("down", "up", "speck", "inside", "far")
    }
    parts["down"][0:10, 2:5, 2:6] = True
    parts["up"][0:5, 10:13, 2:6] = True
    parts["speck"][0, 2, 12] = True  # cut, but small
    parts["inside"][2:8, 7, 9:15] = True  # large enough, but not cut
    parts["far"][11, 8:14, 10:16] = True  # cut at the end where the largest is not
    for mask in parts.values():
        labels[mask if end == 0 else mask[::-1]] = 1
    step: dict[str, Any] = {"step": "keep_largest", "labels": [1]}
    if millilitres is not None:
        step["cut_millilitres"] = millilitres
    found = winners(apply(tiny, labels, step))[:: 1 if end == 0 else -1] == 1
    stays = parts["down"] | parts["up"] if millilitres == 0.3 else parts["down"]
    assert np.array_equal(found, stays)


def test_keep_largest_goes_by_label_values_not_channels(
    tiny: Model, labels: NDArray[np.uint8]
) -> None:
    """Channel 4 stands for label 13."""
    labels[labels == 1] = 4
    found = winners(apply(tiny, labels, {"step": "keep_largest", "labels": [13]}))
    assert (found == 4).sum() == 64


def test_a_removed_part_does_not_become_another_organ(
    tiny: Model, labels: NDArray[np.uint8]
) -> None:
    """Also where the other organ is next best, and was cleaned up before."""
    logits = logits_of(labels)
    logits[2, labels == 1] = logits[1, labels == 1] - 1
    steps = ({"step": "keep_largest", "labels": [2, 1]},)
    postprocess(logits, SPACING, replace(tiny.plan, postprocessing=steps))
    found = winners(logits)
    assert (found == 1).sum() == 64 and (found == 2).sum() == 27
    assert not found[labels == 0].any()


def test_remove_small(tiny: Model, labels: NDArray[np.uint8]) -> None:
    step = {"step": "remove_small", "labels": [1, 2], "millilitres": 0.05}
    found = winners(apply(tiny, labels, step))
    assert (found == 1).sum() == 72
    assert (found == 2).sum() == 27
    found = winners(apply(tiny, labels, {**step, "millilitres": 0.5}))
    assert (found == 1).sum() == 64
    assert not found[labels == 2].any()
    found = winners(apply(tiny, labels, {**step, "labels": [1], "millilitres": 0.5}))
    assert (found == 2).sum() == 27, "another organ's small part is left alone"


def test_parts_that_touch_at_a_corner_are_one(tiny: Model) -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    labels[4:6, 4:6, 4:6] = 1
    assert (winners(apply(tiny, labels, {"step": "keep_largest", "labels": [1]})) == 1).sum() == 35


def test_close_fills_background_only(tiny: Model) -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[2:7, 2:7, 2:7] = 1
    labels[4, 4, 4] = 0
    labels[3, 3, 3] = 2
    found = winners(apply(tiny, labels, {"step": "close", "labels": [1]}))
    assert found[4, 4, 4] == 1
    assert found[3, 3, 3] == 2
    assert (found == 1).sum() == 124


def test_upsampled_labels_follow(tiny: Model, labels: NDArray[np.uint8]) -> None:
    def full(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
        out = np.zeros((41, 50, 50), np.uint8)
        decode(logits, range(5), out)
        return out

    before = full(logits_of(labels))
    after = full(apply(tiny, labels, {"step": "keep_largest", "labels": [1]}))
    # The kept part's surface stays as it was, nothing is left of the others.
    assert np.array_equal(after[:19] == 1, before[:19] == 1)
    assert (before[20:] == 1).any()
    assert not (after[20:] == 1).any()


def test_absent_organs_are_no_problem(tiny: Model) -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    steps: list[dict[str, Any]] = [
        {"step": "keep_largest", "labels": [1, 2, 3, 13]},
        {"step": "remove_small", "labels": [1], "millilitres": 1.0},
        {"step": "close", "labels": [1]},
        {"step": "cut_tail", "labels": [1], "share": 0.6, "millimetres": 25},
        {"step": "cut_necks", "labels": [1], "share": 0.2, "millimetres": 2},
    ]
    assert not winners(apply(tiny, labels, *steps)).any()


@pytest.mark.parametrize(
    "step",
    [
        {"step": "polish", "labels": [1]},
        {"step": "close"},
        {"step": "close", "labels": [7]},
        {"step": "close", "labels": [0]},
        {"step": "remove_small", "labels": [1]},
        {"step": "remove_small", "labels": [1], "millilitres": None},
        {"step": "cut_tail", "labels": [1], "share": 0.5},
        {"step": "cut_tail", "labels": [1], "share": 1.5, "millimetres": 25},
        {"step": "sides", "labels": []},
        {"step": "close", "labels": 3},
    ],
)
def test_bad_steps_are_refused(
    tiny: Model, labels: NDArray[np.uint8], step: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="bad postprocessing"):
        apply(tiny, labels, step)


GAS = {"step": "foreign_gas", "labels": [1], "hu": -800, "share": 0.5}


def without_gas(
    tiny: Model, labels: NDArray[Any], ct: NDArray[Any], step: dict[str, Any], offset: float = 0.0
) -> NDArray[np.uint8]:
    logits = logits_of(labels)
    plan = replace(tiny.plan, postprocessing=(step,))
    found = postprocess(logits, SPACING, plan, ct=ct, offset=offset)
    assert found is not None and np.array_equal(found, winners(logits))
    return found


@pytest.fixture
def beside_colon() -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """An organ with a pocket of gas of its own, and colon of which a sixth is labelled so too."""
    labels = np.zeros((20, 24, 40), np.uint8)
    labels[4:16, 4:16, 4:20] = 1
    labels[4:16, 16:20, 4:20] = 2
    hu = np.full(labels.shape, 40, np.int16)
    hu[6:12, 6:12, 6:12] = -980
    hu[6:14, 6:14, 17:36] = -980
    return labels, hu


def test_gas_that_lies_mostly_beside_an_organ_is_not_its(
    tiny: Model, beside_colon: tuple[NDArray[np.uint8], NDArray[np.int16]]
) -> None:
    labels, hu = beside_colon
    expected = labels.copy()
    expected[5:15, 5:15, 16:20] = 0  # with the wall around; the other organ begins beyond it
    assert np.array_equal(without_gas(tiny, labels, hu, GAS), expected)
    assert np.array_equal(without_gas(tiny, labels, hu + 1024, GAS, offset=-1024), expected)
    for changed in ({"share": 0.1}, {"labels": [2]}, {"hu": -1000}):
        assert np.array_equal(without_gas(tiny, labels, hu, GAS | changed), labels)


def test_what_gas_touches_may_stay(
    tiny: Model, beside_colon: tuple[NDArray[np.uint8], NDArray[np.int16]]
) -> None:
    labels, hu = beside_colon
    expected = labels.copy()
    expected[6:14, 6:14, 17:20] = 0  # without the wall around
    assert np.array_equal(without_gas(tiny, labels, hu, GAS | {"wall": False}), expected)
    hu[6:14, 6:14, 16] = -500  # the pocket's blurred edge is no wall
    expected[6:14, 6:14, 16] = 0
    assert np.array_equal(without_gas(tiny, labels, hu, GAS | {"wall": False}), expected)


def test_lung_around_an_organ_that_holds_gas_goes(tiny: Model) -> None:
    """An esophagus between the lungs, of which a network takes some for its gas."""
    hu = np.full((20, 30, 40), -850)
    hu[:, 8:22, 16:24] = 40
    hu[4:16, 10:20, 18:22] = -980
    labels = np.zeros(hu.shape, np.uint8)
    labels[2:18, 6:24, 13:27] = 1
    step = {"step": "foreign_gas", "labels": [1], "hu": -700, "share": 0.5, "wall": False}
    expected = np.zeros(hu.shape, np.uint8)
    expected[2:18, 8:22, 16:24] = 1
    assert np.array_equal(without_gas(tiny, labels, hu, step), expected)


def test_gas_is_sought_in_a_ct_of_any_grid(
    tiny: Model, beside_colon: tuple[NDArray[np.uint8], NDArray[np.int16]]
) -> None:
    labels, hu = beside_colon
    expected = without_gas(tiny, labels, hu, GAS)
    finer = hu.repeat(2, axis=0).repeat(3, axis=1).repeat(2, axis=2)
    assert np.array_equal(without_gas(tiny, labels, finer, GAS), expected)


def test_a_pockets_blurred_edge_goes_with_it(
    tiny: Model, beside_colon: tuple[NDArray[np.uint8], NDArray[np.int16]]
) -> None:
    labels, hu = beside_colon
    hu[6:14, 6:14, 16] = -500
    expected = labels.copy()
    expected[5:15, 5:15, 15:20] = 0
    assert np.array_equal(without_gas(tiny, labels, hu, GAS), expected)
    # As far as it is not the edge of the organ's own gas.
    hu[6:12, 6:12, 12:16] = -500
    found = without_gas(tiny, labels, hu, GAS)
    assert (found[6:12, 6:12, 6:14] == 1).all() and not found[6:12, 6:12, 15:20].any()


def test_gas_beneath_the_lung_stays(tiny: Model) -> None:
    """A wall of 2 mm in slices of 4 mm, half of it in each of two slices."""
    labels = np.zeros((24, 24, 30), np.uint8)
    labels[2:12, 4:20, 8:20] = 1
    hu = np.full(labels.shape, 40)
    hu[4:10, 6:18, 10:18] = -980
    hu[10:12, 6:18, 10:18] = (1 * 40 + 3 * -980) / 4
    hu[12:] = -850
    assert np.array_equal(without_gas(tiny, labels, hu, GAS), labels)
    # Were there no wall at all, the pocket would be the lung's.
    hu[10:12] = -850
    assert not without_gas(tiny, labels, hu, GAS)[4:12, 6:18, 10:18].any()


def test_gas_further_away_than_40_mm_does_not_count(tiny: Model) -> None:
    labels = np.zeros((12, 12, 120), np.uint8)
    labels[2:10, 2:10, 2:20] = 1
    hu = np.full(labels.shape, 40)
    hu[3:9, 3:9, 4:36] = -980  # half of it is labelled, up to column 36 = 20 + 40 mm / 2.5 mm
    assert np.array_equal(without_gas(tiny, labels, hu, GAS), labels)
    hu[3:9, 3:9, 36:] = -980
    assert np.array_equal(without_gas(tiny, labels, hu, GAS), labels)


@pytest.mark.parametrize("seed", range(6))
def test_foreign_gas_equals_brute_force(tiny: Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.standard_normal((24, 28, 30)), 3) for _ in range(2)]
    labels = (smooth[0] > np.quantile(smooth[0], 0.7)).astype(np.uint8)
    hu = np.where(smooth[1] > np.quantile(smooth[1], 0.75), -950, 50)
    found = without_gas(tiny, labels, hu, GAS)
    pockets, n = ndimage.label(hu < -800)
    gone = np.zeros(labels.shape, bool)
    own = np.zeros(labels.shape, bool)
    for pocket in range(1, n + 1):
        here, mine = pockets == pocket, (pockets == pocket) & (labels == 1)
        if mine.sum() < 0.5 * here.sum():
            gone |= ndimage.binary_dilation(mine, np.ones((3, 3, 3)))
        else:
            own |= here
    assert np.array_equal(found, np.where(gone & ~own, 0, labels))
    assert 0 < (found != labels).sum() < labels.sum()


def test_gas_is_sought_in_the_ct_as_the_network_sees_it_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(tmp_path / "model", crop="none", postprocessing=(GAS,))
    ct = make_ct()
    stored = sitk.DICOMOrient(ct, "RSP")
    seen: list[NDArray[Any]] = []

    def look(logits: Any, spacing: Any, plan: Any, threads: int, ct: Any, offset: float) -> Any:
        seen.append(ct + offset)
        return postprocess(logits, spacing, plan, threads, ct, offset)

    monkeypatch.setattr("inference.pipeline.postprocess", look)
    segment(stored, tmp_path / "model")
    (hu,) = seen
    assert np.array_equal(hu, sitk.GetArrayFromImage(sitk.DICOMOrient(ct, "LPS")))


def test_foreign_gas_cannot_be_sought_without_a_ct(tiny: Model) -> None:
    labels = np.ones((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="without the CT"):
        apply(tiny, labels, GAS)


def test_sides_gives_parts_to_the_organ_of_their_side(tiny: Model) -> None:
    """Channel 3 is in the middle; channels 1 and 2 are right and left, x runs to the left."""
    labels = np.zeros((8, 8, 30), np.uint8)
    labels[:, 3:5, 14:17] = 3
    labels[1:5, 1:5, 2:6] = 1
    labels[1:3, 1:3, 24:26] = 1  # on the left
    labels[4:7, 4:7, 22:26] = 2
    labels[6, 1, 3] = 2  # on the right
    step = {"step": "sides", "labels": [3, 1, 2]}
    found = winners(apply(tiny, labels, step))
    assert ((found == 1) == (np.isin(labels, (1, 2)) & (np.arange(30) < 15))).all()
    assert ((found == 2) == (np.isin(labels, (1, 2)) & (np.arange(30) > 15))).all()
    labels[labels == 3] = 0
    assert (winners(apply(tiny, labels, step)) == labels).all()


def test_sides_decides_where_both_are_as_likely(tiny: Model) -> None:
    labels = np.zeros((8, 8, 30), np.uint8)
    labels[:, 3:5, 14:17] = 3
    labels[1:5, 1:5, 22:26] = 1  # the right one, on the left
    for kind in (np.float32, np.float16):
        logits = logits_of(labels).astype(kind)
        logits[2, labels == 1] = logits[1, labels == 1]  # and the left one just as much
        steps = ({"step": "sides", "labels": [3, 1, 2]},)
        found = postprocess(logits, SPACING, replace(tiny.plan, postprocessing=steps))
        assert found is not None and (found[labels == 1] == 2).all()
        assert (winners(logits) == found).all(), "the logits say the same"


def hanging(neck: int, side: int = 4) -> NDArray[np.uint8]:
    """A cube of 8 voxels, and one of some voxels that hangs on it by a neck of some voxels."""
    labels = np.zeros((12, 14, 24), np.uint8)
    labels[2:10, 3:11, 2:10] = 1
    labels[5 : 5 + neck, 6 : 6 + neck, 10:14] = 1
    labels[4 : 4 + side, 5 : 5 + side, 14 : 14 + side] = 1
    return labels


NECKS = {"step": "cut_necks", "labels": [1, 2], "millimetres": 2, "share": 0.2}


@pytest.mark.parametrize("neck", [1, 2])
def test_what_hangs_by_a_neck_is_cut(tiny: Model, neck: int) -> None:
    labels = hanging(neck)
    labels[:, 0, :] = 2  # nothing hangs on this one
    found = winners(apply(tiny, labels, NECKS))
    assert (found[:, :, 13:] != 1).all()  # with the neck's far end
    assert np.array_equal(found[:, :, :10], labels[:, :, :10])
    assert np.array_equal(found == 2, labels == 2)


@pytest.mark.parametrize(
    ("labels", "step"),
    [
        (hanging(4), NECKS),  # no neck
        (hanging(2, side=7), NECKS),  # (5 / 6) ** 3 of the other
        (hanging(2), {**NECKS, "millimetres": 0.5}),  # no voxel
        (hanging(0), NECKS),  # a part of its own
    ],
)
def test_what_does_not_hang_by_a_neck_stays(
    tiny: Model, labels: NDArray[np.uint8], step: dict[str, Any]
) -> None:
    assert np.array_equal(winners(apply(tiny, labels, step)), labels)


@pytest.mark.parametrize("seed", range(8))
def test_cut_necks_equals_brute_force(tiny: Model, seed: int) -> None:
    """By SciPy: cores, and for each other voxel the way to the nearest core within the organ."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 26, 28)), 2)
    labels = (smooth > np.quantile(smooth, 0.7)).astype(np.uint8)
    mine, cube = labels == 1, np.ones((3, 3, 3))
    cores, count = ndimage.label(ndimage.binary_erosion(mine, cube, border_value=1), cube)
    parts, _ = ndimage.label(mine, cube)
    sizes = {core: np.sum(cores == core) for core in range(1, count + 1)}
    inside = {core: np.unique(cores[parts == parts[cores == core][0]]) for core in sizes}
    small = [core for core in sizes if sizes[core] < 0.2 * max(sizes[c] for c in inside[core] if c)]

    def steps_from(core: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Chessboard steps within the organ, not through the other's core."""
        steps = np.where(core, 0.0, np.inf)
        for step in range(1, 4):
            near = ndimage.binary_dilation(steps < np.inf, cube) & mine & ~other
            steps[near & (steps == np.inf)] = step
        return steps

    bad, good = np.isin(cores, small), (cores > 0) & ~np.isin(cores, small)
    to_bad, to_good = steps_from(bad, good), steps_from(good, bad)
    labels_after = np.where(mine & (to_bad < to_good), 0, labels)
    found = winners(apply(tiny, labels, {**NECKS, "labels": [1]}))
    assert count > 1 and len(small)
    assert (found != labels_after).mean() < 1e-3  # ways that the other has closed meanwhile
    assert np.array_equal(found[bad], labels_after[bad])


def vessel(tail: int, begin: int = 2) -> NDArray[np.uint8]:
    """A vessel of 16 voxels a slice, on a branch of 4 a slice, which is ``tail`` slices long."""
    labels = np.zeros((70, 12, 16), np.uint8)
    labels[begin : begin + tail, 2:4, 3:5] = 1
    labels[begin + tail :, 2:6, 3:7] = 1
    return labels


TAIL = {"step": "cut_tail", "labels": [1], "share": 0.5, "millimetres": 20}


@pytest.mark.parametrize("tail", [0, 1, 10])
def test_a_branch_is_cut_from_its_vessel(tiny: Model, tail: int) -> None:
    labels = vessel(tail)
    labels[:, 8:10, 10:12] = 2  # as thin, all the way down
    found = winners(apply(tiny, labels, {**TAIL, "labels": [1, 2]}))
    labels[: 2 + tail][labels[: 2 + tail] == 1] = 0
    assert np.array_equal(found, labels)


@pytest.mark.parametrize(
    ("labels", "step"),
    [
        (vessel(11), TAIL),  # 22 mm are no branch of 20 mm
        (vessel(10), {**TAIL, "share": 0.2}),  # a branch has a quarter
        (vessel(10, begin=0), TAIL),  # the field of view cuts it
        (vessel(10)[::-1], TAIL),  # thin at its upper end
    ],
)
def test_what_is_no_branch_stays(
    tiny: Model, labels: NDArray[np.uint8], step: dict[str, Any]
) -> None:
    assert np.array_equal(winners(apply(tiny, labels, step)), labels)


def test_a_true_end_below_an_aneurysm_stays(tiny: Model) -> None:
    labels = vessel(0)
    labels[2 + 8 : 2 + 34, :10, :10] = 1  # 16 to 68 mm above the end, six times as wide
    labels[2 + 34 :, 2:6, 3:7] = 1
    assert np.array_equal(winners(apply(tiny, labels, TAIL)), labels)


@pytest.mark.parametrize("begin", [0, 2, 8])
def test_a_speck_does_not_tell_where_a_vessel_ends(tiny: Model, begin: int) -> None:
    labels = vessel(8, begin=20)
    labels[begin, 2, 3] = 1
    found = winners(apply(tiny, labels, TAIL))
    labels[20:28] = 0
    assert np.array_equal(found, labels)


def test_cut_tail_goes_by_the_lower_end(tiny: Model) -> None:
    """The chest's wide aorta is not what the belly's narrow one is measured by."""
    labels = vessel(0)
    labels[2 + 30 :, :10, :10] = 1  # 60 mm further up, six times as wide
    assert np.array_equal(winners(apply(tiny, labels, TAIL)), labels)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "keep_largest", "labels": [2, 1]},
        {"step": "remove_small", "labels": [1], "millilitres": 0.2},
        {"step": "close", "labels": [1, 2]},
        {"step": "sides", "labels": [2, 4, 1]},
    ],
)
def test_bits_of_bfloat16_are_cleaned_up_as_numbers_are(
    tiny: Model, labels: NDArray[np.uint8], step: dict[str, Any]
) -> None:
    labels[2, 2, 3] = 0
    bits = (logits_of(labels).view(np.uint32) >> 16).astype(np.uint16)
    numbers = floats(bits)
    step = {**step, "labels": [13 if value == 4 else value for value in step["labels"]]}
    plan = replace(tiny.plan, postprocessing=(step,))
    found, expected = (postprocess(logits, SPACING, plan) for logits in (bits, numbers))
    assert found is not None and expected is not None
    assert np.array_equal(found, expected) and not np.array_equal(found, labels)
    assert np.array_equal(winners(bits), found)


def test_sides_of_several_pairs(tiny: Model) -> None:
    """Two right organs, 1 and (as label 13) channel 4, and the left one of both, 2."""
    labels = np.zeros((4, 8, 30), np.uint8)
    labels[:, 3:5, 14:17] = 3
    labels[1, 1, 24] = 1
    labels[1, 6, 25] = 2
    labels[2, 1, 25] = 4
    found = winners(apply(tiny, labels, {"step": "sides", "labels": [3, 1, 2, 13, 2]}))
    assert (found[1, 1, 24], found[1, 6, 25], found[2, 1, 25]) == (2, 2, 2)


def test_removed_logits_do_not_come_back_between_voxels(tiny: Model) -> None:
    """The class that went is the least likely one, so it wins nowhere around either."""
    labels = np.zeros((6, 6, 12), np.uint8)
    labels[1:5, 1:5, 1:5] = 1
    labels[2, 2, 8] = 1
    logits = np.zeros((5, *labels.shape), np.float32)
    logits[0] = np.where(labels == 0, 1, 0)
    logits[1] = np.where(labels == 1, 50, 0)
    plan = replace(tiny.plan, postprocessing=({"step": "keep_largest", "labels": [1]},))
    postprocess(logits, SPACING, plan)
    out = np.zeros((24, 24, 48), np.uint8)
    decode(logits, range(5), out)
    assert not out[:, :, 24:].any() and out[:, :, :24].any()


def test_winning_channels_are_returned(tiny: Model, labels: NDArray[np.uint8]) -> None:
    logits = logits_of(labels)
    steps = ({"step": "keep_largest", "labels": [1]}, {"step": "close", "labels": [1, 2]})
    found = postprocess(logits, SPACING, replace(tiny.plan, postprocessing=steps), 3)
    assert found is not None and np.array_equal(found, winners(logits))
    assert postprocess(logits, SPACING, tiny.plan) is None


@pytest.mark.parametrize("seed", range(20))
def test_steps_of_one_plan_are_those_of_several_plans(tiny: Model, seed: int) -> None:
    """What one step knows of the parts and hands to the next is still true there."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, (12, 7, 8), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    steps: list[dict[str, Any]] = [
        {"step": "keep_largest", "labels": [1, 2]},
        {"step": "remove_small", "labels": [2, 3], "millilitres": 0.03},
        {"step": "close", "labels": [1, 2, 3]},
        {"step": "sides", "labels": [1, 2, 3]},
    ]
    chosen = [steps[number] for number in rng.integers(0, len(steps), 5)]
    together, apart = logits_of(labels), logits_of(labels)
    found = postprocess(together, SPACING, replace(tiny.plan, postprocessing=tuple(chosen)))
    for step in chosen:
        postprocess(apart, SPACING, replace(tiny.plan, postprocessing=(step,)))
    assert found is not None and np.array_equal(found, winners(apart))
    assert np.array_equal(winners(together), winners(apart))


@pytest.mark.parametrize("seed", range(20))
def test_keep_largest_equals_brute_force(tiny: Model, seed: int) -> None:
    """Against a flood fill of every part, where parts are many and some slices empty."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((12, 7, 8)) < 0.25).astype(np.uint8)
    labels[rng.random(12) < 0.3] = 0
    labels[:, 0, 0] = np.where(labels[:, 0, 0], 0, 2)
    found = winners(apply(tiny, labels, {"step": "keep_largest", "labels": [1]}))
    left = {tuple(voxel) for voxel in np.argwhere(labels == 1).tolist()}
    parts: list[set[tuple[int, ...]]] = []
    while left:
        todo, part = [min(left)], set()
        while todo:
            voxel = todo.pop()
            if voxel in left:
                left.remove(voxel)
                part.add(voxel)
                steps = np.argwhere(np.ones((3, 3, 3))) - 1
                todo += [tuple(p) for p in (np.array(voxel) + steps).tolist()]
        parts.append(part)
    # Of several that are equally large any may stay.
    kept = {tuple(voxel) for voxel in np.argwhere(found == 1).tolist()}
    assert kept in [part for part in parts if len(part) == max(map(len, parts))] or not parts
    assert ((found == 2) == (labels == 2)).all()
