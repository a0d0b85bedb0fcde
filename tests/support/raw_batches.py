"""Record batches made byte by byte, and a way to send them: what no client library would send."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cramjam
import lz4.frame
import zstandard
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def varint(value: int) -> bytes:
    """Zigzag varint."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(content: bytes | None) -> bytes:
    """A length and bytes, or null."""
    return varint(-1) if content is None else varint(len(content)) + content


@dataclass(frozen=True)
class RawRecord:
    """A record whose header names are bytes."""

    key: bytes | None = b"k"
    value: bytes | None = b"v"
    headers: tuple[tuple[bytes, bytes | None], ...] = ()

    def encoded(self, delta: int) -> bytes:
        """With its size in front."""
        body = b"\0" + varint(0) + varint(delta) + field(self.key) + field(self.value)
        body += varint(len(self.headers))
        for name, value in self.headers:
            body += field(name) + field(value)
        return varint(len(body)) + body


def compressed(codec: str, data: bytes) -> bytes:
    """As Kafka's clients compress a batch."""
    match codec:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, 6)
        case "snappy":
            return bytes(cramjam.snappy.compress_raw(data))
        case "lz4":
            return bytes(lz4.frame.compress(data, block_linked=False))
        case "zstd":
            return zstandard.ZstdCompressor().compress(data)
        case _:
            raise ValueError(codec)


def xerial(data: bytes, block: int = 32 << 10) -> bytes:
    """As Java's snappy streams frame their blocks."""
    out = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
    for at in range(0, len(data), block):
        piece = bytes(cramjam.snappy.compress_raw(data[at : at + block]))
        out += struct.pack(">i", len(piece)) + piece
    return out


def batch(
    records: Sequence[RawRecord],
    codec: str = "none",
    *,
    payload: bytes | None = None,
    base: int = 0,
    count: int | None = None,
    producer: int = -1,
    flags: int = 0,
    timestamp: int = 1_700_000_000_000,
) -> bytes:
    """One batch of format 2. `payload` stands in for the compressed records."""
    count = len(records) if count is None else count
    if payload is None:
        payload = compressed(codec, b"".join(r.encoded(n) for n, r in enumerate(records)))
    attributes = CODECS.index(codec) | flags
    rest = struct.pack(
        ">hiqqqhii", attributes, count - 1, timestamp, timestamp, producer, -1, -1, count
    )
    rest += payload
    return struct.pack(">qiibI", base, len(rest) + 9, 0, 2, calc_crc32c(rest)) + rest


async def produce(bootstrap: str, topic: str, batches: Iterable[bytes], partition: int = 0) -> None:
    """Send batches as they are, one request each."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=20_000)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        for data in batches:
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            request = ProduceRequest(None, -1, 20_000, [(topic, [(partition, data)])])
            for _ in range(50):
                answer = await client.send(node, request)
                error = for_code(answer.topics[0][1][0][1])
                if error is not NotLeaderForPartitionError:
                    break
                await asyncio.sleep(0.1)  # A topic's first leader may not know it yet.
            assert error.errno == 0, f"{topic}: the broker refused: {error.__name__}"
    finally:
        await client.close()
