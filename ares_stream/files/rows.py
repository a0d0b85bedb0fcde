"""Files of JSON lines: read plain, gzip or standard input, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ares_stream.errors import DecodeError, FileFormatError, SettingsError
from ares_stream.files.reasons import said
from ares_stream.files.validation import fault

_T = TypeVar("_T")

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A file without line ends must not fill the memory."""
ENDLESS_BYTES: Final = 1 << 30
"""A line that does not end within this is none: who waits for its end may wait for ever."""
STDIO: Final = "-"
_NOT_LINES: Final = (
    "begins a JSON document over several lines; expected one object a line, as `jq -c .` writes, "
    "or `jq -c '.[]'` of a list"
)
_CHUNK: Final = 1 << 20
_UTF8_MARK: Final = b"\xef\xbb\xbf"
_GZIP_MARK: Final = b"\x1f\x8b"
_DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error)
_FOREIGN: Final = {
    b"\x28\xb5\x2f\xfd": "zstd; decompress it first, such as `zstd -dc FILE | ares ... -`",
    b"BZh": "bzip2; decompress it first, such as `bzcat FILE | ares ... -`",
    b"\xfd7zXZ": "xz; decompress it first, such as `xzcat FILE | ares ... -`",
    b"\x04\x22\x4d\x18": "lz4; decompress it first, such as `lz4cat FILE | ares ... -`",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "Parquet; write its rows as JSON lines first",
    b"ARROW1": "Arrow; write its rows as JSON lines first",
    b"Obj\x01": "Avro; write its records as JSON lines first",
    b"SQLite format 3": "a database of SQLite; write its rows as JSON lines first",
    b"\xff\xfe": "UTF-16; write the file as UTF-8",
    b"\xfe\xff": "UTF-16; write the file as UTF-8",
}
"""How files begin that hold no JSON lines as they are. None of it begins JSON."""
_DOCUMENTS: Final = (b"[", b"{")


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
        """Read it through once. Raises FileFormatError for a damaged gzip file and for a line
        without an end."""
        self._stream.seek(0)
        hashed, lines, last = hashlib.sha256(), 0, b"\n"
        length = _Length(self.name)
        while chunk := self._read(lines, self._stream.read, _CHUNK):
            length.add(chunk)
            hashed.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
        return Survey(hashed.hexdigest(), lines + (last != b"\n"))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(number, line without its end and without a byte order mark). Of a line over
        MAX_LINE_BYTES, one byte more than that comes, so that whoever has a limit refuses it.

        Raises FileFormatError for a damaged gzip file, for a line without an end, and for a file
        that is known not to be JSON lines: packed otherwise, UTF-16, a document over several lines.
        """
        self._stream.seek(0)
        number = 0
        while line := self._read(number, self._stream.readline, MAX_LINE_BYTES + 1):
            number += 1
            whole = line.endswith(b"\n")
            if len(line) > MAX_LINE_BYTES and not whole:
                self._skip_rest(number)
            # Of each line: files that begin with one may have been written one behind another.
            line = line.removeprefix(_UTF8_MARK)
            if number == 1 and (what := _foreign(line)):
                raise FileFormatError(self.name, 1, what)
            if line and not line.isspace():
                yield number, line.rstrip(b"\r\n")

    def _skip_rest(self, number: int) -> None:
        length = _Length(self.name, lines=number - 1)
        while rest := self._read(number, self._stream.readline, _CHUNK):
            length.add(rest)
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


def _foreign(line: bytes) -> str:
    """What else than JSON lines a file is, by its first line; "" where it may be JSON lines."""
    for mark, what in _FOREIGN.items():
        if line.startswith(mark):
            return what
    if b"\0" in line[:4]:
        return "UTF-16 or UTF-32; write the file as UTF-8"
    return _NOT_LINES if line.endswith(b"\n") and line.strip() in _DOCUMENTS else ""


@dataclass(slots=True)
class _Length:
    """Of the line that is read, in bytes. Raises FileFormatError where it has no end."""

    name: str
    lines: int = 0
    length: int = 0

    def add(self, chunk: bytes) -> None:
        ends = chunk.count(b"\n")
        self.lines += ends
        self.length = len(chunk) - chunk.rfind(b"\n") - 1 if ends else self.length + len(chunk)
        if self.length > ENDLESS_BYTES:
            raise FileFormatError(
                self.name, self.lines + 1, f"the line does not end within {ENDLESS_BYTES:,} bytes"
            )


def _copy(source: BufferedReader, copy: IO[bytes], name: str) -> None:
    length = _Length(name)
    start = b""
    zipped = False
    # `read` waits for a whole chunk and, between the parts of it, looks at no signal: one that came
    # there would be seen when more is written, or never.
    while chunk := source.read1(_CHUNK):
        copy.write(chunk)
        if len(start) < len(_GZIP_MARK):
            start += chunk
            zipped = start.startswith(_GZIP_MARK)
        if not zipped:  # Lines of what is packed are measured when it is read.
            length.add(chunk)


@contextmanager
def open_lines(file: Path) -> Iterator[Lines]:
    """Open a file, or standard input for "-"; either may be gzip, told by its first bytes.

    What can be read only once, as standard input and pipes can, is first copied to a temporary
    file on disk: it is read once whoever writes has ended. A line that does not end, such as that
    of /dev/zero, is a FileFormatError. Raises SettingsError when there is nothing to read.
    """
    piped = str(file) == STDIO
    name = "standard input" if piped else str(file)
    with ExitStack() as stack:
        try:
            opened = sys.stdin.buffer if piped else stack.enter_context(file.open("rb"))
            source: IO[bytes] = opened
            if piped or not opened.seekable():
                source = stack.enter_context(tempfile.TemporaryFile())
                _copy(cast(BufferedReader, opened), source, name)
                source.seek(0)
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
