"""Telling scorers by the releases topic what is active. It can be repeated at any time and ends in
the same state, so a kill between the registry and the announcement is mended by announcing again.
"""

from __future__ import annotations

from ares_stream.models.releases import Log, announcements, differences
from ares_stream.records.topics import FIRST_PARTITION
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord


async def announce_topic(connection: KafkaConnection, topic: str, log: Log) -> int:
    """Publish what the topic lacks; returns the number of records. Raises StreamError."""
    latest = await read_latest(connection, topic)
    present = {key: record.value for key, record in latest.items() if record.value is not None}
    missing = differences(announcements(log), present)
    # A key that is not there needs no deletion.
    records = [
        OutboundRecord(topic, key, value, partition=FIRST_PARTITION)
        for key, value in missing.items()
        if value is not None or key in present
    ]
    # What becomes active comes first: a reader that stops between sees the new release.
    records.sort(key=lambda record: (record.value is None, b"@" in (record.key or b"")))
    if records:
        async with Publisher(connection) as publisher:
            await publisher.publish(records)
    return len(records)
