"""What a user's mistake raises: one line, meant to be read as it is."""

from __future__ import annotations

import re
import warnings


class AbdosegError(Exception):
    """Something that a user can mend; ``str(error)`` is the whole message."""


class UsageError(AbdosegError):
    """A wrong call, or a path that names no CT (exit code 2): nothing was segmented."""


class CaseError(AbdosegError):
    """One case cannot be segmented (exit code 1); other cases still run."""


class ModelError(AbdosegError):
    """A model is missing, incomplete, contradicts itself or has not the precision asked for."""


class CaseWarning(UserWarning):
    """What a user should know about one case. Python shows each of them, unless told otherwise."""


# Else it would show those of the first CT in a loop alone, where the next has the same.
warnings.simplefilter("always", CaseWarning, append=True)


def last_line(error: BaseException) -> str:
    """What another library's exception says, in one line.

    OpenVINO and ITK put lines of their own source before it, so the last line that is not empty
    is taken; ITK begins that with an object's address.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^ITK ERROR: \w+\(0x[0-9a-f]+\): ", "", lines[-1]) if lines else "no message"


def first_line(error: BaseException) -> str:
    """What an exception says first; the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def os_error_line(error: OSError) -> str:
    """What the system says, in one line: the file, if it names one, and the reason."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
