"""The first look: what it cuts away, and when it must not cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import LEVELS, make_tiny_model

from inference.errors import ModelError
from inference.grid import Box
from inference.model import Model
from inference.network.locate import locate, part_of, reaches_a_cut
from inference.network.tiling import padded_shape
from inference.pipeline import segment_in_stages
from inference.preprocess.preprocess import place

MARGIN = [30.0, 20.0, 40.0]
LIVER = LEVELS[1]


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that knows organs by their HU, on a grid of 8 mm."""
    folder = tmp_path_factory.mktemp("weights") / "tiny_look"
    make_tiny_model(folder, smooth=False, spacing=(8.0, 8.0, 8.0), patch=(16, 16, 16), version="2")
    return Model.load(folder, threads=2)


@pytest.fixture
def looking(look: Model, tmp_path: Path) -> Model:
    """A model with that one for its first look, on a grid of 3 x 2 x 2 mm."""
    folder = tmp_path / "tiny"
    (tmp_path / "tiny_look").symlink_to(look.folder)
    make_tiny_model(folder, look={"model": "tiny_look", "margin": MARGIN})
    return Model.load(folder, threads=2)


def body(organ: Box | None = None, size: tuple[int, int, int] = (200, 120, 160)) -> NDArray[Any]:
    """A body in air, voxels of 3 x 2 x 2 mm, that may hold an organ."""
    volume = np.full(size, -1000, np.int16)
    volume[:, 10:-10, 10:-10] = -50
    if organ:
        volume[organ] = LIVER
    return volume


def image_of(volume: NDArray[Any]) -> sitk.Image:
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((2.0, 2.0, 3.0))
    return image


ORGAN = (slice(80, 110), slice(40, 80), slice(30, 90))


@pytest.mark.parametrize("offset", [0.0, -1024.0])
def test_the_box_holds_the_organ_and_its_margin(look: Model, offset: float) -> None:
    volume = body(ORGAN) - np.int16(offset)
    found = locate(look, volume, (3.0, 2.0, 2.0), MARGIN, offset)
    assert found is not None
    for part, organ, mm, more in zip(found, ORGAN, (3.0, 2.0, 2.0), MARGIN, strict=True):
        # To a voxel of the look's grid, and half of one of what it samples.
        for here, wanted in (
            (part.start, organ.start - more / mm),
            (part.stop, organ.stop + more / mm),
        ):
            assert abs(here - wanted) * mm <= 8 + mm


def test_the_box_ends_with_the_ct(look: Model) -> None:
    organ = (slice(0, 30), slice(40, 80), slice(30, 90))
    found = locate(look, body(organ), (3.0, 2.0, 2.0), (1000.0,) * 3)
    assert found == (slice(0, 200), slice(0, 120), slice(0, 160))


def test_nothing_is_cut_where_next_to_nothing_is_found(look: Model) -> None:
    few = (slice(80, 90), slice(40, 55), slice(30, 55))  # 45 ml
    assert locate(look, body(), (3.0, 2.0, 2.0), MARGIN) is None
    assert locate(look, body(few), (3.0, 2.0, 2.0), MARGIN) is None


def test_specks_do_not_count(look: Model) -> None:
    volume = body(ORGAN)
    volume[190:192, 20:28, 20:28] = LIVER  # 1.5 ml
    found = locate(look, volume, (3.0, 2.0, 2.0), MARGIN)
    assert found is not None
    assert found[0].stop < 130


def test_labels_are_the_same_with_a_look(looking: Model, tiny: Model) -> None:
    """A long body, with organs in its middle: only they are segmented, and just as before."""
    ct = image_of(body(ORGAN, (300, 120, 160)))
    plain = segment_in_stages([ct], tiny)
    told: list[str] = []
    with_look = segment_in_stages([ct], looking, lambda stage, _: told.append(stage))
    assert (plain.labels == 1).sum() > 50_000
    assert np.mean(plain.labels == with_look.labels) > 0.999
    assert np.prod(with_look.window) < 0.5 * np.prod(plain.window)
    assert with_look.passes == plain.passes == 1
    assert "look" in with_look.seconds
    assert "look" in told
    assert "look" not in plain.seconds


def test_what_a_look_misses_is_found_after_all(
    looking: Model, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that sees only the upper part of a long organ."""
    organ = (slice(60, 240), slice(40, 80), slice(30, 90))
    ct = image_of(body(organ, (300, 120, 160)))
    seen = (slice(180, 300), slice(0, 120), slice(0, 160))
    monkeypatch.setattr("inference.pipeline.locate", lambda *_: seen)
    found = segment_in_stages([ct], looking)
    assert found.passes == 2
    assert np.array_equal(found.labels, segment_in_stages([ct], tiny).labels)


def test_what_touches_an_uncut_face_has_not_been_missed() -> None:
    winning = np.zeros((20, 20, 20), np.uint8)
    winning[:8, 5:15, 5:15] = 2  # 0.8 ml in a slice of 2 mm
    box = (slice(10, 30), slice(10, 30), slice(10, 30))
    spacing = (2.0, 2.0, 2.0)
    assert not reaches_a_cut(winning, spacing, box, box)
    assert not reaches_a_cut(winning, spacing, box, (slice(10, 40), slice(0, 40), slice(0, 40)))
    assert reaches_a_cut(winning, spacing, box, (slice(9, 30), slice(10, 30), slice(10, 30)))
    assert reaches_a_cut(winning[::-1], spacing, box, (slice(10, 31), *box[1:]))
    winning[0] = 0
    winning[0, 0, :20] = 2  # 0.16 ml: a speck
    assert not reaches_a_cut(winning, spacing, box, (slice(9, 30), *box[1:]))


def _ranges(low: int, high: int, begin: int | None = None) -> st.SearchStrategy[slice]:
    """Ranges that begin before ``begin``, and are not empty."""
    starts = st.integers(low, (begin or high - 8) - 1)
    return starts.flatmap(lambda start: st.integers(start + 1, high).map(lambda s: slice(start, s)))


@given(st.data())
def test_a_part_holds_what_was_found_and_needs_no_padding(tiny: Model, data: Any) -> None:
    """What a look found lies in it; it stays in the body, and fills the network's input."""
    mm = st.floats(0.5, 6)
    spacing = data.draw(st.tuples(mm, mm, mm))
    whole = data.draw(st.tuples(*[_ranges(0, 400)] * 3))
    found = data.draw(st.tuples(*(_ranges(w.start, w.stop + 20, w.stop) for w in whole)))
    part = part_of(whole, found, spacing, tiny.plan)
    a, b, c = (slice(f.start, min(f.stop, w.stop)) for f, w in zip(found, whole, strict=True))
    clipped = a, b, c
    grid, tight = (place(box, spacing, tiny.plan).shape for box in (part, clipped))
    window = padded_shape(tight, tiny.plan)
    assert padded_shape(grid, tiny.plan) == window
    axes = zip(part, clipped, whole, grid, window, spacing, tiny.plan.spacing, strict=True)
    for here, seen, there, n, most, mm, wanted in axes:
        assert there.start <= here.start <= seen.start
        assert seen.stop <= here.stop <= there.stop
        # Short of the window by less than a voxel of both grids, or the body ends.
        assert here == there or (most - n) * wanted <= mm + wanted


def test_a_look_beside_the_body_leaves_it_whole(tiny: Model) -> None:
    whole = (slice(50, 100), slice(0, 80), slice(0, 80))
    beside = (slice(0, 40), slice(0, 80), slice(0, 80))
    assert part_of(whole, beside, (3.0, 2.0, 2.0), tiny.plan) == whole


def test_bad_looks_are_refused(tiny: Model) -> None:
    good = {"model": "tiny_look", "margin": MARGIN}
    for bad in ({"margin": 1.0}, {**good, "more": 1}, {**good, "margin": 30}, {**good, "model": 1}):
        with pytest.raises(ModelError, match=r"look is .*, not .*a name"):
            replace(tiny.plan, look=bad)
    with pytest.raises(ModelError, match="only for one CT channel and no fixed size"):
        replace(tiny.plan, look=good, size=(None, 64, 64))


def test_a_look_that_is_not_there_or_cannot_look_is_told(tmp_path: Path) -> None:
    look = {"model": "other", "margin": MARGIN}
    make_tiny_model(tmp_path / "one", look=look)
    with pytest.raises(ModelError, match=r"one: its first look: no model 'other'"):
        Model.load(tmp_path / "one")
    make_tiny_model(tmp_path / "other", look={"model": "one", "margin": MARGIN})
    for changes in ({"look": {"model": "one", "margin": MARGIN}}, {"orientation": "RAS"}):
        make_tiny_model(tmp_path / "other", **changes)
        with pytest.raises(ModelError, match="other: has a look of its own, channels or other"):
            Model.load(tmp_path / "one")
