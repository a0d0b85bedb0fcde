"""Why the system refused a file, in its own words."""

from __future__ import annotations

import errno
from typing import Final

from ares_stream.errors import AresError, ResourceError, SettingsError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


def said(error: OSError) -> str:
    """Such as "No such file or directory"; some file systems give a message alone."""
    return error.strerror or str(error) or type(error).__name__


def unwritable(
    place: object, problem: OSError, error: type[AresError] = SettingsError
) -> AresError:
    """What to raise where something cannot be written: `error`, but a ResourceError where the disk
    is full, since the same call works once there is room."""
    kind = ResourceError if problem.errno in _FULL else error
    return kind(f"{place}: cannot be written: {said(problem)}")
