"""Files and folders that appear under their names only when they are whole."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from ares_stream.errors import AresError, SettingsError
from ares_stream.files.reasons import unwritable

_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS}


def write_document(file: Path, document: Any) -> None:
    """Write JSON for people and programs, whole or not at all. Raises SettingsError."""
    with written_whole(file) as stream:
        stream.write(json.dumps(document, indent=1).encode() + b"\n")


def write_whole(file: Path, content: bytes, *, error: type[AresError] = SettingsError) -> None:
    """Write a file that only its owner reads, so that a kill leaves the old one or the new."""
    with written_whole(file, error=error, mode=0o600) as stream:
        stream.write(content)


@contextmanager
def written_whole(
    file: Path, *, error: type[AresError] = SettingsError, mode: int = 0o666
) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when all of it is there, else not at all.

    A link stays a link, and what is no regular file (/dev/null, a pipe) is written as it is.
    """
    target = Path(os.path.realpath(file))
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    special = os.path.exists(target) and not os.path.isfile(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | (0 if special else os.O_CREAT | os.O_EXCL)
        stream = os.fdopen(os.open(target if special else temporary, flags, mode), "wb")
    except OSError as problem:
        raise unwritable(file, problem, error) from None
    try:
        with stream:
            yield stream
            stream.flush()
            if not special:
                os.fsync(stream.fileno())
        if not special:
            temporary.replace(target)
    except OSError as problem:
        if problem.errno not in _DISK:
            raise
        raise unwritable(file, problem, error) from None
    finally:
        if not special:
            temporary.unlink(missing_ok=True)


@contextmanager
def staging_folder(out: Path, *, error: type[AresError] = SettingsError) -> Iterator[Path]:
    """A folder to fill beside `out`, on its file system; what was not renamed goes with the
    block. Raises `error` where none can be made."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=out.parent))
    except OSError as problem:
        raise unwritable(out, problem, error) from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def written_folder(out: Path, *, error: type[AresError] = SettingsError) -> Iterator[Path]:
    """A folder to fill beside `out`, which becomes `out` when the block ends well; else nothing
    of it stays. Raises `error` when `out` is there and not an empty folder."""
    with staging_folder(out, error=error) as staging:
        try:
            yield staging
            for name in staging.rglob("*"):
                if name.is_file():
                    _sync(name)
            staging.chmod(0o755)
            staging.rename(out)
        except OSError as problem:
            raise unwritable(out, problem, error) from None


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
