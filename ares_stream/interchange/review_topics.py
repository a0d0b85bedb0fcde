"""What people are asked and what they said, from the topics: for tools beside the console."""

from __future__ import annotations

from collections.abc import Callable

from ares_stream.errors import DecodeError
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.topics import LABELS, REVIEW, topic_name
from ares_stream.streaming.compacted import read_latest_as
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.unreadable import PassedOver


async def read_items(
    connection: KafkaConnection,
    prefix: str,
    take: Callable[[ReviewItem], None],
    passed_over: PassedOver,
) -> None:
    """Every item of the review topic until now, in its order. Raises TopicError, ReadError."""
    ranges = await snapshot(connection, [topic_name(prefix, REVIEW)])
    async for record in read(connection, ranges):
        try:
            item = ReviewItem.decode(record.value or b"")
        except DecodeError as error:
            passed_over(record, error)
            continue
        take(item)


async def read_present_labels(
    connection: KafkaConnection, prefix: str, passed_over: PassedOver
) -> dict[bytes, Label]:
    """The present labels by key: what was undone is not among them."""
    return await read_latest_as(
        connection,
        topic_name(prefix, LABELS),
        lambda record: Label.decode(record.value or b""),
        unreadable=passed_over,
    )
