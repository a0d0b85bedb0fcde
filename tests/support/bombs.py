"""The worst that a megabyte on the wire can hold, per codec, and what reading it takes.

    python -m tests.support.bombs        # one line each: input, bytes inside, peak, seconds

The inputs are made byte by byte: no compressor reaches what its format allows.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import lz4.frame

from ares_stream.streaming.batches import Batches, BatchReader
from ares_stream.streaming.breaker import BreakerPolicy
from ares_stream.streaming.records import ReadLimits
from tests.support.raw_batches import RawRecord, batch, compressed, field, produce, varint
from tests.support.sessions import Copying, Seen, running, until

MIB = 1 << 20
WIRE = MIB
"""Kafka's default max.message.bytes, which counts compressed bytes."""


def _head(size: int) -> bytes:
    """The beginning of one record of `size` bytes."""
    return varint(size) + b"\0" + varint(0) + varint(0) + field(b"k") + varint(size - 16)


def gzip_bomb() -> bytes:
    """Zeros: deflate's longest match is 258 bytes for two bits, 1,030 to 1."""
    made = zlib.compressobj(9, zlib.DEFLATED, 31)
    out = made.compress(_head(2**31 - 1))
    while len(out) < WIRE - 64:
        out += made.compress(bytes(MIB))
    return out


def zstd_bomb() -> bytes:
    """Blocks that repeat one byte 131,072 times for four bytes, behind a window of 128 MiB."""
    head = _head(2**31 - 1)
    out = struct.pack("<I", 0xFD2FB528) + bytes((0, (27 - 10) << 3))
    out += struct.pack("<I", len(head) << 3)[:3] + head
    block = struct.pack("<I", (1 << 1) | (131_072 << 3))[:3] + b"\0"
    return out + block * ((WIRE - len(out)) // len(block))


def lz4_bomb() -> bytes:
    """Linked blocks of 4 MiB of zeros, 255 to 1."""
    made = lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB, block_linked=True)
    out = made.begin() + made.compress(_head(2**31 - 1))
    while len(out) < WIRE - 20_000:
        out += made.compress(bytes(4 * MIB))
    return bytes(out)


def snappy_bomb() -> bytes:
    """One block of zeros, 21 to 1."""
    size = 20 * WIRE
    return compressed("snappy", _head(size) + bytes(size))


def header_bomb() -> bytes:
    """One record under the limit of a record, of four million empty headers."""
    count = 4_000_000
    body = b"\0" + varint(0) + varint(0) + field(b"k") + field(b"v") + varint(count)
    body += b"\0\1" * count
    return compressed("zstd", varint(len(body)) + body)


def many_records() -> tuple[bytes, int]:
    """The smallest records, as many as fit into 8 MiB."""
    count = 800_000
    records = b"".join(RawRecord(None, None).encoded(n) for n in range(count))
    return compressed("zstd", records), count


INPUTS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: batch([], "gzip", payload=gzip_bomb(), count=1),
    "zstd": lambda: batch([], "zstd", payload=zstd_bomb(), count=1),
    "lz4": lambda: batch([], "lz4", payload=lz4_bomb(), count=1),
    "snappy": lambda: batch([], "snappy", payload=snappy_bomb(), count=1),
    "headers": lambda: batch([], "zstd", payload=header_bomb(), count=1),
    "records": lambda: batch([], "zstd", payload=many_records()[0], count=many_records()[1]),
}
INSIDE = {
    "gzip": 1030 * WIRE,
    "zstd": 32_768 * WIRE,
    "lz4": 255 * WIRE,
    "snappy": 20 * WIRE,
    "headers": 8_000_000,
    "records": 8 * MIB,
}
"""About what the bytes hold."""


def _peak(*, reset: bool = False) -> int:
    """The process's resident high-water mark in MiB; `reset` brings it down to what is resident
    now, which imports are long below."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def _measure(name: str) -> None:
    data = sys.stdin.buffer.read()
    before = _peak(reset=True)
    started = time.monotonic()
    entries = damaged = 0
    for raw in Batches("t", 0, data, position=0, highwater=2**40, aborted=None):
        for record in BatchReader(raw, ReadLimits()):
            entries += 1
            damaged += record.damage is not None
    seconds = time.monotonic() - started
    peak = _peak()
    print(
        f"{name}: {len(data) / MIB:.2f} MiB on the wire, {INSIDE[name] / MIB:.0f} MiB inside, "
        f"peak +{peak - before} MiB, {seconds:.1f} s, {entries} entries, "
        f"{damaged} by coordinates"
    )


def measured(name: str) -> str:
    """Read one input in a process of its own; its line."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.bombs", name],
        input=INPUTS[name](),
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout.decode().strip()


PARTITIONS = 16
SIZES = {"gzip": 256 * MIB, "zstd": 256 * MIB, "lz4": 128 * MIB, "snappy": 18 * MIB}
"""Of one record, whole and so taken by a broker: at most a megabyte on the wire."""


async def send_everywhere(copying: Copying) -> None:
    """A bomb to each partition, of every codec in turn."""
    made = {codec: batch([RawRecord(b"k", bytes(size))], codec) for codec, size in SIZES.items()}
    for number in range(PARTITIONS):
        data = made[list(SIZES)[number % len(SIZES)]]
        await produce(copying.direct.bootstrap, copying.input, [data], number)


async def _read_everywhere(bootstrap: str, prefix: str) -> None:
    copying = Copying(bootstrap, prefix, partitions=PARTITIONS)
    seen = Seen()
    before = _peak(reset=True)
    async with running(copying.processor(seen, breaker=BreakerPolicy(accept=True))):
        await until(lambda: seen.records >= PARTITIONS, 240)
    inside = sum(SIZES.values()) * PARTITIONS // len(SIZES)
    print(
        f"{PARTITIONS} partitions: {inside >> 20} MiB inside, peak +{_peak() - before} MiB, "
        f"{seen.records} dead letters"
    )


def measured_everywhere(copying: Copying) -> str:
    """Read what `send_everywhere` sent, in a process of its own; its line."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.bombs", "everywhere"),
            *(copying.direct.bootstrap, copying.prefix),
        ],
        capture_output=True,
        timeout=300,
        check=True,
    )
    return done.stdout.decode().strip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["everywhere"]:
        asyncio.run(_read_everywhere(*sys.argv[2:4]))
    elif len(sys.argv) > 1:
        _measure(sys.argv[1])
    else:
        for each in INPUTS:
            print(measured(each), flush=True)
