"""A folder of CTs, a folder for labels, and the command, in this process or one of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from tiny_model import make_ct

from inference.cli import main

REPOSITORY = Path(__file__).parent.parent


class Desk:
    """A folder of CTs, a folder for labels, and the command."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.inputs = folder / "in"
        self.outputs = folder / "out"
        self.report = folder / "report.json"
        self.model = model
        self.inputs.mkdir()

    def put(self, *names: str) -> None:
        for name in names:
            sitk.WriteImage(make_ct(), self.inputs / name)

    def arguments(self, *more: object) -> list[str]:
        given = [str(argument) for argument in more]
        return ["-i", str(self.inputs), "-o", str(self.outputs), "--model", str(self.model), *given]

    def run(self, *more: object) -> int:
        try:
            return main(self.arguments(*more))
        except SystemExit as end:  # argparse
            return int(end.code or 0)

    def there(self) -> list[str]:
        return sorted(path.name for path in self.outputs.iterdir())

    def cases(self) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = json.loads(self.report.read_text())["cases"]
        return cases


def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    """A Python of its own with these arguments, to be talked to and stopped."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores these, and would hand that down.
        preexec_fn=lambda: [
            signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)
        ],
        **settings,
    )
