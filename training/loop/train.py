"""The training loop, from top to bottom."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.console import handling
from inference.organs import ORGANS
from inference.write.files import remove_unfinished
from training.config import Config
from training.loop.checkpoint import fill, load, load_mean, save
from training.loop.losses import (
    distillation,
    loss_at_all_depths,
    partial_dice_cross_entropy,
)
from training.loop.muon import Muon
from training.loop.teacher import Teacher
from training.loop.team import Team, join
from training.networks.ir_weights import measure_norms
from training.networks.mixed_precision import autocast
from training.networks.network import make_network, multiple_of
from training.patches.batches import batches
from training.patches.samples import Samples
from training.preparation.prepared_file import file_of
from training.records.evaluate import evaluate
from training.records.run_folder import alone_in, changed_settings
from training.records.write import INITIAL, Records

_RESIDENT = 0.5
"""Share of a GPU's free memory that the prepared volumes may take."""

_STEP_BYTES = 100
"""Bytes that a step takes on a GPU, or a little less, per voxel of a batch and feature of the
finest stage. (What a pass keeps for its gradients is 36 to 85 of them, counted without a GPU.)"""

_MOST_LEFT_OUT = 10
"""Steps in a row whose gradient may be infinite; with one more the training ends."""

_MEASURED_ON = 16
"""Patches that give a model folder's batch norms their statistics."""


def train(
    config: Config,
    prepared: Path,
    run: Path,
    holdout: tuple[str, ...] = (),
    compiled: bool | None = None,
    teacher: Teacher | None = None,
    initial: Sequence[Path] = (),
) -> Path:
    """Train a network, or go on with an interrupted training.

    Runs on the CPU, on a GPU, or as one of several processes under ``torchrun``.

    Args:
        config: what to train.
        prepared: folder that `training.preparation.prepare.prepare` wrote.
        run: folder of this training: ``checkpoint.pt`` (rewritten atomically) and what
            `training.records.write.Records` keeps.
        holdout: cases to leave out and to score on besides the configuration's.
        compiled: whether to use ``torch.compile``: on a GPU for the network (the default
            there), on a CPU for the loss (worth it for more than some hundred steps).
        teacher: a larger network to learn from, besides the labels.
        initial: checkpoints of the same network, or one model folder; a new training begins
            with the mean of the checkpoints' averages, or the weights that the folder ships.

    Returns:
        The checkpoint's path.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the checkpoint holds all that was done.
        FileNotFoundError: nothing is prepared, or there is no such initial checkpoint.
        ModelError: an initial folder holds no model.
        ValueError: a checkpoint is of another network or optimiser, the loss is no number any
            more, another process trains there, more steps than the configuration's were made, the
            batch does not divide among the GPUs, a case is held out that was trained on before, or
            none of a fold's cases was prepared.
    """
    aside = list(dict.fromkeys((*config.holdout, *holdout)))
    with join() as team, _stop_request() as stop, ExitStack() as until_the_end:
        # What is trained, and its moving average, which is what will be exported.
        device = team.device
        torch.backends.cudnn.deterministic = True  # a GPU's convolutions add in one order
        torch.manual_seed(config.seed)
        network = make_network(dict(config.network)).to(device)
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        checkpoint = run / "checkpoint.pt"
        if initial and not checkpoint.exists():
            network.load_state_dict(load_mean(initial, config).state_dict())
        average = copy.deepcopy(network).requires_grad_(False)
        optimiser = make_optimiser(network, config)

        if team.leads:
            until_the_end.enter_context(alone_in(run))
            remove_unfinished(run)
        # Go on where the last checkpoint was written.
        start = 0
        if checkpoint.exists():
            state = load(checkpoint)
            if not {"network", "optimiser", "iteration"} <= state.keys():
                raise ValueError(f"{checkpoint}: has weights alone, no training goes on from it")
            fill(network, state["network"], checkpoint, config)
            fill(average, state["average"], checkpoint, config)
            continue_optimiser(optimiser, state["optimiser"], checkpoint, config)
            start = state["iteration"]
            if start > config.iterations:
                raise ValueError(
                    f"{checkpoint}: {start} steps were made, and the configuration has "
                    f"{config.iterations}; is it another training's? (--run and --work name them)"
                )
            own = ", with its own weights" if initial else ""
            _say(team, f"going on at iteration {start}{own}")
        if team.leads and (changed := changed_settings(run, config, holdout, start)):
            _say(team, f"changed since it was last trained: {', '.join(changed)}")
        if lost := [n for n in aside if not file_of(prepared, "labelled", n).exists()]:
            text = f"held out, but not prepared with labels, so not scored: {', '.join(lost)}"
            if holdout and len(lost) == len(aside):
                raise ValueError(f"{text}; {prepared / 'refused.txt'} may say why")
            _say(team, text)

        # Patches: number i of a seed is always the same, whoever draws it.
        room = _room_for_volumes(config, team)
        knows_nothing = not initial and not (run / INITIAL).exists() and teacher is None
        samples = Samples(prepared, config, holdout, device, room, knows_nothing)
        _say(team, "training on " + ", ".join(f"{len(v)} {k}" for k, v in samples.sources.items()))
        if samples.untold:
            names = ", ".join(ORGANS[organ] for organ in samples.untold)
            how = "taught to be absent" if knows_nothing else "not taught anew"
            _say(team, f"labelled in no case, so {how}: {names}")
        multiple = multiple_of(network)
        if device.type == "cuda" and (outside := samples.load_all()):
            _say(team, f"{outside} of the volumes do not fit: they are copied whenever drawn")
        if start == 0 and any(path.is_dir() for path in initial):
            # A model folder's batch norms lack statistics.
            measure_norms(network, (samples[n].image[None] for n in range(_MEASURED_ON)))
            average.load_state_dict(network.state_dict())
        numbers = _shares_of_batches(config, team, start)
        stream = until_the_end.enter_context(batches(samples, numbers))

        # On a GPU the network is compiled. On a CPU it must not be: under autocast to bf16
        # torch 2.13 then returns gradients that differ from the true ones by their own size.
        model = team.wrap(network)
        loss_of: Callable[..., Tensor] = partial_dice_cross_entropy
        if compiled if compiled is not None else device.type == "cuda":
            if device.type == "cuda":
                # Static: with symbolic sizes, which a second patch size would otherwise bring,
                # Inductor leaves convolutions' channels-last layout out.
                model = torch.compile(model, dynamic=False)  # type: ignore[assignment]
            else:
                loss_of = torch.compile(loss_of)  # weights change, but not their shape

        records = Records(run, start) if team.leads else None
        if records and initial and start == 0:
            records.begin_with(initial)

        def score(done: int) -> None:
            """Score the held-out cases where that is due."""
            due = done % config.evaluate_every == 0 or done == config.iterations
            if records and due and not records.has_scores(done):
                for case in evaluate(average, prepared, config, holdout):
                    records.add_case(done, case)
                records.end_evaluation()

        if start:  # it may have been stopped between a checkpoint and its scores
            score(start)
        losses: list[float] = []
        left_out = 0  # steps in a row
        waited, began = 0.0, time.monotonic()
        network.train()
        for iteration in range(start, config.iterations):
            asked = time.monotonic()
            batch = next(stream)
            waited += time.monotonic() - asked

            if iteration >= config.freeze_norm * config.iterations:
                freeze_norms(network)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, iteration)
            image = batch.image.contiguous(memory_format=torch.channels_last_3d)
            with autocast(image, multiple):
                outputs = model(image)
            weights = class_weights(config, iteration, device)
            weighted = partial(loss_of, class_weights=weights, batch_dice=config.batch_dice)
            loss = loss_at_all_depths(outputs, batch, weighted)
            if teacher is not None:
                _, spacing = config.grid_at(iteration)
                finest = outputs[0] if isinstance(outputs, list) else outputs
                lesson = distillation(finest, teacher(image, spacing), teacher.temperature)
                loss = (1 - teacher.weight) * loss + teacher.weight * lesson
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip))
            losses.append(team.mean(loss))
            # bf16 may give an infinite gradient now and then; a step with it would be the end.
            left_out = 0 if math.isfinite(norm) else left_out + 1
            if not math.isfinite(losses[-1]) or left_out > _MOST_LEFT_OUT:
                raise ValueError(
                    f"the loss is {losses[-1]}, its gradient's norm {norm} at iteration "
                    f"{iteration + 1}; {checkpoint} holds the state before"
                )
            if left_out:
                _say(team, f"iteration {iteration + 1} left out: its gradient's norm is {norm}")
            else:
                optimiser.step()
                _follow(average, network, min(config.ema, (1 + iteration) / (10 + iteration)))

            # Checkpoint, records, evaluation.
            done = iteration + 1
            stopping = team.any(stop["requested"])
            if done % config.checkpoint_every == 0 or done == config.iterations or stopping:
                if records:
                    save(checkpoint, network, average, optimiser, done)
                    records.add_losses(done, losses, time.monotonic() - began, waited)
                losses, waited, began = [], 0.0, time.monotonic()
            if stopping:
                break
            before = time.monotonic()
            score(done)
            began += time.monotonic() - before
        if records:
            records.close()
        # Asked again: it may have come during the last evaluation, and what follows must not begin.
        stopping = team.any(stop["requested"])
        # The model goes before its process group: freed after it, as it would be on the way out,
        # it hung in one of three runs (gloo, torch 2.13).
        del model
        if stopping:
            raise KeyboardInterrupt
    return checkpoint


def freeze_norms(network: nn.Module) -> None:
    """Batch norms normalise with their running statistics from now on, in training too.

    A patch's own statistics depend on how much of the body it shows, and a network whose norms
    follow them fails on longer or shorter scans.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


def make_optimiser(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The configuration's optimiser for a network's parameters."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=rate, momentum=0.99, nesterov=True, weight_decay=decay
        )
    if config.optimiser == "muon":
        return Muon(network, rate, decay)
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)


def continue_optimiser(
    optimiser: torch.optim.Optimizer, state: dict[str, Any], path: Path, config: Config
) -> None:
    """Give an optimiser a checkpoint's state, but the configuration's settings.

    Raises:
        ValueError: it is the state of another optimiser.
    """
    saved, own = state["param_groups"][0], optimiser.param_groups[0]
    # What SGD and Muon have in their groups, and AdamW has not.
    if any((key in saved) != (key in own) for key in ("momentum", "orthogonal")):
        raise ValueError(f"{path}: was trained with another optimiser than {config.optimiser}")
    optimiser.load_state_dict(state)
    for group in optimiser.param_groups:
        group["weight_decay"] = config.weight_decay


def learning_rate(config: Config, iteration: int) -> float:
    """The rate of a step: a linear rise, and a cosine or polynomial fall to zero."""
    warm = min(1.0, (iteration + 1) / max(1, config.warmup))
    progress = iteration / config.iterations
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    fall = cosine if config.schedule == "cosine" else (1 - progress) ** 0.9
    return config.learning_rate * warm * fall


def class_weights(config: Config, iteration: int, device: torch.device) -> Tensor | None:
    """What a voxel of each class counts at a step; None if all count the same.

    The configured weights let small organs be found at all, but draw them too large: they fade
    to 1 with the square of the steps that remain.
    """
    if not config.class_weights:
        return None
    remaining = 1 - iteration / config.iterations
    weights = 1 + (torch.tensor(config.class_weights) - 1) * remaining**2
    return weights.to(device, non_blocking=True)  # or it waits for the network's pass


def _room_for_volumes(config: Config, team: Team) -> float:
    """Bytes of a GPU's memory for prepared volumes; a CPU has them in the system's cache."""
    if team.device.type == "cpu":
        return 0.0
    free = torch.cuda.mem_get_info()[0]
    voxels = config.batch / team.size * math.prod(config.patch)
    step = _STEP_BYTES * voxels * config.network["features"][0]
    return max(0.0, min(free * _RESIDENT, free - step))


def _shares_of_batches(config: Config, team: Team, start: int) -> list[range]:
    """The numbers of the samples that this process draws, batch by batch."""
    if config.batch % team.size:
        raise ValueError(f"a batch of {config.batch} does not divide among {team.size} processes")
    share = config.batch // team.size  # side by side, as some are drawn as one
    firsts = range(start * config.batch, config.iterations * config.batch, config.batch)
    return [range(first, first + share) for first in (n + team.rank * share for n in firsts)]


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    # All at once: on a GPU starting a hundred small operations costs more than they do.
    torch._foreach_lerp_([*average.parameters()], [*network.parameters()], 1 - decay)
    if buffers := [*average.buffers()]:
        torch._foreach_copy_(buffers, [*network.buffers()])


def _say(team: Team, text: str) -> None:
    if team.leads:
        print(text, flush=True)


@contextmanager
def _stop_request() -> Iterator[dict[str, bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that the loop reads after each step."""
    stop = {"requested": False}
    with handling((signal.SIGINT, signal.SIGTERM), lambda *_: stop.update(requested=True)):
        yield stop
