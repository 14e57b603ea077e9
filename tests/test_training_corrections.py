"""Corrections by hand, each kind in a made volume: erased, cleared, grown, drawn, doubted, ..."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.organs import LABEL_OF
from training.data.tissues import UNKNOWN
from training.pseudolabels.corrections import correct, load_corrections, of_kind
from training.pseudolabels.fat import drop_fat
from training.pseudolabels.judge import judge
from training.yaml_file import load_yaml

LIVER, KIDNEY, AORTA = (LABEL_OF[name] for name in ("liver", "left_kidney", "aorta"))
SPACING = (2.0, 1.0, 1.0)


def _ball(centre: tuple[int, int, int], radius: float) -> np.ndarray:
    """Voxels of a (30, 60, 60) volume within so many mm of one of them."""
    place = [(np.arange(n) - c) * s for n, c, s in zip((30, 60, 60), centre, SPACING, strict=True)]
    z, y, x = np.meshgrid(*place, indexing="ij")
    inside: np.ndarray = z**2 + y**2 + x**2 <= radius**2
    return inside


def _corrections(folder: Path, text: str) -> list:
    file = folder / "corrections.yaml"
    file.write_text("a:\n" + text)
    return load_corrections(file)["a"]


def test_an_organ_grows_to_its_edge_and_not_beyond_its_box(tmp_path: Path) -> None:
    kidney, speck, muscle = _ball((12, 30, 40), 12), _ball((20, 45, 48), 5), _ball((12, 30, 5), 9)
    hu = np.full(kidney.shape, -100, np.int16)
    hu[kidney | speck | muscle] = 40
    hu[_ball((12, 30, 40), 4)] = -60  # the sinus: a hole that is filled
    labels = np.zeros(hu.shape, np.uint8)
    labels[5:8, 5:9, 5:9] = KIDNEY  # a mistake elsewhere
    labels[12, 25:35, 30:50] = UNKNOWN
    edits = _corrections(tmp_path, "  - {grow: [left_kidney], x: [20, 60], hu: [-30, 80]}\n")
    correct(labels, hu, SPACING, edits)
    found = labels == KIDNEY
    assert 2 * (found & kidney).sum() / (found.sum() + kidney.sum()) > 0.95
    assert found[12, 30, 40]  # the hole
    assert not (found & (speck | muscle)).any() and not found[:, :, :20].any()


def test_what_has_another_organ_does_not_grow(tmp_path: Path) -> None:
    kidney, liver = _ball((12, 30, 40), 10), _ball((12, 30, 22), 10)
    hu = np.where(kidney | liver, 40, -100).astype(np.int16)
    labels = np.where(liver, LIVER, 0).astype(np.uint8)
    edits = _corrections(tmp_path, "  - {grow: [left_kidney], hu: [-30, 80]}\n")
    correct(labels, hu, SPACING, edits)
    assert ((labels == LIVER) == liver).all()
    assert (labels == KIDNEY).sum() > 0.8 * (kidney & ~liver).sum()


def test_erasing_and_clearing_stay_in_their_box(tmp_path: Path) -> None:
    labels = np.zeros((4, 2, 30), np.uint8)
    labels[:, 0], labels[:, 1, 0], labels[:, 1, 1:] = LIVER, AORTA, UNKNOWN
    hu = np.zeros(labels.shape, np.int16)
    text = "  - {erase: [liver], z: [1, 2]}\n  - {clear: all, but: [aorta], z: [3, 4]}\n"
    correct(labels, hu, SPACING, _corrections(tmp_path, text))
    assert (labels[[0, 2], 0] == LIVER).all() and (labels[[1, 3], 0] == 0).all()
    assert (labels[:, 1, 0] == AORTA).all()
    assert (labels[:3, 1, 1:] == UNKNOWN).all()
    # What is within 10 mm of the aorta may be its rim.
    assert (labels[3, 1, 1:11] == UNKNOWN).all() and (labels[3, 1, 11:] == 0).all()


def test_a_bright_vein_is_erased_and_the_organ_around_it_stays(tmp_path: Path) -> None:
    organ, vein = _ball((15, 30, 30), 14), _ball((15, 30, 30), 6)
    hu = np.where(vein, 160, 80) + np.random.default_rng(0).normal(0, 20, organ.shape)
    labels = np.where(organ, LIVER, 0).astype(np.uint8)
    edits = _corrections(tmp_path, "  - {erase: [liver], z: [0, 15], hu: [118, 400]}\n")
    correct(labels, hu.astype(np.int16), SPACING, edits)
    erased = organ & (labels != LIVER)
    assert not erased[15:].any() and (labels[erased] == 0).all()
    wanted = vein[:14]
    assert 2 * (erased[:14] & wanted).sum() / (erased[:14].sum() + wanted.sum()) > 0.9


def test_what_is_drawn_keeps_to_outline_tissue_and_slices(tmp_path: Path) -> None:
    tissue, liver = _ball((12, 30, 30), 20), _ball((12, 30, 12), 10)
    hu = np.where(tissue | liver, 40, -100).astype(np.int16)
    labels = np.where(liver, LIVER, UNKNOWN).astype(np.uint8)
    labels[12, 45, 45] = KIDNEY  # drawing adds
    triangle = "[[5, 30], [55, 30], [30, 55]]"
    text = f"  - {{draw: [left_kidney], z: [10, 13], outline: {triangle}, hu: [0, 80]}}\n"
    correct(labels, hu, SPACING, _corrections(tmp_path, text))
    y, x = np.mgrid[:60, :60]
    within = (y > 30) & (y < x + 25) & (y < 85 - x)  # corners are (x, y)
    found = labels == KIDNEY
    assert found[12, 45, 45] and not found[:10].any() and not found[13:].any()
    found[12, 45, 45] = False
    wanted = within & tissue[11] & ~liver[11]
    assert 2 * (found[11] & wanted).sum() / (found[11].sum() + wanted.sum()) > 0.95
    assert not (found[11] & (y < 30)).any() and not (found & liver).any()


def test_doubt_of_a_box_is_of_that_box(tmp_path: Path) -> None:
    labels = np.full((6, 10, 10), LIVER, np.uint8)
    labels[:, 5:] = AORTA
    text = "  - {doubt: [liver], z: [2, 4], x: [0, 5]}\n"
    edits = _corrections(tmp_path, text)
    assert of_kind(edits, "doubt") == ()
    correct(labels, np.zeros(labels.shape, np.int16), SPACING, edits)
    assert (labels[2:4, :5, :5] == UNKNOWN).all()
    assert (labels == UNKNOWN).sum() == 2 * 5 * 5 and (labels[:, 5:] == AORTA).all()
    labels[:, 8:] = 0
    edits = _corrections(tmp_path, "  - {doubt: all, z: [0, 2]}\n")
    correct(labels, np.zeros(labels.shape, np.int16), SPACING, edits)
    assert (labels[:2, 8:] == UNKNOWN).all() and (labels[2:, 8:] == 0).all()
    assert (labels[:, 5:8] == AORTA).all()


def test_fat_leaves_small_solid_organs_and_the_others_keep_theirs() -> None:
    organ, fat = _ball((15, 30, 30), 10), _ball((15, 30, 30), 14)
    hu = np.where(organ, 20, -105) + np.random.default_rng(0).normal(0, 15, organ.shape)
    hu[fat & (np.arange(60) < 18)] = -800  # lung beside it is no fat
    for name, loses in (("gallbladder", True), ("left_adrenal_gland", True), ("pancreas", False)):
        labels = np.where(fat, LABEL_OF[name], 0).astype(np.uint8)
        labels[0, 0] = UNKNOWN
        drop_fat(labels, hu.astype(np.int16), SPACING)
        found = labels == LABEL_OF[name]
        if loses:
            beside = found & (np.arange(60) >= 22)
            true = organ & (np.arange(60) >= 22)
            assert 2 * (beside & true).sum() / (beside.sum() + true.sum()) > 0.97
            assert found[fat & (np.arange(60) < 17)].all()
        else:
            assert (found == fat).all()
        assert (labels[0, 0] == UNKNOWN).all()


def test_fat_leaves_the_esophagus_but_not_its_wall_beside_lung() -> None:
    hu = np.full((20, 40, 40), -100)
    hu[:, 14:26, 14:26] = 30
    hu[:, 18:22, 18:22] = -980
    hu[:, :, 26:] = -850
    labels = np.zeros(hu.shape, np.uint8)
    labels[2:18, 8:30, 8:26] = LABEL_OF["esophagus"]
    drop_fat(labels, hu.astype(np.int16), SPACING)
    found = labels == LABEL_OF["esophagus"]
    assert found[2:18, 14:26, 14:26].all()
    assert not found[:, :13, :23].any() and not found[:, 27:, :23].any()
    assert not found[:, :, :13].any()


def test_gas_is_not_doubted_where_hu_say_so(tmp_path: Path) -> None:
    labels = np.zeros((2, 2, 4), np.uint8)
    labels[:, 1] = AORTA
    hu = np.broadcast_to(np.array([-1000, -501, -500, 40], np.int16), labels.shape)
    text = "  - {doubt: all, z: [0, 1], hu: [-500, 3000]}\n  - {doubt: [aorta], hu: [0, 100]}\n"
    edits = _corrections(tmp_path, text)
    assert of_kind(edits, "doubt") == ()  # neither is of all that is the aorta's
    correct(labels, hu, (50.0, 50.0, 50.0), edits)  # too coarse to be smoothed
    assert labels[0, 0].tolist() == [0, 0, UNKNOWN, UNKNOWN] and not labels[1, 0].any()
    assert (labels[:, 1] == [AORTA, AORTA, AORTA, UNKNOWN]).all()


@pytest.mark.parametrize(("kind", "becomes"), [("doubt", UNKNOWN), ("erase", 0)])
def test_noise_decides_nothing_where_hu_are_asked_for(
    tmp_path: Path, kind: str, becomes: int
) -> None:
    labels = np.full((20, 20, 40), AORTA, np.uint8)
    hu = np.random.default_rng(0).normal(0, 30, labels.shape)
    hu[..., 20:] += 200
    correct(
        labels,
        hu,
        (1.0, 1.0, 1.0),
        _corrections(tmp_path, f"  - {{{kind}: [aorta], hu: [-100, 100]}}\n"),
    )
    assert (hu[..., :20] < -100).any() or (hu[..., 20:] < 100).any()
    assert (labels[..., :19] == becomes).all() and (labels[..., 21:] == AORTA).all()


def test_trust_and_doubt_outdo_the_looks(tmp_path: Path) -> None:
    first = np.zeros((20, 40, 40), np.uint8)
    first[2:18, 5:25, 5:25] = LIVER
    first[5:9, 30:34, 30:34] = KIDNEY
    second = np.where(first == KIDNEY, 0, first)
    edits = _corrections(tmp_path, "  - trust: [left_kidney]\n  - doubt: [liver]\n")
    spacing = (5.0, 5.0, 5.0)
    assert judge([first, second], spacing, 0.85).kept == (LIVER,)
    trusted, doubted = of_kind(edits, "trust"), of_kind(edits, "doubt")
    found = judge([first, second], spacing, 0.85, trusted, doubted)
    assert found.kept == (KIDNEY,)
    assert ((found.labels == KIDNEY) == (first == KIDNEY)).all()
    assert (found.labels[first == LIVER] == UNKNOWN).all()


@pytest.mark.parametrize(
    "text",
    [
        "  - {trust: [heart]}\n",
        "  - {trust: liver}\n",
        "  - {clear: [liver]}\n",
        "  - {clear: all, but: aorta}\n",
        "  - {clear: all, hu: [1, 2]}\n",
        "  - {erase: [liver], z: [10]}\n",
        "  - {erase: [liver], z: [a, b]}\n",
        "  - {grow: [liver]}\n",
        "  - {erase: [liver], clear: all}\n",
        "  - {draw: [liver], hu: [0, 1], outline: [[1, 2], [3, 4]]}\n",
        "  - {draw: [liver, spleen], hu: [0, 1], outline: [[1, 2], [3, 4], [5, 9]]}\n",
        "  - {draw: [liver], outline: [[1, 2], [3, 4], [5, 9]]}\n",
        "  - {erase: [liver], w: [1, 2]}\n",
        "  - {trust: [liver], z: [1, 5]}\n",
        "  - {draw: [liver], hu: [100, 1], outline: [[1, 2], [3, 4], [5, 9]]}\n",
        "  - {grow: [liver], hu: [.nan, 1]}\n",
        "  - liver\n",
        "  - {: [\n",
    ],
)
def test_what_is_no_correction_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"^.*corrections\.yaml: not [^\n]+$"):
        _corrections(tmp_path, text)


def test_nothing_to_grow_is_said(tmp_path: Path) -> None:
    edits = _corrections(tmp_path, "  - {grow: [liver], hu: [-30, 80]}\n")
    labels = np.zeros((5, 5, 5), np.uint8)
    with pytest.raises(ValueError, match="nothing between -30 and 80 HU"):
        correct(labels, np.full(labels.shape, -100, np.int16), SPACING, edits)


@pytest.mark.parametrize("kind", ["erase", "doubt", "grow"])
def test_a_box_outside_the_ct_is_said(tmp_path: Path, kind: str) -> None:
    hu = ", hu: [0, 9]" if kind == "grow" else ""
    edits = _corrections(tmp_path, f"  - {{{kind}: [liver], z: [60, 62]{hu}}}\n")
    labels = np.zeros((6, 5, 5), np.uint8)
    with pytest.raises(ValueError, match=rf"{kind}: its box lies outside"):
        correct(labels, labels.astype(np.int16), SPACING, edits)


def test_a_case_that_is_named_twice_is_said(tmp_path: Path) -> None:
    file = tmp_path / "corrections.yaml"
    file.write_text("a:\n  - {trust: [liver]}\na:\n  - {trust: [spleen]}\n")
    with pytest.raises(ValueError, match=r"'a' is given twice \(line 3\)"):
        load_corrections(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 2024-13-01\n", "not YAML"),
        ("a: !!bool x\n", "not YAML"),
        ("a:\n  - {grow: [liver], hu: [1" + "0" * 400 + ", 1]}\n", "not corrections of a"),
        ("a:\n  - trust liver\n", "not a list of corrections of a"),
        ("a:\n", "not a list of corrections of a"),
        ("- trust: [liver]\n", "not corrections: it names no cases"),
        ("a:\n  - {trust: []}\n", "not corrections of a .*names no organ"),
        ("a:\n  - {doubt: [liver], z: 5}\n", "not corrections of a"),
    ],
)
def test_odd_values_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "corrections.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"^[^\n]*corrections.yaml: {said}[^\n]*$"):
        load_corrections(file)


def test_corrections_of_a_case_that_there_is_not_name_their_file(tmp_path: Path) -> None:
    file = tmp_path / "corrections.yaml"
    file.write_text("P7:\n  - {trust: [liver]}\n")
    with pytest.raises(ValueError, match=r"corrections\.yaml: corrections of P7: there is no such"):
        load_corrections(file, [])


def test_keys_of_merged_mappings_are_not_given_twice(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("base: &b {k: 1}\nx: {a: &a {<<: *b, k: 2}}\nc: {<<: *a}\n")
    assert load_yaml(file) == {"base": {"k": 1}, "x": {"a": {"k": 2}}, "c": {"k": 2}}


def test_the_recipe_s_own_corrections_are_understood() -> None:
    path = Path(__file__).parents[1] / "training/configs/corrections/abdoseg.yaml"
    found = load_corrections(path)
    assert found and all(found.values())
