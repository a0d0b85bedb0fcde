"""Why the system refused a file, in its own words."""

from __future__ import annotations

import errno
from typing import Final

from ares_stream.errors import AresError, ResourceError, SettingsError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_SPENT: Final = {*_FULL, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


def said(error: OSError) -> str:
    """Such as "No such file or directory"; some file systems give a message alone."""
    return error.strerror or str(error) or type(error).__name__


def is_full(error: OSError) -> bool:
    """Whether the disk has no room left, for anyone or for this user."""
    return error.errno in _FULL


def unwritable(
    place: object, problem: OSError, error: type[AresError] = SettingsError
) -> AresError:
    """What to raise where something cannot be written: `error`, but a ResourceError where the disk
    is full, since the same call works once there is room."""
    kind = ResourceError if is_full(problem) else error
    return kind(f"{place}: cannot be written: {said(problem)}")


def is_spent(error: OSError) -> bool:
    """Whether the machine has no room, memory, open files or processes left."""
    return error.errno in _SPENT


def of_machine(error: OSError | MemoryError) -> AresError:
    """What to raise for what nobody foresaw: a ResourceError where the machine has nothing left,
    else a SettingsError that names the file."""
    if isinstance(error, MemoryError):
        return ResourceError("the machine refused: no memory left")
    place = "the machine refused" if error.filename is None else str(error.filename)
    kind = ResourceError if is_spent(error) else SettingsError
    return kind(f"{place}: {said(error)}")
