"""What a server answers, in bounded memory: packed or not, and however little of a bomb is on the
wire. HTTP clients unpack a whole part at once, and what 64 KiB unpack to is up to the server."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable
from typing import Any, Final

ASKED_ENCODINGS: Final = {"accept-encoding": "gzip, deflate"}
"""The header of every request whose answer is read here."""
_GZIP: Final = zlib.MAX_WBITS | 16


class AnswerError(Exception):
    """An answer cannot be read; says why, and quotes none of it."""


class AnswerTooLarge(AnswerError):
    """An answer is longer than it may be; nothing more of it is read."""


async def read_answer(parts: AsyncIterable[bytes], limit: int, encoding: str = "") -> bytes:
    """All of an answer of up to `limit` bytes once unpacked, in time linear in it however small
    its parts are. `parts`: as they came, `encoding`: the answer's content-encoding.

    Raises AnswerTooLarge, and AnswerError for an encoding that was not asked for or is damaged.
    """
    unpacked = _Unpacked(encoding.strip().lower())
    content = bytearray()
    async for part in parts:
        content += unpacked.add(part, limit + 1 - len(content))
        if len(content) > limit:
            raise AnswerTooLarge(f"answers with more than {limit:,} bytes")
    unpacked.end()
    return bytes(content)


class _Unpacked:
    """gzip, deflate (with zlib's frame, as the standard says, or bare, as many servers send it),
    or what is not packed."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise AnswerError(f"answers in the encoding {encoding[:32]}, which was not asked for")
        self._encoding = encoding
        self._zlib: Any = None
        if encoding in ("gzip", "x-gzip"):
            self._zlib = zlib.decompressobj(_GZIP)

    def add(self, part: bytes, most: int) -> bytes:
        """What this part unpacks to, up to `most` bytes."""
        if self._encoding in ("", "identity"):
            return part
        if not part:
            return b""
        if self._zlib is None:
            framed = part[0] & 0x0F == zlib.DEFLATED and part[0] >> 4 <= 7
            self._zlib = zlib.decompressobj(zlib.MAX_WBITS if framed else -zlib.MAX_WBITS)
        try:
            return bytes(self._zlib.decompress(part, most))
        except zlib.error:
            raise AnswerError(f"answers with damaged {self._encoding}") from None

    def end(self) -> None:
        """Raises AnswerError where the answer ends before what is packed does."""
        if self._zlib is not None and not self._zlib.eof:
            raise AnswerError(f"answers with {self._encoding} that is cut short")
