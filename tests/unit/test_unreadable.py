"""What is told of records that cannot be read."""

from ares_stream.errors import DecodeError
from ares_stream.streaming.records import InboundRecord
from ares_stream.streaming.unreadable import PassedOver, UnreadableRecord


def record(offset: int, partition: int = 0, topic: str = "labels") -> InboundRecord:
    return InboundRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=0,
        key=None,
        value=b"the text of a conversation",
        headers=(),
    )


def test_each_record_is_told_once_however_often_its_topic_is_read() -> None:
    told: list[UnreadableRecord] = []
    passed_over = PassedOver(told.append)
    for _ in range(3):
        for item in (record(4), record(9), record(2, partition=1), record(4, topic="repairs")):
            passed_over(item, DecodeError("Field required", field="reviewer"))
    assert [str(item) for item in told] == [
        "labels 0@4: reviewer: Field required",
        "labels 0@9: reviewer: Field required",
        "labels 1@2: reviewer: Field required",
        "repairs 0@4: reviewer: Field required",
    ]
