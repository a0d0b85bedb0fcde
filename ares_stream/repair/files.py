"""Files of a run directory: what is wrong in one is a RepairError that names it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from ares_stream import files
from ares_stream.errors import RepairError

_T = TypeVar("_T")


def read_whole(path: Path, form: type[_T]) -> _T:
    """Read JSON as `form`. Raises RepairError naming the file and the field; it quotes no value."""
    return files.read_json(path, form, error=RepairError)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a run directory so that a kill leaves the old one or the new one."""
    files.write_whole(path, content, error=RepairError)
