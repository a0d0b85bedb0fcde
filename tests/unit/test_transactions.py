"""A transaction's requests: their order, what is asked again, and what each answer means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    DuplicateSequenceNumber,
    GroupAuthorizationFailedError,
    InvalidProducerEpoch,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OperationNotAttempted,
    ProducerFenced,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.protocol import transaction as protocol
from aiokafka.protocol.produce import ProduceResponse_v7
from aiokafka.record.memory_records import MemoryRecords

from ares_stream.streaming import transactions
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.sending import Unsent
from ares_stream.streaming.transactions import TransactionalProducer

IN = TopicPartition("in", 0)
GROUP = "g"
ADDED = ["AddPartitionsToTxn", "AddOffsetsToTxn"]
WRITTEN = ["Produce", "TxnOffsetCommit"]


class Brokers:
    """Two brokers as a client sees them. `faults` are given in turn to requests of a kind: an error
    class is answered, an instance is raised in place of an answer."""

    def __init__(self) -> None:
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.asked: list[str] = []
        self.sequences: dict[TopicPartition, list[tuple[int, int]]] = defaultdict(list)
        self.lookups = 0
        self.updates = 0
        self.leaders: Callable[[TopicPartition], int | None] = lambda partition: 1
        self.cluster = self

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        return self.leaders(partition)

    def force_metadata_update(self) -> None:
        self.updates += 1

    async def _wait_on_metadata(self, topic: str) -> set[int]:
        return {0, 1} if topic == "two" else {0}

    async def coordinator_lookup(self, kind: int, key: str) -> int:
        self.lookups += 1
        name = "Group" if kind == CoordinationType.GROUP else "Transaction"
        for fault in self.faults[name][:1]:
            self.faults[name].pop(0)
            raise fault
        return 2

    async def send(self, node: int, request: Any, **_: Any) -> Any:
        name = type(request).__name__.removesuffix("Request")
        self.asked.append(name)
        fault = self.faults[name].pop(0) if self.faults[name] else None
        if isinstance(fault, Exception):
            raise fault
        code = 0 if fault is None else fault.errno
        if name == "InitProducerId":
            return protocol.InitProducerIdResponse_v0(0, code, 7, 1)
        if name == "AddOffsetsToTxn":
            return protocol.AddOffsetsToTxnResponse_v0(0, code)
        if name == "EndTxn":
            return protocol.EndTxnResponse_v0(0, code)
        if name == "TxnOffsetCommit":
            return protocol.TxnOffsetCommitResponse_v0(0, [("in", [(0, code)])])
        if name == "AddPartitionsToTxn":
            found = [(topic, numbers) for topic, numbers in request._topics]
            first = True
            answers: list[tuple[str, list[tuple[int, int]]]] = []
            for topic, numbers in found:
                codes = []
                for number in numbers:
                    rest = OperationNotAttempted.errno if code else 0
                    codes.append((number, code if first else rest))
                    first = False
                answers.append((topic, codes))
            return protocol.AddPartitionsToTxnResponse_v0(0, answers)
        assert name == "Produce"
        return self._produced(request, code)

    def _produced(self, request: Any, code: int) -> Any:
        """The fault is that of the first partition alone."""
        answers = []
        for topic, batches in request._topics:
            of_topic = []
            for number, data in batches:
                batch = MemoryRecords(data).next_batch()
                assert batch is not None
                partition = TopicPartition(topic, number)
                self.sequences[partition].append((sequence_of(data), len(list(batch))))
                of_topic.append((number, code, 5, -1, 0))
                code = 0
            answers.append((topic, of_topic))
        return ProduceResponse_v7(answers, 0)


def sequence_of(data: bytes) -> int:
    """https://kafka.apache.org/documentation/#recordbatch"""
    return int.from_bytes(data[53:57], "big")


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    monkeypatch.setattr(transactions, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(transactions, "MARKERS_SECONDS", 0.0)
    return Brokers()


async def started(brokers: Brokers, size: int = 1 << 17) -> TransactionalProducer:
    producer = TransactionalProducer(brokers, "p.in.0", timeout_ms=1000, batch_bytes=size)
    await producer.start()
    return producer


def records(topic: str, count: int, size: int = 1) -> list[OutboundRecord]:
    return [OutboundRecord(topic, b"%d" % number, b"v" * size) for number in range(count)]


async def write(
    producer: TransactionalProducer, outputs: Sequence[OutboundRecord]
) -> Mapping[int, Unsent]:
    await producer.begin(outputs, GROUP)
    return await producer.write({IN: (5, "")})


async def whole(producer: TransactionalProducer, outputs: Sequence[OutboundRecord]) -> None:
    assert await write(producer, outputs) == {}
    await producer.commit()


async def test_what_is_written_to_is_added_first_and_all_is_written_before_the_commit(
    brokers: Brokers,
) -> None:
    producer = await started(brokers)
    await whole(producer, records("two", 20))
    first, *asked, last = brokers.asked
    assert (first, last) == ("InitProducerId", "EndTxn")
    assert (set(asked[:2]), set(asked[2:])) == (set(ADDED), set(WRITTEN))
    assert not producer.lacks_answers


async def test_offsets_alone_are_a_transaction_without_partitions(brokers: Brokers) -> None:
    producer = await started(brokers)
    await whole(producer, [])
    assert brokers.asked == ["InitProducerId", "AddOffsetsToTxn", "TxnOffsetCommit", "EndTxn"]


async def test_sequences_of_a_partition_go_on_over_batches_and_transactions(
    brokers: Brokers,
) -> None:
    producer = await started(brokers, size=250)
    for _ in range(2):
        await whole(producer, records("one", 5, size=60))
    expected = 0
    for sequence, count in brokers.sequences[TopicPartition("one", 0)]:
        assert sequence == expected
        expected += count
    assert expected == 10


@pytest.mark.parametrize("request_name", ["InitProducerId", *ADDED, "TxnOffsetCommit", "EndTxn"])
@pytest.mark.parametrize(
    "fault", [ConcurrentTransactions, CoordinatorLoadInProgressError, NotCoordinatorError]
)
async def test_a_coordinator_that_cannot_yet_is_asked_again(
    brokers: Brokers, request_name: str, fault: type[KafkaError]
) -> None:
    brokers.faults[request_name] = [fault, fault]
    producer = await started(brokers)
    await whole(producer, records("one", 3))
    assert brokers.asked.count(request_name) == 3
    assert not producer.lacks_answers
    moved = 2 if fault is NotCoordinatorError else 0
    assert brokers.lookups == 2 + moved


@pytest.mark.parametrize("request_name", [*ADDED, *WRITTEN])
@pytest.mark.parametrize("fault", [KafkaConnectionError("gone"), RequestTimedOutError()])
async def test_a_request_that_is_lost_is_asked_again_and_another_epoch_must_follow(
    brokers: Brokers, request_name: str, fault: Exception
) -> None:
    brokers.faults[request_name] = [fault]
    producer = await started(brokers)
    await whole(producer, records("one", 3))
    assert brokers.asked.count(request_name) == 2
    assert producer.lacks_answers


async def test_a_start_that_is_lost_is_made_again_and_begins_an_epoch_of_its_own(
    brokers: Brokers,
) -> None:
    brokers.faults["InitProducerId"] = [KafkaConnectionError("gone")]
    producer = await started(brokers)
    assert brokers.asked == ["InitProducerId"] * 2
    assert not producer.lacks_answers


@pytest.mark.parametrize("fault", [KafkaConnectionError("gone"), RequestTimedOutError()])
async def test_a_commit_that_is_lost_is_not_asked_for_twice(
    brokers: Brokers, fault: Exception
) -> None:
    brokers.faults["EndTxn"] = [fault]
    producer = await started(brokers)
    with pytest.raises(type(fault)):
        await whole(producer, records("one", 3))
    assert brokers.asked.count("EndTxn") == 1


@pytest.mark.parametrize("request_name", [*ADDED, *WRITTEN, "EndTxn"])
async def test_whoever_is_fenced_learns_it_from_the_first_answer(
    brokers: Brokers, request_name: str
) -> None:
    brokers.faults[request_name] = [InvalidProducerEpoch]
    producer = await started(brokers)
    with pytest.raises(ProducerFenced):
        await whole(producer, records("one", 3))
    later = {"EndTxn"} if request_name in WRITTEN else {*WRITTEN, "EndTxn"}
    assert request_name == "EndTxn" or not later & set(brokers.asked)


@pytest.mark.parametrize(
    ("request_name", "refusal", "named"),
    [
        ("InitProducerId", TransactionalIdAuthorizationFailed, "p.in.0"),
        ("AddPartitionsToTxn", TransactionalIdAuthorizationFailed, "p.in.0"),
        ("AddPartitionsToTxn", TopicAuthorizationFailedError, {"one"}),
        ("AddOffsetsToTxn", TransactionalIdAuthorizationFailed, "p.in.0"),
        ("AddOffsetsToTxn", GroupAuthorizationFailedError, GROUP),
        ("TxnOffsetCommit", GroupAuthorizationFailedError, GROUP),
        ("TxnOffsetCommit", TopicAuthorizationFailedError, IN),
        ("EndTxn", TransactionalIdAuthorizationFailed, "p.in.0"),
    ],
)
async def test_a_refusal_names_what_is_forbidden(
    brokers: Brokers, request_name: str, refusal: type[KafkaError], named: object
) -> None:
    brokers.faults[request_name] = [refusal]
    with pytest.raises(refusal) as caught:
        await whole(await started(brokers), records("one", 3))
    assert caught.value.args == (named,)


@pytest.mark.parametrize(
    ("kind", "refusal", "named"),
    [
        ("Transaction", TransactionalIdAuthorizationFailed, "p.in.0"),
        ("Group", GroupAuthorizationFailedError, GROUP),
    ],
)
async def test_a_refused_look_up_names_what_was_looked_up(
    brokers: Brokers, kind: str, refusal: type[KafkaError], named: str
) -> None:
    brokers.faults[kind] = [refusal()]
    with pytest.raises(refusal) as caught:
        await whole(await started(brokers), [])
    assert caught.value.args == (named,)


@pytest.mark.parametrize("fault", [NodeNotReadyError("x"), KafkaConnectionError("x")])
async def test_a_look_up_that_is_lost_is_made_again_and_leaves_nothing_behind(
    brokers: Brokers, fault: Exception
) -> None:
    brokers.faults["Transaction"] = [fault]
    producer = await started(brokers)
    assert brokers.lookups == 2
    assert not producer.lacks_answers


async def test_a_partition_that_was_not_attempted_is_no_success(brokers: Brokers) -> None:
    brokers.faults["AddPartitionsToTxn"] = [OperationNotAttempted]
    with pytest.raises(OperationNotAttempted):
        await write(await started(brokers), records("two", 20))
    assert "Produce" not in brokers.asked


async def test_an_error_that_no_retry_mends_ends_the_transaction(brokers: Brokers) -> None:
    brokers.faults["EndTxn"] = [InvalidTxnState]
    with pytest.raises(InvalidTxnState):
        await whole(await started(brokers), records("one", 1))


async def test_a_batch_that_was_there_already_is_written(brokers: Brokers) -> None:
    brokers.faults["Produce"] = [KafkaConnectionError("gone"), DuplicateSequenceNumber]
    producer = await started(brokers)
    assert await write(producer, records("one", 3)) == {}
    partition = TopicPartition("one", 0)
    assert brokers.sequences[partition] == [(0, 3)]
    assert await write(producer, records("one", 2)) == {}
    assert brokers.sequences[partition] == [(0, 3), (3, 2)]


async def test_a_leader_that_moved_is_asked_for_and_only_its_batches_are_sent_again(
    brokers: Brokers,
) -> None:
    brokers.faults["Produce"] = [NotLeaderForPartitionError]
    assert await write(await started(brokers), records("two", 20)) == {}
    sent = sorted(len(several) for several in brokers.sequences.values())
    assert sent == [1, 2]
    assert brokers.updates == 1


async def test_partitions_of_unknown_leaders_wait_for_them(brokers: Brokers) -> None:
    asked: list[TopicPartition] = []

    def leader(partition: TopicPartition) -> int | None:
        asked.append(partition)
        return {0: None, 1: -1}.get(len(asked) - 1, 1)

    brokers.leaders = leader
    assert await write(await started(brokers), records("one", 1)) == {}
    assert brokers.updates == 2


async def test_leaders_are_asked_each_for_its_own_partitions(brokers: Brokers) -> None:
    brokers.leaders = lambda partition: partition.partition
    assert await write(await started(brokers), records("two", 20)) == {}
    assert brokers.asked.count("Produce") == 2


async def test_a_failed_batch_is_told_for_each_of_its_records_and_no_other(
    brokers: Brokers,
) -> None:
    """What was refused has used no sequence number: the next batch has it."""
    brokers.faults["Produce"] = [None, MessageSizeTooLargeError]
    producer = await started(brokers, size=150)
    unsent = await write(producer, records("one", 9, size=20))
    sent = brokers.sequences[TopicPartition("one", 0)]
    assert [sequence for sequence, _ in sent[:3]] == [0, sent[0][1], sent[0][1]]
    assert sorted(unsent) == list(range(sent[0][1], sent[0][1] + sent[1][1]))
    for item in unsent.values():
        assert isinstance(item.error, MessageSizeTooLargeError)
        assert item.shared == (sent[1][1] > 1)


async def test_a_topic_that_may_not_be_written_is_named(brokers: Brokers) -> None:
    brokers.faults["Produce"] = [TopicAuthorizationFailedError]
    unsent = await write(await started(brokers), records("one", 1))
    assert unsent[0].error.args == ("one",)
