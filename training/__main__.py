"""``python -m training``: prepare -> train -> (pseudo-label ->) export, together or one by one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.config import Config

STEPS = ("prepare", "train", "pseudolabel", "export")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Rebuild a model's weights from a folder of CTs and labels.",
    )
    parser.add_argument(
        "step",
        nargs="?",
        choices=STEPS,
        help="one step alone; without it: prepare, train, export (interrupted steps go on)",
    )
    parser.add_argument("--config", type=Path, required=True, help="training/configs/NAME.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder with cases and label maps")
    parser.add_argument("--out", type=Path, required=True, help="the model folder, weights/NAME")
    parser.add_argument(
        "--work", type=Path, default=None, help="working folder (default: runs/NAME)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the loss while training")
    options = parser.parse_args(arguments)
    try:
        config = Config.load(options.config)
        work = options.work or Path("runs") / config.name
        for step in [options.step] if options.step else ["prepare", "train", "export"]:
            _run(step, config, options.data, work, options.out, options.compile)
    except (FileNotFoundError, ValueError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("training: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _run(step: str, config: Config, data: Path, work: Path, out: Path, compiled: bool) -> None:
    # Imported here: `--help` and a wrong option need not wait for torch.
    prepared, run = work / "prepared", work / "run"
    checkpoint = run / "checkpoint.pt"
    if step == "prepare":
        from training.prepare import prepare

        for line in prepare(data, prepared, (config.spacing,) * 3, config.holdout):
            print(f"refused: {line}", file=sys.stderr)
    elif step == "train":
        from training.train import train

        train(config, prepared, run, compiled)
    elif step == "pseudolabel":
        from inference.organs import ORGANS
        from training.pseudolabel import pseudolabel

        for name, found in pseudolabel(checkpoint, config, prepared).items():
            kept = ", ".join(ORGANS[organ] for organ in found.kept) or "nothing"
            print(f"{name}: kept {kept}")
    else:
        from training.cases import find_cases
        from training.export import export, load_average
        from training.machine import machine_in_words
        from training.model_card import write_model_card

        agreements = export(checkpoint, config, prepared, out)
        parameters = sum(p.numel() for p in load_average(checkpoint, config).parameters())
        write_model_card(
            out, config, find_cases(data), run, parameters, agreements, machine_in_words()
        )


if __name__ == "__main__":
    sys.exit(main())
