"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from inference.organs import ORGANS
from training.config import Config
from training.losses import partial_dice_cross_entropy
from training.network import UNet
from training.samples import Samples


def train(config: Config, prepared: Path, run: Path, compiled: bool = False) -> Path:
    """Train a network, or go on with an interrupted training.

    Args:
        config: what to train.
        prepared: folder that `training.prepare.prepare` wrote.
        run: folder of this training: ``checkpoint.pt`` (rewritten atomically), ``log.csv`` and
            ``scores.csv`` (DSC per organ on the held-out cases).
        compiled: use ``torch.compile`` for the loss (worth it for more than some hundred steps).

    Returns:
        The checkpoint's path.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the checkpoint holds all that was done.
    """
    run.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    network = UNet(config.features, 1 + len(ORGANS)).to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = UNet(config.features, 1 + len(ORGANS)).to(device)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )

    start = 0
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["iteration"]
        print(f"going on at iteration {start}", flush=True)

    samples = Samples(prepared, config)
    print(", ".join(f"{len(v)} {k}" for k, v in samples.sources.items()), flush=True)
    loader = DataLoader(
        Subset(samples, range(start * config.batch, len(samples))),
        batch_size=config.batch,
        num_workers=1,
        prefetch_factor=4,
        worker_init_fn=_leave_signals_to_the_loop,
    )

    # The network itself is not compiled: on a CPU with AMX, torch 2.13 then returns gradients
    # that differ from the uncompiled ones by their own size.
    loss_of = torch.compile(partial_dice_cross_entropy) if compiled else partial_dice_cross_entropy
    stop = _StopRequest()
    waited, losses, began = 0.0, [], time.monotonic()
    batches = iter(loader)
    for iteration in range(start, config.iterations):
        asked = time.monotonic()
        image, labels, annotated = (tensor.to(device) for tensor in next(batches))
        image = image.contiguous(memory_format=torch.channels_last_3d)
        waited += time.monotonic() - asked

        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(config, iteration)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(image)
        loss = loss_of(logits, labels, annotated)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        _follow(average, network, min(config.ema, (1 + iteration) / (10 + iteration)))
        losses.append(loss.item())

        done = iteration + 1
        if done % config.checkpoint_every == 0 or done == config.iterations or stop.requested:
            _save(checkpoint, network, average, optimiser, done)
            seconds = time.monotonic() - began
            each = seconds / len(losses)
            line = f"{done},{np.mean(losses):.4f},{each:.3f},{waited / seconds:.3f}"
            _append(run / "log.csv", "iteration,loss,seconds_per_iteration,data_wait_share", line)
            print(line, flush=True)
            waited, losses, began = 0.0, [], time.monotonic()
        if stop.requested:
            raise KeyboardInterrupt
        if done % config.evaluate_every == 0 or done == config.iterations:
            for name, scores in evaluate(average, prepared, config).items():
                cells = ",".join("" if s is None else f"{s:.4f}" for s in scores)
                header = "iteration,case," + ",".join(ORGANS.values())
                _append(run / "scores.csv", header, f"{done},{name},{cells}")
                print(f"{name} {cells}", flush=True)
            began = time.monotonic()
    return checkpoint


def evaluate(network: nn.Module, prepared: Path, config: Config) -> dict[str, list[float | None]]:
    """DSC per organ on the held-out cases that have labels, on the network's grid.

    Returns:
        Case name to one DSC per organ (None: not annotated, or absent from both).
    """
    result = {}
    for name in config.holdout:
        path = prepared / "images" / f"{name}.npz"
        if not path.exists():
            continue
        with np.load(path) as content:
            hu, labels, annotated = content["hu"], content["labels"], set(content["annotated"])
        if annotated:
            predicted = predict(network, hu, config)
            result[name] = [
                dice(predicted == organ, labels == organ) if organ in annotated else None
                for organ in ORGANS
            ]
    return result


@torch.no_grad()
def logits_of(network: nn.Module, hu: np.ndarray, config: Config) -> Tensor:
    """Logits (classes, z, y, x) of a whole volume (z, y, x) in HU at the network's spacing."""
    device = next(network.parameters()).device
    network.eval()
    image = (torch.from_numpy(hu).float().clamp(*config.clip) - config.subtract) / config.divide
    lowest = (config.clip[0] - config.subtract) / config.divide
    multiple = 2 ** (len(config.features) - 1)
    after = [-n % multiple for n in reversed(image.shape)]
    padded = nn.functional.pad(image, [n for a in after for n in (0, a)], value=lowest)
    with torch.autocast(device.type, torch.bfloat16):
        logits = network(padded[None, None].to(device))[0]
    z, y, x = image.shape
    return logits[:, :z, :y, :x].float().cpu()


def predict(network: nn.Module, hu: np.ndarray, config: Config) -> np.ndarray:
    """Labels uint8 (z, y, x) of a whole volume in HU at the network's spacing."""
    return logits_of(network, hu, config).argmax(0).to(torch.uint8).numpy()


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """DSC of two masks; None if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def _learning_rate(config: Config, iteration: int) -> float:
    warm = min(1.0, (iteration + 1) / max(1, config.warmup))
    decay = 0.5 * (1 + math.cos(math.pi * iteration / config.iterations))
    return config.learning_rate * warm * decay


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(b, 1 - decay)


def _save(
    path: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, done: int
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "iteration": done,
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
        },
        partial,
    )
    partial.replace(path)


def _append(path: Path, header: str, line: str) -> None:
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write((header + "\n" if new else "") + line + "\n")


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C reaches the workers too; they must outlive the step that is under way."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag that the loop reads after each step."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
