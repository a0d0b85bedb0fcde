"""Several brokers, one of which is down or does not know yet what the others know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import count_partitions, create_topics, describe_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import ids_of

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

TRIES = 8
"""Which broker is asked first is drawn."""


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(nodes=2) as broker:
        yield broker


async def test_topics_are_asked_of_a_broker_that_is_there(
    two_nodes: EmbeddedBroker, prefix: str
) -> None:
    """A question went to one broker, and failed with it."""
    connection = KafkaConnection(bootstrap=two_nodes.bootstrap)
    name = f"{prefix}topic"
    await create_topics(connection, [TopicSpec(name, 2, 2)])
    expected = await ids_of(connection, [name])
    two_nodes.kill(2)
    for _ in range(TRIES):
        assert await count_partitions(connection, [name]) == {name: 2}
        assert (await describe_topics(connection, [name]))[name].partitions == 2
        assert await ids_of(connection, [name]) == expected
