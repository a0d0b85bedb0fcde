"""Files of JSON lines: read plain, gzip or standard input in bounded memory; written whole."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ares_stream.errors import FileFormatError, SettingsError

MAX_LINE_BYTES = 16 * 1024 * 1024  # A file without line ends must not fill the memory.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds: SHA-256 of its content (decompressed) and its number of lines."""

    digest: str
    lines: int


class Lines:
    """The lines of a seekable stream of bytes, with numbers from 1, blank lines left out."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self.name = name

    def survey(self) -> Survey:
        """Read it through once."""
        self._stream.seek(0)
        hashed, lines, last = hashlib.sha256(), 0, b"\n"
        try:
            while chunk := self._stream.read(_CHUNK):
                hashed.update(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        except (EOFError, gzip.BadGzipFile) as error:
            raise FileFormatError(self.name, lines + 1, f"broken gzip: {error}") from None
        return Survey(hashed.hexdigest(), lines + (last != b"\n"))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(number, line without its end). Of a line over MAX_LINE_BYTES, one byte more than
        that comes, so that whoever has a limit refuses it."""
        self._stream.seek(0)
        number = 0
        while line := self._stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            whole = line.endswith(b"\n")
            if len(line) > MAX_LINE_BYTES and not whole:
                self._skip_rest()
            if not line.isspace():
                yield number, line.rstrip(b"\r\n")

    def _skip_rest(self) -> None:
        while rest := self._stream.readline(_CHUNK):
            if rest.endswith(b"\n"):
                return


@contextmanager
def open_lines(file: Path) -> Iterator[Lines]:
    """Open a file, a gzip file by its first bytes, or standard input for "-".

    Standard input is first copied to a temporary file on disk, since it is read twice.
    """
    if str(file) == "-":
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy, _CHUNK)
            yield Lines(copy, "standard input")
        return
    try:
        plain = file.open("rb")
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    with plain:
        try:
            zipped = plain.read(2) == b"\x1f\x8b"
        except OSError as error:
            raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
        plain.seek(0)
        if not zipped:
            yield Lines(plain, str(file))
            return
        with gzip.GzipFile(fileobj=plain) as content:
            yield Lines(content, str(file))  # type: ignore[arg-type]


def write_document(file: Path, document: Any) -> None:
    """Write JSON for people and programs, whole or not at all. Raises SettingsError."""
    with written_whole(file) as stream:
        stream.write(json.dumps(document, indent=1).encode() + b"\n")


@contextmanager
def written_whole(file: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when all of it is there, else not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("wb")
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written: {error.strerror}") from None
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
