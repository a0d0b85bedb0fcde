"""Files of weights, looked at before a library reads them: whole, and no stand-in for themselves.

A safetensors file is 8 bytes of length, a JSON header of that length, and the tensors' bytes
(https://huggingface.co/docs/safetensors). What git-lfs or git-annex leave where the file was not
fetched is a few lines of text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ares_stream.errors import IntegrityError

_POINTERS: Final = (b"version https://git-lfs.github.com/", b"/annex/objects/")
_MAX_HEADER: Final = 100_000_000
"""The library's own limit."""


def check_fetched(file: Path) -> None:
    """Raise IntegrityError where a pointer stands in the file's place, or nothing."""
    try:
        with file.open("rb") as stream:
            begin = stream.read(64)
    except OSError as error:
        raise IntegrityError(f"{file}: cannot be read: {error.strerror}") from None
    if begin.startswith(_POINTERS):
        raise IntegrityError(
            f"{file}: a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"
        )
    if not begin:
        raise IntegrityError(f"{file}: is empty; fetch it again")


def check_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by name, without reading them.

    Raises IntegrityError where the file is a pointer, cut, longer than its tensors, or none.
    """
    check_fetched(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > _MAX_HEADER:
            raise IntegrityError(f"{file}: is no safetensors file; fetch it again")
        if 8 + length > size:
            raise IntegrityError(f"{file}: cut inside its header; fetch it again")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise IntegrityError(f"{file}: is no safetensors file; fetch it again") from None
    if 8 + length + end != size:
        raise IntegrityError(
            f"{file}: has {size} bytes, its header says {8 + length + end}; fetch it again"
        )
    return shapes
