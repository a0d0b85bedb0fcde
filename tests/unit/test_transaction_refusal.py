"""Why a transaction failed: the broker's first refusal, whatever the client makes of it later."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    InvalidTxnState,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.structs import TopicPartition

from ares_stream.errors import AccessError
from ares_stream.streaming import publisher as publishing
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import explained, first_refusal
from ares_stream.streaming.publisher import Publisher, transaction_outcome, transaction_refusal
from ares_stream.streaming.records import OutboundRecord

REFUSAL = TopicAuthorizationFailedError({"x.rates"})


@pytest.fixture
async def producer() -> Any:
    """A producer in a transaction, as far as its outcome is concerned."""
    manager = TransactionManager("x.monitor", 30_000)
    manager.set_pid_and_epoch(1, 0)
    manager.begin_transaction()
    return SimpleNamespace(_txn_manager=manager)


def aborted(manager: Any) -> None:
    manager.error_transaction(REFUSAL)
    manager.aborting_transaction()
    manager.complete_transaction()


def failed_once_more(manager: Any) -> None:
    manager.error_transaction(REFUSAL)
    manager.fatal_error(KafkaError("Unexpected error during batch delivery"))


def not_ended(manager: Any) -> None:
    manager.error_transaction(REFUSAL)


@pytest.mark.parametrize("then", [not_ended, aborted, failed_once_more])
async def test_a_refusal_outlives_what_the_client_does_after_it(producer: Any, then: Any) -> None:
    begun = transaction_outcome(producer)
    then(producer._txn_manager)
    assert transaction_refusal(producer, begun) is REFUSAL


async def test_a_refusal_of_the_abort_is_told_too(producer: Any) -> None:
    begun = transaction_outcome(producer)
    refusal = TransactionalIdAuthorizationFailed("x.monitor")
    producer._txn_manager.error_transaction(InvalidTxnState())
    producer._txn_manager.fatal_error(refusal)
    assert transaction_refusal(producer, begun) is refusal
    producer._txn_manager.wait_for_transaction_end().exception()


@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
async def test_a_refusal_of_a_send_is_told_whichever_send_failed_first(
    producer: Any, places: tuple[int, int]
) -> None:
    begun = transaction_outcome(producer)
    loop = asyncio.get_running_loop()
    sent = [loop.create_future() for _ in range(4)]
    for place, error in zip(places, (REFUSAL, InvalidTxnState()), strict=True):
        sent[place].set_exception(error)
    sent[2].cancel()
    assert transaction_refusal(producer, begun, sent) is REFUSAL
    assert transaction_refusal(producer, begun, [sent[places[1]], *sent[2:]]) is None


def test_what_is_no_refusal_is_none() -> None:
    assert first_refusal([None, InvalidTxnState(), ConnectionError()]) is None


async def test_a_publisher_tells_the_refusal_and_not_that_its_next_send_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Producer:
        async def start(self) -> None: ...

        async def send(self, topic: str, **_: object) -> asyncio.Future[Any]:
            if topic == "x.alarms":
                raise KafkaError("the sender has ended")
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Any] = loop.create_future()
            loop.call_soon(future.set_exception, REFUSAL)
            return future

        async def stop(self) -> None: ...

    monkeypatch.setattr(publishing, "AIOKafkaProducer", lambda **_: Producer())
    publisher = Publisher(KafkaConnection())
    with pytest.raises(AccessError, match=r"Write on topic x\.rates;"):
        await publisher.publish(
            [OutboundRecord(name, b"k", b"{}") for name in ("x.rates", "x.alarms")]
        )


@pytest.mark.parametrize(
    ("named", "right"),
    [
        (TopicPartition("x", 0), "Read on topic x;"),
        ({TopicPartition("x", 0), TopicPartition("y", 1)}, "Read on topic x, y;"),
        ({"x"}, "Write on topic x;"),
        ("x", "Write on topic x;"),
    ],
)
def test_a_refusal_that_names_partitions_is_of_the_commit_of_offsets_which_needs_read(
    named: object, right: str
) -> None:
    error = TopicAuthorizationFailedError(named)
    assert right in str(explained(error, "kafka:9092", on_topic="Write"))
