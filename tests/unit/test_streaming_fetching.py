"""What a broker answers to a fetch beside records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, NodeNotReadyError
from aiokafka.protocol.fetch import FetchRequest, FetchResponse_v4

from ares_stream.streaming.faults import explained
from ares_stream.streaming.fetching import BatchConsumer, _BatchFetcher
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


class Refusing:
    """A client of a broker that answers every fetch of a partition with one error."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.looked = 0

    async def send(self, node: int, request: FetchRequest) -> Any:
        return FetchResponse_v4(0, [("in", [(0, self.code, -1, -1, [], b"")])])

    def force_metadata_update(self) -> None:
        self.looked += 1


@pytest.mark.parametrize("code", [5, 6, 9, 56, 74, 75, 100, 103, 999])
async def test_whatever_a_broker_refuses_a_fetch_with_the_leader_is_looked_for(code: int) -> None:
    """One whose folder is gone says so for ever (KAFKA_STORAGE_ERROR, 56); another may lead."""
    client = Refusing(code)
    fetcher = object.__new__(_BatchFetcher)
    fetcher._client, fetcher._retry_backoff, fetcher._gather_ms = client, 0.0, 0
    fetcher._usual = (1, 1)
    state = SimpleNamespace(has_valid_position=True, position=7)
    assignment = SimpleNamespace(active=True, state_value=lambda partition: state)
    request = FetchRequest(0, 1, 1, 1, [("in", [(0, 7, 1)])])
    assert not await fetcher._proc_fetch_request(assignment, 1, request)
    assert client.looked == 1
