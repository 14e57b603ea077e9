"""Variants of a labelled CT: what each changes and what it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.cli import main
from evaluation.variants import VARIANTS, make_variants
from inference.errors import UsageError
from inference.organs import LABEL_OF

SPACING = (1.5, 1.5, 2.0)  # x, y, z
LIVER, SPLEEN, AORTA = LABEL_OF["liver"], LABEL_OF["spleen"], LABEL_OF["aorta"]


def _case(folder: Path, aorta: int = 45, direction: tuple[int, int] = (1, 1)) -> None:
    """A body with a liver, a spleen and an aorta, of even HU, in a made CT."""
    z, y, x = np.mgrid[:60, :80, :100]
    hu = np.where(((x - 50) / 48) ** 2 + ((y - 40) / 36) ** 2 <= 1, -100, -1000)
    labels = np.zeros(hu.shape, np.uint8)
    for value, centre, radius, its_hu in (
        (LIVER, (30, 35, 30), 16, 60),
        (SPLEEN, (34, 45, 75), 9, 50),
        (AORTA, (30, 55, 52), 6, aorta),
    ):
        ball = sum((a - b) ** 2 for a, b in zip((z, y, x), centre, strict=True)) <= radius**2
        hu[ball], labels[ball] = its_hu, value
    for array, part, name in ((hu, "images", "a_0000"), (labels, "labels", "a")):
        image = sitk.GetImageFromArray(array.astype(np.int16 if part == "images" else np.uint8))
        image.SetSpacing(SPACING)
        image.SetDirection((direction[0], 0, 0, 0, direction[1], 0, 0, 0, 1))
        (folder / part).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(folder / part / f"{name}.nii.gz"))


def _made(folder: Path, **kind: object) -> dict[str, tuple[sitk.Image, sitk.Image]]:
    _case(folder / "in", **kind)  # type: ignore[arg-type]
    images, labels = folder / "in" / "images", folder / "in" / "labels"
    paths, refused = make_variants(images, labels, folder / "out", True)
    assert not refused
    result = {}
    for path in paths:
        name = path.name.removesuffix("_0000.nii.gz")
        of_it = folder / "out" / "labels" / f"{name}.nii.gz"
        both = sitk.ReadImage(str(path)), sitk.ReadImage(str(of_it))
        result[name.removeprefix("a__")] = both
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[sitk.Image, sitk.Image]]:
    return _made(tmp_path_factory.mktemp("variants"))


def _arrays(pair: tuple[sitk.Image, sitk.Image]) -> tuple[np.ndarray, np.ndarray]:
    return sitk.GetArrayFromImage(pair[0]), sitk.GetArrayFromImage(pair[1])


def _millilitres(labels: sitk.Image, value: int) -> float:
    return (
        float((sitk.GetArrayFromImage(labels) == value).sum() * np.prod(labels.GetSpacing())) / 1e3
    )


def test_each_has_labels_on_its_grid_and_the_same_organs_within(
    made: dict[str, tuple[sitk.Image, sitk.Image]],
) -> None:
    assert set(made) == set(VARIANTS)
    for name, (ct, labels) in made.items():
        assert ct.GetSize() == labels.GetSize() and ct.GetSpacing() == labels.GetSpacing()
        assert ct.GetOrigin() == labels.GetOrigin() and ct.GetPixelID() == sitk.sitkInt16
        hu, organs = _arrays((ct, labels))
        within = hu[organs == LIVER]
        if name in ("masses", "cysts"):
            continue
        contrast = {"portal": 50, "arterial": 12, "brighter_15hu": 15, "darker_15hu": -15}
        assert abs(np.median(within) - (60 + contrast.get(name, 0))) < 6, name
        # At most a rim is not the liver's: labels and HU moved alike.
        assert (within < -20).mean() < (0.25 if "slices" in name else 0.12), name


def test_what_only_hu_tell_leaves_labels_and_grid(
    made: dict[str, tuple[sitk.Image, sitk.Image]],
) -> None:
    hu, labels = _arrays(made["as_it_is"])
    for name, deviation in (("noise_30hu", 30), ("noise_60hu", 60)):
        noisy, same = _arrays(made[name])
        body = hu > -900
        assert (same == labels).all()
        assert abs((noisy - hu)[body].std() - deviation) < 1 and abs((noisy - hu)[body].mean()) < 1
    brighter, _ = _arrays(made["brighter_15hu"])
    assert (brighter - hu == 15).all()
    for name, aorta, spleen in (("portal", 110, 70), ("arterial", 290, 80)):
        contrast, same = _arrays(made[name])
        assert (same == labels).all()
        change = contrast.astype(int) - hu
        assert abs(np.median(change[labels == AORTA]) - aorta) < 0.03 * aorta
        assert abs(np.median(change[labels == SPLEEN]) - spleen) < 0.03 * spleen
        assert np.abs(change[50:]).max() == 0  # where no organ is


@pytest.mark.parametrize(("name", "liver", "spleen"), [("masses", 30, 20), ("cysts", 8, 8)])
def test_lesions_lie_within_organs_and_are_theirs(
    made: dict[str, tuple[sitk.Image, sitk.Image]], name: str, liver: int, spleen: int
) -> None:
    hu, labels = _arrays(made["as_it_is"])
    changed, same = _arrays(made[name])
    assert (same == labels).all()
    lesion = changed != hu
    assert set(np.unique(labels[lesion])) == {LIVER, SPLEEN}  # the aorta has none
    for organ, expected in ((LIVER, liver), (SPLEEN, spleen)):
        values = changed[lesion & (labels == organ)]
        assert abs(values.mean() - expected) < 2 and abs(values.std() - 12) < 2
        voxel = float(np.prod(made[name][0].GetSpacing()))
        assert values.size * voxel > 0.25 * 4 / 3 * np.pi * 12**3  # a good part of the smallest


def test_slices_get_thick_patients_small_and_views_narrow(
    made: dict[str, tuple[sitk.Image, sitk.Image]],
) -> None:
    whole = _millilitres(made["as_it_is"][1], LIVER)
    for name, thickness in (("slices_5mm", 5), ("slices_8mm", 8)):
        ct, labels = made[name]
        assert ct.GetSpacing() == pytest.approx((1.5, 1.5, thickness))
        assert ct.GetSize()[2] == int(60 * 2 / thickness)
        assert _millilitres(labels, LIVER) == pytest.approx(whole, rel=0.08)
    for name, factor in (("small_patient", 0.82), ("large_patient", 1.2)):
        assert _millilitres(made[name][1], LIVER) == pytest.approx(whole * factor**3, rel=1e-3)
    for name in ("turned", "tilted"):
        assert _millilitres(made[name][1], LIVER) == pytest.approx(whole, rel=0.05)
    lower, upper = made["lower_slab"], made["upper_slab"]
    assert lower[0].GetOrigin()[2] < upper[0].GetOrigin()[2]
    heights = np.flatnonzero(_arrays(made["as_it_is"])[1].any(axis=(1, 2)))
    assert lower[0].GetSize()[2] == int(0.45 * len(heights))
    assert made["thin_slab"][0].GetSize()[2] == pytest.approx(0.2 * len(heights), abs=1)
    hu, organs = _arrays(made["round_view"])
    assert (hu[:, 40, [4, 95]] == -1024).all() and (organs[hu == -1024] == 0).all()


def test_the_same_again_is_the_same(
    made: dict[str, tuple[sitk.Image, sitk.Image]], tmp_path: Path
) -> None:
    again = _made(tmp_path)
    for name, pair in made.items():
        for before, after in zip(_arrays(pair), _arrays(again[name]), strict=True):
            assert np.array_equal(before, after)


def test_enhanced_cts_get_no_contrast_and_turned_ones_lie_as_others(tmp_path: Path) -> None:
    found = _made(tmp_path, aorta=150, direction=(-1, -1))
    assert set(found) == set(VARIANTS) - {"portal", "arterial"}
    hu, labels = _arrays(found["as_it_is"])
    right = np.nonzero(labels == LIVER)[2].mean()
    assert right > np.nonzero(labels == SPLEEN)[2].mean()  # turned with the CT, not mixed up
    assert abs(np.median(hu[labels == LIVER]) - 60) < 1


def test_what_cannot_be_used_is_named_and_the_others_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _case(tmp_path)
    images, labels, out = tmp_path / "images", tmp_path / "labels", tmp_path / "out"
    with pytest.raises(UsageError, match="no CT has labels of its name"):
        make_variants(images, images / "..", out, True)
    good = sitk.ReadImage(str(labels / "a.nii.gz"))
    bad = {
        "short": "not on the grid of short.nii.gz",
        "other": "values other than 0 to 13",
        "empty": "no organ is labelled",
        "broken": "",
    }
    for name in bad:
        (images / f"{name}.nii.gz").write_bytes((images / "a_0000.nii.gz").read_bytes())
    for name, image in (("short", good[:, :, :50]), ("other", good * 20), ("empty", good * 0)):
        sitk.WriteImage(image, str(labels / f"{name}.nii.gz"))
    (labels / "broken.nii.gz").write_bytes(b"nothing")
    words = ["make-variants", "--images", str(images), "--labels", str(labels), "--out", str(out)]
    assert main([*words, "--quiet"]) == 1
    printed = capsys.readouterr()
    said = sorted(printed.err.splitlines())
    assert len(said) == len(bad)
    for line, (name, reason) in zip(said, sorted(bad.items()), strict=True):
        assert line.startswith(f"error: {name}.nii.gz: {reason}")
    assert len(printed.out.splitlines()) == len(VARIANTS) == len(list((out / "images").iterdir()))


def _rewritten(path: Path, change: object) -> None:
    image = sitk.ReadImage(str(path))
    array = change(sitk.GetArrayFromImage(image))  # type: ignore[operator]
    other = sitk.GetImageFromArray(array)
    other.SetSpacing(image.GetSpacing())
    sitk.WriteImage(other, str(path))


def test_a_scan_of_three_slices_has_no_contrast_and_stops_nothing(tmp_path: Path) -> None:
    _case(tmp_path)
    for path in (tmp_path / "images" / "a_0000.nii.gz", tmp_path / "labels" / "a.nii.gz"):
        _rewritten(path, lambda array: array[29:32])
    paths, refused = make_variants(tmp_path / "images", tmp_path / "labels", tmp_path / "o", True)
    names = {path.name for path in paths}
    assert not refused and "a__as_it_is_0000.nii.gz" in names
    assert not names & {"a__portal_0000.nii.gz", "a__arterial_0000.nii.gz"}


def test_hu_are_what_the_program_takes_them_for(tmp_path: Path) -> None:
    _case(tmp_path)
    folders = tmp_path / "images", tmp_path / "labels"
    before, _ = make_variants(*folders, tmp_path / "before", True)
    path = folders[0] / "a_0000.nii.gz"
    _rewritten(path, lambda array: array + 1024)
    after, refused = make_variants(*folders, tmp_path / "after", True)
    assert not refused and [p.name for p in after] == [p.name for p in before]
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(p[0]))) for p in (before, after))
    assert (first == second).all()
    _rewritten(path, lambda array: np.where(array > 1000, np.nan, array).astype(np.float32))
    written, (line,) = make_variants(*folders, tmp_path / "none", True)
    assert not written and line == "a_0000.nii.gz: has voxels that are NaN or infinite"


def test_variants_are_not_made_among_their_sources(tmp_path: Path) -> None:
    _case(tmp_path)
    with pytest.raises(UsageError, match="would lie among"):
        make_variants(tmp_path / "images", tmp_path / "labels", tmp_path, True)
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_a_case_that_has_no_variant_of_a_kind_has_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of lung and air alone, one too thin for thick slices; a name with room for none."""
    _case(tmp_path)
    images, labels, out = tmp_path / "images", tmp_path / "labels", tmp_path / "out"
    ct, marked = sitk.ReadImage(images / "a_0000.nii.gz"), sitk.ReadImage(labels / "a.nii.gz")
    middle = int(np.nonzero(sitk.GetArrayViewFromImage(marked))[0].mean())
    thin = slice(middle, middle + 2)
    for name, image, its in (
        ("airy", sitk.Cast(sitk.Cast(ct, sitk.sitkFloat32) * 0.2 - 800, sitk.sitkInt16), marked),
        ("thin", ct[:, :, thin], marked[:, :, thin]),
        ("x" * 236, ct, marked),
    ):
        for each, folder in ((image, images), (its, labels)):
            if name == "thin":
                each.SetSpacing((*each.GetSpacing()[:2], 1.0))
            sitk.WriteImage(each, folder / f"{name}.nii.gz")
    written, refused = make_variants(images, labels, out, True)
    found = {path.name.removesuffix("_0000.nii.gz") for path in written}
    assert {f"a__{variant}" for variant in VARIANTS} <= found
    assert "airy__noise_30hu" in found and "airy__round_view" not in found
    assert "thin__noise_30hu" in found and "thin__slices_5mm" not in found
    assert len(refused) == 1 and refused[0].endswith("its name is too long for its variants'")
    for path in written:
        labelled = sitk.ReadImage(out / "labels" / path.name.replace("_0000", ""))
        assert sitk.GetArrayViewFromImage(labelled).any()
        assert np.ptp(sitk.GetArrayViewFromImage(sitk.ReadImage(path))) > 0
