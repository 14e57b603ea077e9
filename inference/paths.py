"""What can be said of a path without an exception: pathlib raises where it must not look."""

from __future__ import annotations

from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether a path leads to something that may be looked at."""
    try:
        path.stat()
    except (OSError, ValueError):  # a name with a zero byte
        return False
    return True


def is_file(path: Path) -> bool:
    """Whether a path leads to a file that may be looked at."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder that may be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_unicode(path: Path) -> bool:
    """Whether a path is text: SimpleITK ends the process where a name is not valid UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
