"""Processes that train together."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from training.loop.team import join


@pytest.mark.parametrize(
    ("end", "left"), [(None, True), (KeyboardInterrupt, True), (MemoryError, False)]
)
def test_a_process_with_a_mistake_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, end: type[BaseException] | None, left: bool
) -> None:
    """To leave NCCL's group takes all; those that wait for its gradients cannot."""
    calls: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, n=name, **__: calls.append(n))
    with nullcontext() if end is None else pytest.raises(end), join() as team:
        assert team.size == 2
        if end is not None:
            raise end
    assert calls == ["init_process_group", *(["destroy_process_group"] if left else [])]
