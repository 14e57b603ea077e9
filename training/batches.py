"""Batches of patches, made while the network is busy with the ones before."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader, default_collate

from training.samples import Patch, Samples


def batches(samples: Samples, numbers: Sequence[Sequence[int]]) -> Iterator[Patch]:
    """Batches in order.

    On a CPU a process beside the training makes them; on a GPU a thread does, on a CUDA stream
    of its own, from volumes in the GPU's memory.

    Args:
        samples: where patches come from.
        numbers: the samples' indices, batch by batch.
    """
    if samples.device.type == "cuda":
        return _from_thread(samples, numbers)
    # Where there is one CPU, or a test's few patches, a process would only cost.
    workers = 1 if len(os.sched_getaffinity(0)) > 1 and len(numbers) > 1 else 0
    loader = DataLoader(
        samples,
        batch_sampler=numbers,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_loop,
    )
    return iter(loader)


def _from_thread(samples: Samples, numbers: Sequence[Sequence[int]]) -> Iterator[Patch]:
    """Batches from a thread; on a GPU their kernels run beside the network's."""
    made: queue.Queue[tuple[Patch, torch.cuda.Event | None] | BaseException] = queue.Queue(2)
    stopped = threading.Event()
    on_gpu = samples.device.type == "cuda"
    stream = torch.cuda.Stream(samples.device) if on_gpu else None

    def work() -> None:
        try:
            with torch.cuda.stream(stream) if on_gpu else nullcontext():
                for batch in numbers:
                    patch = Patch(*default_collate([samples[i] for i in batch]))
                    event = stream.record_event() if stream else None
                    while not stopped.is_set():
                        try:
                            made.put((patch, event), timeout=0.2)
                            break
                        except queue.Full:
                            continue
                    if stopped.is_set():
                        return
        except BaseException as error:  # whatever it was, the training must hear of it
            made.put(error)

    thread = threading.Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        for _ in numbers:
            got = made.get()
            if isinstance(got, BaseException):
                raise got
            patch, event = got
            if event is not None:
                current = torch.cuda.current_stream(samples.device)
                current.wait_event(event)
                for tensor in patch:
                    tensor.record_stream(current)
            yield patch
    finally:
        stopped.set()


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C reaches the workers too; they must outlive the step that is under way."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
