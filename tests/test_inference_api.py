"""The Python call: `inference.segment`."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dicom_files
import numpy as np
import pytest
import SimpleITK as sitk
from tiny_model import make_ct, make_tiny_model

import inference
from inference.errors import CaseError, CaseWarning, ModelError, UsageError
from inference.model import Model
from inference.network.network import Network
from inference.organs import ORGANS
from inference.read.checks import check_orientation

SHARED = Path(__file__).parents[2] / "shared"


def test_a_model_may_be_shared_by_threads(tiny_folder: Path) -> None:
    """Also where another thread begins while one is between two stages."""
    model = Model.load(tiny_folder)
    cts = [make_ct(), sitk.Flip(make_ct(), (True, False, False))]
    alone = [sitk.GetArrayFromImage(inference.segment(ct, model)) for ct in cts]

    def slowly(stage: str, share: float) -> None:
        time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        segment = partial(inference.segment, model=model, progress=slowly)
        together = [sitk.GetArrayFromImage(made) for made in pool.map(segment, cts * 4)]
    for number, labels in enumerate(together):
        np.testing.assert_array_equal(labels, alone[number % 2])


def test_a_path_is_read_as_the_command_reads_it(tiny: Model, tmp_path: Path) -> None:
    ct = make_ct()
    wanted = sitk.GetArrayFromImage(inference.segment(ct, tiny))
    sitk.WriteImage(ct, tmp_path / "ct_0000.nii.gz")
    dicom_files.put(tmp_path / "series")
    for path in (str(tmp_path / "ct_0000.nii.gz"), tmp_path / "series"):
        labels = inference.segment(path, tiny)
        assert np.array_equal(sitk.GetArrayFromImage(labels), wanted)
    assert np.allclose(labels.GetSpacing(), ct.GetSpacing())

    header = (tmp_path / "bare.mha", b"NDims = 3\nDimSize = %d %d %d\nElementType = MET_SHORT\n")
    start = header[1] % ct.GetSize() + b"ElementSpacing = 2 2 2\nElementDataFile = LOCAL\n"
    header[0].write_bytes(start + sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkInt16)).tobytes())
    with pytest.warns(CaseWarning, match="where right and left are"):
        inference.segment(header[0], tiny)


def test_a_path_that_cannot_be_segmented(tiny: Model, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        sitk.WriteImage(make_ct(), tmp_path / name)
    with pytest.raises(UsageError, match="holds 2 CTs"):
        inference.segment(tmp_path, tiny)
    with pytest.raises(UsageError, match="no such file"):
        inference.segment("nothing.nii.gz", tiny)
    broken = tmp_path / "b.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-3000])
    with pytest.raises(CaseError, match=r"b\.nii\.gz: is damaged or truncated"):
        inference.segment(broken, tiny)


@pytest.mark.parametrize("image", [np.zeros((3, 3, 3)), [], ["ct.nii.gz"], None])
def test_what_is_no_image_is_said(image: Any, tiny_folder: Path) -> None:
    with pytest.raises(TypeError, match="neither a path nor a SimpleITK image"):
        inference.segment(image, Model.load(tiny_folder))


@pytest.mark.parametrize("given", [{"threads": 1}, {"precision": "f32"}])
def test_what_a_loaded_model_is_cannot_be_chosen_anew(tiny: Model, given: Any) -> None:
    with pytest.raises(ValueError, match=r"belong to Model\.load"):
        inference.segment(make_ct(), tiny, **given)


def test_threads_are_those_that_were_asked_for(tiny_folder: Path) -> None:
    model = Model.load(tiny_folder, threads=1)
    network = model.network.compile(model.plan.patch).get_compiled_model()
    assert network.get_property("INFERENCE_NUM_THREADS") == 1
    assert model.threads == 1


def test_precision_chooses_the_network(tmp_path: Path) -> None:
    """Two networks that answer differently: only the one asked for can have given its labels."""
    plan = make_tiny_model(tmp_path / "model")
    make_tiny_model(tmp_path / "other", smooth=False)
    for ending in ("xml", "bin"):
        (tmp_path / "other" / f"network.{ending}").rename(tmp_path / "model" / f"second.{ending}")
    networks = {"f32": "network.xml", "int8": "second.xml"}
    memory = {"f32": 100.0, "int8": 50.0}
    replace(plan, networks=networks, bytes_per_voxel=memory).save(tmp_path / "model")
    for precision, expected in memory.items():
        assert Model.load(tmp_path / "model", precision=precision).plan.pass_bytes(1) == expected
    labels = {
        precision: sitk.GetArrayFromImage(
            inference.segment(make_ct(), tmp_path / "model", precision=precision)
        )
        for precision in (None, "f32", "int8")
    }
    assert np.array_equal(labels[None], labels["f32"])
    assert not np.array_equal(labels["int8"], labels["f32"])
    with pytest.raises(ModelError, match="bf16"):
        inference.segment(make_ct(), tmp_path / "model", precision="bf16")


def test_memory_of_the_passes_is_let_go_of_a_model_that_is_not_kept(
    tiny: Model, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[Network] = []
    monkeypatch.setattr(Network, "release_features", lambda network: released.append(network))
    kept = inference.segment(make_ct(), tiny)
    assert released == []
    labels = inference.segment(make_ct(), tiny_folder)
    assert len(released) == 1
    first, second = map(sitk.GetArrayFromImage, (kept, labels))
    assert np.array_equal(first, second)


def test_what_a_user_should_know_is_a_warning(tiny: Model) -> None:
    leg = sitk.Minimum(make_ct(), 0)  # no organ's intensity
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        warnings.simplefilter("always", inference.CaseWarning, append=True)
        for _ in range(2):
            inference.segment(leg, tiny)
    assert ["no organ was found" in str(one.message) for one in told] == [True, True]
    assert {Path(one.filename).name for one in told} == {Path(__file__).name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.segment(make_ct(), tiny)


@pytest.mark.parametrize(
    ("liver", "spleen", "told"),
    [
        (1500.0, 300.0, False),
        (132.0, 704.0, True),
        (0.0, 720.0, True),
        (400.0, 400.0, False),
        (20.0, 90.0, False),  # a slab
        (None, 400.0, False),  # a model of other organs
    ],
)
def test_more_spleen_than_liver_is_told(liver: float | None, spleen: float, told: bool) -> None:
    found = {"spleen": spleen, **({} if liver is None else {"liver": liver})}
    assert bool(check_orientation(found)) is told


@pytest.mark.parametrize(
    ("liver", "vena_cava", "told"),
    [
        (1500.0, 50.0, False),
        (1300.0, 0.0, True),
        (1424.0, 4.0, True),
        (500.0, 5.8, False),  # a slab
        (330.0, 0.0, False),  # the liver's dome
        (1500.0, None, False),  # a model of other organs
    ],
)
def test_a_liver_without_a_vena_cava_is_told(
    liver: float, vena_cava: float | None, told: bool
) -> None:
    found = {"liver": liver, **({} if vena_cava is None else {ORGANS[6]: vena_cava})}
    assert bool(check_orientation(found)) is told


@pytest.mark.real_ct
@pytest.mark.skipif(not SHARED.is_dir(), reason="real_ct: ../shared is absent")
@pytest.mark.parametrize(
    ("model", "flipped", "told"),
    [
        ("abdoseg", "", None),
        ("abdoseg", "x", "larger than the liver"),
        ("abdoseg", "xy", "larger than the liver"),
        ("abdoseg", "y", "vena cava"),
        ("dsunet_eca", "", None),
        ("dsunet_eca", "x", "larger than the liver"),
        ("dsunet_eca", "xy", "larger than the liver"),  # y: it finds a bit of every organ
    ],
)
def test_a_ct_that_is_mirrored_against_its_header_is_told(
    model: str, flipped: str, told: str | None
) -> None:
    ct = sitk.ReadImage(SHARED / "cases/totalseg_example_ct_3mm/ct.nii.gz")
    turned = sitk.Flip(ct, [axis in flipped for axis in "xyz"])
    turned.CopyInformation(ct)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference.segment(turned, model)
    assert [told is not None and told in str(one.message) for one in caught] == [True] * bool(told)
