"""The first look: what it cuts away, and when it must not cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import ModelError
from inference.model import Model
from inference.network.locate import locate
from inference.pipeline import segment_in_stages
from inference.preprocess.preprocess import Prepared

LOOK = {"spacing": 6.0, "margin": 30.0}


class Sees:
    """A network that finds an organ where the volume is positive."""

    def run(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shape = volume.shape
        return np.stack([np.full(volume.shape, 0.5, np.float32), volume, *[volume - 9] * 3])


def prepared(
    organ: tuple[slice, slice, slice] | None, shape: tuple[int, int, int] = (200, 60, 80)
) -> Prepared:
    """A volume on a grid of 3 x 2 x 2 mm, of a CT twice as fine in the plane, with an offset."""
    values = np.full(shape, -1.0, np.float32)
    if organ:
        values[organ] = 4.0
    box = (slice(5, 5 + shape[0]), slice(10, 10 + 2 * shape[1]), slice(20, 20 + 2 * shape[2]))
    return Prepared(values, box, (3.0, 2.0, 2.0))


def looked(tiny: Model, what: Prepared) -> Any:
    network = Sees()
    found = locate(network, what, replace(tiny.plan, look=LOOK), 10**10)
    assert network.shape[0] == 100  # half as many slices, padded to the network's multiple
    return found


def test_box_holds_the_organ_and_its_margin(tiny: Model) -> None:
    organ = (slice(100, 130), slice(20, 40), slice(10, 60))
    z, y, x = looked(tiny, prepared(organ))
    # 300 to 390 mm and the margin of 30 mm at both ends, to a voxel of the look.
    assert 5 + (300 - 30 - 6) / 3 <= z.start <= 5 + (300 - 30) / 3
    assert 5 + (390 + 30) / 3 <= z.stop <= 5 + (390 + 30 + 6) / 3 + 1
    # The organ begins 20 mm from the body's right face: nearer than the margin.
    assert x.start == 20
    assert x.stop <= 20 + 160
    assert y.start >= 10


@pytest.mark.parametrize(
    "organ",
    [
        None,
        (slice(100, 106), slice(20, 26), slice(10, 16)),  # 2.6 ml: noise
        (slice(5, 190), slice(2, 58), slice(2, 78)),  # all of it: nothing would be saved
    ],
)
def test_whole_box_where_a_look_is_no_use(tiny: Model, organ: Any) -> None:
    assert looked(tiny, prepared(organ)) is None


def test_labels_are_the_same_with_a_look(tiny: Model) -> None:
    """A long body, with organs in its middle: only they are segmented, and just as before."""
    grown = np.full((300, 48, 48), -1000, np.int16)
    grown[:, 6:-6, 5:-6] = 0
    grown[120:180][:, 10:38, 10:38] = 200
    tall = sitk.GetImageFromArray(grown)
    tall.SetSpacing((2.0, 2.0, 3.0))
    plain = segment_in_stages([tall], tiny)
    model = replace(tiny, plan=replace(tiny.plan, look=LOOK))
    seconds_of: list[str] = []
    with_look = segment_in_stages([tall], model, lambda stage, _: seconds_of.append(stage))
    assert (plain.labels == 2).sum() > 10000
    assert np.mean(plain.labels == with_look.labels) > 0.999
    assert np.prod(with_look.window) < 0.5 * np.prod(plain.window)
    assert (plain.passes, with_look.passes) == (1, 2)
    assert "look" in with_look.seconds
    assert "look" in seconds_of


def test_bad_looks_are_refused(tiny: Model) -> None:
    for look in ({"spacing": 6.0}, {**LOOK, "more": 1}):
        with pytest.raises(ModelError, match="look needs a spacing and a margin"):
            replace(tiny.plan, look=look)
    with pytest.raises(ModelError, match="not names of one line with a number from"):
        replace(tiny.plan, look={"spacing": 0, "margin": 1})
    with pytest.raises(ModelError, match="only for tiling 'whole'"):
        replace(tiny.plan, look=LOOK, tiling="window")
    with pytest.raises(ModelError, match="only for tiling 'whole'"):
        replace(tiny.plan, look=LOOK, spacing=(None, 2.0, 2.0))
