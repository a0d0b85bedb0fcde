"""What a broker answers to a fetch beside records."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, NodeNotReadyError
from aiokafka.protocol.fetch import FetchResponse_v4

from ares_stream.streaming.faults import explained
from ares_stream.streaming.fetching import BatchConsumer
from ares_stream.streaming.log_identity import LastRecord, LogIdentity


class Cluster:
    def leader_for_partition(self, partition: TopicPartition) -> int:
        return 1


class Throttling:
    """A client of a broker whose quota is spent: it answers without any topic (KIP-219)."""

    cluster = Cluster()

    async def send(self, node: int, request: Any) -> Any:
        return FetchResponse_v4(9_000, [])


async def test_who_looks_a_record_up_while_its_quota_is_spent_may_ask_again() -> None:
    consumer = object.__new__(BatchConsumer)
    consumer._client = Throttling()
    consumer._closed = True
    known = LogIdentity(last=LastRecord(3, 1, 2))
    with pytest.raises(KafkaError, match="quota may be spent"):
        await consumer.change_of(TopicPartition("in", 0), known, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KafkaError("the quota is spent"), "Kafka at k:1: KafkaError: the quota is spent"),
        (KafkaConnectionError("Unable to bootstrap from [(...)]"), "Kafka at k:1: no broker "),
        (NodeNotReadyError("not now."), "Kafka at k:1: NodeNotReadyError: not now. It is "),
        (OSError("gone"), "Kafka at k:1: OSError: gone"),
        (TimeoutError(), "Kafka at k:1: TimeoutError"),
    ],
)
def test_an_error_of_the_client_is_told_once(error: Exception, said: str) -> None:
    told = str(explained(error, "k:1"))
    assert told.startswith(said)
    assert told.count("Error") <= 1
