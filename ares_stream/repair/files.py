"""Files of a run directory: written whole or not at all; what is wrong in one is named."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ares_stream.errors import RepairError

_T = TypeVar("_T")


def read_whole(path: Path, form: type[_T]) -> _T:
    """Read JSON as `form`. Raises RepairError naming the file and the field; it quotes no value."""
    try:
        return TypeAdapter(form).validate_json(path.read_bytes())
    except OSError as error:
        raise RepairError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise RepairError(f"{path}: {field}: {reason}" if field else f"{path}: {reason}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a run directory so that a kill leaves the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise RepairError(f"{path}: cannot be written: {error.strerror}") from error
