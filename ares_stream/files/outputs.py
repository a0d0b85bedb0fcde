"""Output paths, checked before the work whose result they shall take."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ares_stream.errors import SettingsError
from ares_stream.files.reasons import said
from ares_stream.files.rows import STDIO


def check_outputs(
    outputs: Mapping[str, Path | None],
    inputs: Mapping[str, Path | None],
    *,
    stdout: Collection[str] = (),
) -> None:
    """Refuse, before any work, outputs that would fail or destroy something at its end.

    `outputs` and `inputs`: option names → paths; None is an option that was not given. Refused
    are an output that is an input (also through links) or lies in a folder that is one, two
    equal outputs, a folder, and what cannot be written. `stdout`: the options that may be "-".
    Raises SettingsError naming the options.
    """
    taken: dict[tuple[object, ...], str] = {}
    for name, path in inputs.items():
        if path is not None and str(path) != STDIO:
            taken.setdefault(_identity(path), name)
    folders = [
        (name, os.path.realpath(path))
        for name, path in inputs.items()
        if path is not None and os.path.isdir(path)
    ]
    for name, path in outputs.items():
        if path is None:
            continue
        if str(path) == STDIO:
            if name not in stdout:
                raise SettingsError(f"{name} -: standard output is not possible here; name a file")
        elif os.path.isdir(path):
            raise SettingsError(f"{name} {path}: a folder, expected a file")
        else:
            _check_writable(name, path)
            _check_outside(name, path, folders)
        identity = _identity(path)
        if identity in taken and not _is_special(path):
            raise SettingsError(f"{name} {path}: is {taken[identity]} as well; name another file")
        taken[identity] = name


def check_new_folder(name: str, folder: Path) -> None:
    """Refuse, before any work, a folder that is there and not empty or cannot be made. Raises
    SettingsError naming the option."""
    if os.path.isdir(folder) and not os.listdir(folder):
        _check_writable(name, folder / "x")
    elif os.path.lexists(folder):
        raise SettingsError(f"{name} {folder}: exists already; choose another name")
    else:
        _check_writable(name, folder)


def _identity(path: Path) -> tuple[object, ...]:
    try:
        found = path.stat()
    except OSError:
        return (os.path.realpath(path),)
    return (found.st_dev, found.st_ino)


def _is_special(path: Path) -> bool:
    """Two outputs may both go to /dev/null."""
    return os.path.exists(path) and not os.path.isfile(path)


def _check_outside(name: str, path: Path, folders: Sequence[tuple[str, str]]) -> None:
    target = os.path.realpath(path)
    for option, folder in folders:
        if os.path.commonpath([target, folder]) == folder:
            raise SettingsError(f"{name} {path}: lies in {option}; name a file elsewhere")


def _check_writable(name: str, path: Path) -> None:
    target = Path(os.path.realpath(path))
    try:
        if _is_special(target):
            if not os.access(target, os.W_OK):
                raise SettingsError(f"{name} {path}: cannot be written")
            return
        folder = next(parent for parent in target.parents if os.path.exists(parent))
        # Asked by writing, since the permission alone does not know a read-only file system.
        with tempfile.TemporaryFile(dir=folder):
            pass
        if target.name and len(os.fsencode(target.name)) > os.pathconf(folder, "PC_NAME_MAX"):
            raise SettingsError(f"{name} {path}: cannot be written: the name is too long")
    except OSError as error:
        raise SettingsError(f"{name} {path}: cannot be written: {said(error)}") from None
