"""bf16 is used where it is measured to be fast, whatever the processor's flags say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.network import precision

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    precision.bf16_pays.cache_clear()
    yield
    precision.bf16_pays.cache_clear()


@pytest.mark.parametrize(("bf16", "chosen"), [(0.002, "bf16"), (0.02, "f32"), (0.0098, "f32")])
def test_the_faster_one_is_chosen(
    monkeypatch: pytest.MonkeyPatch, bf16: float, chosen: str
) -> None:
    """The least of its runs counts: here each is slow but for one."""
    calls: dict[str, int] = {"f32": 0, "bf16": 0}

    def run(request: Any) -> float:
        calls[request] += 1
        fast = {"f32": 0.01, "bf16": bf16}[request]
        return fast if calls[request] == 3 else 1.0

    monkeypatch.setattr(precision, "_convolutions", lambda core, kind: kind)
    monkeypatch.setattr(precision, "_run", run)
    monkeypatch.setattr("openvino.Core", lambda: Capable("BF16"))
    assert precision.best_float() == chosen
    assert precision.best_float() == chosen
    assert sum(calls.values()) == 10  # measured once


def test_what_cannot_be_compiled_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(core: Any, kind: str) -> Any:
        raise RuntimeError("object is not initialized")

    monkeypatch.setattr(precision, "_convolutions", fail)
    monkeypatch.setattr("openvino.Core", lambda: Capable("BF16"))
    assert precision.best_float() == "f32"
    precision.bf16_pays.cache_clear()
    monkeypatch.setattr("openvino.Core", lambda: Capable("FP32"))
    monkeypatch.setattr(precision, "_convolutions", None)  # not even tried
    assert precision.best_float() == "f32"


class Capable:
    def __init__(self, *able: str) -> None:
        self._able = able

    def get_property(self, device: str, name: str) -> list[str]:
        return list(self._able)


def test_without_bf16_instructions_f32_is_used() -> None:
    """OpenVINO lists bf16 all the same there, and emulates it or fails."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from inference.network.precision import best_float; print(best_float())",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "f32\n"), result.stderr
