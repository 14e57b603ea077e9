"""Batches of patches, made while the network is busy with the ones before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import default_collate

from training.patches.samples import Patch, Samples

_AHEAD = 4  # batches made before they are asked for; a GPU's memory is dearer
_AHEAD_ON_GPU = 2


@contextmanager
def batches(samples: Samples, numbers: Sequence[Sequence[int]]) -> Iterator[Iterator[Patch]]:
    """Batches in order, from a thread beside the training, which ends with the context.

    PyTorch computes outside of Python's lock, so a thread is as good as a process, and ends
    without signals and time-outs. On a GPU it works on a CUDA stream of its own, with the volumes
    in the GPU's memory as far as they fit; on a CPU it computes in one thread, the training in all.

    Args:
        samples: where patches come from.
        numbers: the samples' indices, batch by batch.

    Yields:
        An iterator of batches. What goes wrong in the thread is raised there.
    """
    on_gpu = samples.device.type == "cuda"
    stream = torch.cuda.Stream(samples.device) if on_gpu else None
    made: queue.Queue[tuple[Patch, torch.cuda.Event | None] | BaseException] = queue.Queue(
        _AHEAD_ON_GPU if on_gpu else _AHEAD
    )
    stopped = threading.Event()

    def work() -> None:
        try:
            torch.set_num_threads(1)  # of this thread alone
            with torch.cuda.stream(stream) if on_gpu else nullcontext():
                for batch in numbers:
                    patches = []
                    for number in batch:
                        if stopped.is_set():
                            return
                        patches.append(samples[number])
                    patch = Patch(*default_collate(patches))
                    _put(made, (patch, stream.record_event() if stream else None), stopped)
        except BaseException as error:  # whatever it was, the training must hear of it
            _put(made, error, stopped)

    def taken() -> Iterator[Patch]:
        for _ in numbers:
            got = made.get()
            if isinstance(got, BaseException):
                raise got
            patch, event = got
            if event is not None:
                # The network's stream waits for the patch, and its memory for the network.
                current = torch.cuda.current_stream(samples.device)
                current.wait_event(event)
                for tensor in patch:
                    tensor.record_stream(current)
            yield patch

    thread = threading.Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()


def _put(made: queue.Queue[Any], item: object, stopped: threading.Event) -> None:
    """Wait for room, but not for a training that has stopped."""
    while not stopped.is_set():
        try:
            made.put(item, timeout=0.2)
        except queue.Full:
            continue
        return
