"""``python -m evaluation``."""

from __future__ import annotations

from evaluation.cli import main
from inference.console import leave

if __name__ == "__main__":
    leave(main())
