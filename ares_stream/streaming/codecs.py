"""Decompression step by step, so that memory is bounded by a step and not by the result. Pure.

A compressed batch of 1 MB can hold gigabytes. `decompress` gives pieces of at most PIECE bytes
(snappy: a block, whose size is checked before it is decompressed), and `Bytes` counts what
comes out and stops at a limit.

Framing is read as Kafka's own Java client reads it: what follows the end of a gzip member, an
lz4 frame or the last record is not looked at.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import Final, Protocol

import cramjam
import lz4.frame
import zstandard

PIECE: Final = 64 << 10
FEED: Final = 16 << 10
"""Compressed bytes given to a decompressor at once: what it cannot use yet, it copies."""
SNAPPY_RATIO: Final = 24
"""A snappy block never grows by more than 64 bytes per 3: a larger claim is a lie."""
LZ4_BLOCKS: Final = 8 << 20
"""The two blocks of 4 MiB at most that an lz4 frame keeps."""
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = 16
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)


class DamagedBytes(Exception):
    """Bytes that cannot be decompressed or parsed; the message holds none of them."""


class TooLarge(Exception):
    """More bytes than the limit."""


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def decompress(codec: int, data: memoryview, limit: int) -> Iterator[bytes]:
    """Pieces of what `data` holds. `limit` bounds one snappy block, which comes whole.

    Raises DamagedBytes, TooLarge.
    """
    if codec == NONE:
        return iter((bytes(data),))
    if codec == GZIP:
        return _gzip(data)
    if codec == SNAPPY:
        return _snappy(data, limit)
    if codec == LZ4:
        return _lz4(data)
    if codec == ZSTD:
        return _zstd(data)
    raise DamagedBytes(f"compression codec {codec} is unknown")


def held_bytes(codec: int, data: memoryview) -> int:
    """What a decompressor may keep between two pieces: its window."""
    if codec == ZSTD:
        try:
            return int(zstandard.get_frame_parameters(bytes(data[:32])).window_size)
        except zstandard.ZstdError:
            return 0
    return {GZIP: 64 << 10, LZ4: LZ4_BLOCKS}.get(codec, 0)


def _gzip(data: memoryview) -> Iterator[bytes]:
    position = 0
    while True:
        # 16: a gzip header is expected.
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        rest = b""
        while not member.eof:
            if not rest:
                rest = bytes(data[position : position + FEED])
                position += len(rest)
                if not rest:
                    raise DamagedBytes("the gzip stream ends too early")
            try:
                piece = member.decompress(rest, PIECE)
            except zlib.error:
                raise DamagedBytes("not a gzip stream") from None
            rest = member.unconsumed_tail
            if piece:
                yield piece
        position -= len(member.unused_data)
        if bytes(data[position : position + 2]) != b"\x1f\x8b":
            return


def _lz4(data: memoryview) -> Iterator[bytes]:
    frame = lz4.frame.LZ4FrameDecompressor()
    position = 0
    while not frame.eof:
        fed = b""
        if frame.needs_input:
            fed = bytes(data[position : position + FEED])
            position += len(fed)
            if not fed:
                raise DamagedBytes("the lz4 frame ends too early")
        try:
            piece = frame.decompress(fed, PIECE)
        except RuntimeError:
            raise DamagedBytes("not an lz4 frame") from None
        if piece:
            yield piece


def _zstd(data: memoryview) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor().stream_reader(
        data, read_size=FEED, read_across_frames=True
    )
    while True:
        try:
            piece = reader.read1(PIECE)
        except zstandard.ZstdError:
            raise DamagedBytes("not a zstd frame") from None
        if not piece:
            return
        yield piece


def _snappy(data: memoryview, limit: int) -> Iterator[bytes]:
    if bytes(data[: len(_XERIAL)]) != _XERIAL:
        yield _snappy_block(data, limit)
        return
    position = _XERIAL_HEADER
    while position + 4 <= len(data):
        (size,) = struct.unpack_from(">i", data, position)
        position += 4
        if not 0 <= size <= len(data) - position:
            raise DamagedBytes("a snappy block ends too early")
        yield _snappy_block(data[position : position + size], limit)
        position += size


def _snappy_block(block: memoryview, limit: int) -> bytes:
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    else:
        raise DamagedBytes("not a snappy block")
    if size > SNAPPY_RATIO * len(block):
        raise DamagedBytes("a snappy block claims more than it can hold")
    if size > limit:
        raise TooLarge
    try:
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError:
        raise DamagedBytes("not a snappy block") from None


class Bytes:
    """Reads a sequence of pieces as one stream, and stops behind `limit` bytes."""

    def __init__(self, pieces: Iterator[bytes], limit: int) -> None:
        self._pieces = pieces
        self._limit = self._left = limit
        self._piece = b""
        self._at = 0

    @property
    def held(self) -> int:
        """Bytes of the piece that is being read."""
        return len(self._piece)

    @property
    def produced(self) -> int:
        """Bytes of all pieces so far."""
        return self._limit - self._left

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises DamagedBytes where fewer are left, TooLarge."""
        end = self._at + size
        if end <= len(self._piece):
            taken = self._piece[self._at : end]
            self._at = end
            return taken
        parts = [self._piece[self._at :]]
        missing = size - len(parts[0])
        while missing > 0:
            self._next()
            parts.append(self._piece[:missing])
            self._at = min(missing, len(self._piece))
            missing -= self._at
        return b"".join(parts)

    def skip(self, size: int, digest: _Digest | None = None) -> None:
        """Pass over `size` bytes, adding them to a digest."""
        while size > 0:
            if self._at == len(self._piece):
                self._next()
            part = self._piece[self._at : self._at + size]
            if digest is not None:
                digest.update(part)
            self._at += len(part)
            size -= len(part)

    def varint(self) -> int:
        """A zigzag varint of up to 64 bits."""
        value = shift = 0
        while True:
            if self._at == len(self._piece):
                self._next()
            byte = self._piece[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift >= 70:
                raise DamagedBytes("a number of more than 64 bits")

    def _next(self) -> None:
        self._piece, self._at = b"", 0
        piece = next(self._pieces, None)
        if piece is None:
            raise DamagedBytes("the batch ends in the middle of a record")
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge
        self._piece = piece


def sha256(data: bytes | memoryview) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
