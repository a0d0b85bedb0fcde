"""Files of JSON lines: read plain, gzip or standard input, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ares_stream.errors import DecodeError, FileFormatError, SettingsError
from ares_stream.files.reasons import said
from ares_stream.files.validation import fault

_T = TypeVar("_T")

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A file without line ends must not fill the memory."""
STDIO: Final = "-"
_CHUNK: Final = 1 << 20
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MARK: Final = b"\x1f\x8b"
_DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error)


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
        """Read it through once. Raises FileFormatError for a damaged gzip file."""
        self._stream.seek(0)
        hashed, lines, last = hashlib.sha256(), 0, b"\n"
        while chunk := self._read(lines, self._stream.read, _CHUNK):
            hashed.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
        return Survey(hashed.hexdigest(), lines + (last != b"\n"))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(number, line without its end and without a byte order mark). Of a line over
        MAX_LINE_BYTES, one byte more than that comes, so that whoever has a limit refuses it.

        Raises FileFormatError for a damaged gzip file and for UTF-16.
        """
        self._stream.seek(0)
        number = 0
        while line := self._read(number, self._stream.readline, MAX_LINE_BYTES + 1):
            number += 1
            whole = line.endswith(b"\n")
            if len(line) > MAX_LINE_BYTES and not whole:
                self._skip_rest(number)
            if number == 1:
                if line.startswith(_UTF16_MARKS):
                    raise FileFormatError(self.name, 1, "UTF-16; write the file as UTF-8")
                line = line.removeprefix(_UTF8_MARK)
            if line and not line.isspace():
                yield number, line.rstrip(b"\r\n")

    def _skip_rest(self, number: int) -> None:
        while rest := self._read(number, self._stream.readline, _CHUNK):
            if rest.endswith(b"\n"):
                return

    def _read(self, lines: int, read: Any, size: int) -> bytes:
        try:
            return bytes(read(size))
        except _DAMAGED as error:
            reason = str(error) or type(error).__name__
            raise FileFormatError(self.name, lines + 1, f"broken gzip: {reason}") from None
        except OSError as error:
            raise SettingsError(f"{self.name}: cannot be read: {said(error)}") from None


@contextmanager
def open_lines(file: Path) -> Iterator[Lines]:
    """Open a file, or standard input for "-"; either may be gzip, told by its first bytes.

    What can be read only once, as standard input and pipes can, is first copied to a temporary
    file on disk. Raises SettingsError when there is nothing to read.
    """
    piped = str(file) == STDIO
    name = "standard input" if piped else str(file)
    with ExitStack() as stack:
        try:
            source: IO[bytes] = sys.stdin.buffer if piped else stack.enter_context(file.open("rb"))
            if piped or not source.seekable():
                copy = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(source, copy, _CHUNK)
                copy.seek(0)
                source = copy
            zipped = source.read(2) == _GZIP_MARK
            source.seek(0)
        except OSError as error:
            raise SettingsError(f"{name}: cannot be read: {said(error)}") from None
        if zipped:
            source = stack.enter_context(gzip.GzipFile(fileobj=source))  # type: ignore[arg-type]
        yield Lines(source, name)


def parse_json(raw: bytes) -> Any:
    """Any JSON. Raises DecodeError for what is none: also halves of surrogate pairs, NaN, and
    nesting of 200 levels, which `json.loads` lets through to fail where nobody expects it."""
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)
    raise DecodeError(f"not JSON: {reason}")


def read_rows(file: Path, form: type[_T]) -> Iterator[tuple[int, _T]]:
    """(line, row) of a file of JSON lines. Raises FileFormatError naming line and field."""
    adapter: TypeAdapter[_T] = TypeAdapter(form)
    with open_lines(file) as lines:
        for number, raw in lines:
            try:
                row = adapter.validate_json(raw)
            except ValidationError as error:
                raise FileFormatError(lines.name, number, str(fault(error, form))) from None
            yield number, row
