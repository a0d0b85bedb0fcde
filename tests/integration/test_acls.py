"""Each service on a broker that allows nothing but what the table says, and with each right taken
away in turn: it works with exactly its access control lists, and names the one it misses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.admin import CreateAclsRequest

from ares_stream.errors import AccessError
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.ports import free_ports
from ares_stream.records import topics
from ares_stream.records.acls import SERVICES, Acl, Names, Operation, Service, acls
from ares_stream.records.base import OffsetRange
from ares_stream.records.topics import specs
from ares_stream.streaming.admin import count_partitions, create_topics, describe_topics
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import Journal, group_lag
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection
from tests.support.secured import PASSWORD
from tests.support.sessions import QUICK, Seen, let_go, running, until

pytestmark = pytest.mark.kafka

PREFIX: Final = "x."
NAMES: Final = Names(PREFIX)
SECONDS: Final = 150.0
"""Readers wait for a transaction that was left open, up to the 30 s after which it ends."""
CODES: Final = {
    "topic": 2,
    "group": 3,
    "transactional-id": 5,
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Describe": 8,
    "DescribeConfigs": 10,
}
"""Kafka's numbers of resources and operations."""

Right = tuple[str, str, str]
"""Resource, name, operation."""


def rights(service: Service) -> list[Right]:
    found: list[Right] = [
        (item.resource, item.name, operation)
        for item in acls(service, NAMES)
        for operation in item.operations
        # The scorer goes on without: it learns what is too large from the broker.
        if (service, operation) != ("scorer", "DescribeConfigs")
    ]
    # The topics that are made and that are replayed differ by name alone.
    return found[-4:] if service in ("topics", "replayer") else found


def without(service: Service, right: Right, *instead: Operation) -> list[Acl]:
    resource, name, operation = right
    entries = []
    for item in acls(service, NAMES):
        kept = item.operations
        if (item.resource, item.name) == (resource, name):
            kept = (*(other for other in kept if other != operation), *instead)
        if kept:
            entries.append(Acl(item.resource, item.name, kept, item.prefixed))
    return entries


CASES: Final = [(service, right) for service in SERVICES for right in rights(service)]
SEEN: Final[list[tuple[Service, Right]]] = [
    (service, right)
    # A scorer that is forbidden leaves a transaction open, for whose end readers wait.
    for service, right in sorted(CASES, key=lambda case: case[0])
    if service in ("monitor", "scorer")
    and right[2] in ("Read", "Write")
    and right[1] != NAMES.topic(topics.RATES)
]
"""Rights that are missing while the resource can be described."""
ALL: Final[dict[str, list[Acl]]] = {
    **{service: list(acls(service, NAMES)) for service in SERVICES},
    **{f"{s}-{number}": without(s, right) for number, (s, right) in enumerate(CASES)},
    **{
        f"{s}-seen-{number}": without(s, right, "Describe")
        for number, (s, right) in enumerate(SEEN)
    },
}
"""Users and what they may do."""


class GrantAll(CreateAclsRequest):  # type: ignore[misc]
    """Every access control list in one request."""

    def __init__(self, users: dict[str, list[Acl]]) -> None:
        super().__init__(2, "", 3, "", "*", 3, 3)
        self._rows = [
            (CODES[item.resource], item.name, 4 if item.prefixed else 3, f"User:{user}", "*",
             CODES[operation], 3)
            for user, entries in users.items()
            for item in entries
            for operation in item.operations
        ]  # fmt: skip

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._rows)


@dataclass(frozen=True)
class Authorized:
    """A broker that allows what is granted; `open` is its administrator's way in."""

    open: KafkaConnection
    sasl: str
    folder: Path

    def as_user(self, user: str) -> KafkaConnection:
        return KafkaConnection(
            bootstrap=self.sasl,
            protocol="SASL_PLAINTEXT",
            mechanism="PLAIN",
            username=user,
            password_file=self.folder / "password",
        )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authorized]:
    folder = tmp_path_factory.mktemp("acls")
    (folder / "password").write_text(PASSWORD)
    (folder / "kafka").mkdir()
    plain, control, sasl = free_ports(3)
    (folder / "kafka" / "ports.json").write_text(json.dumps([plain, control]))
    listeners = (
        f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{control},"
        f"SASL_PLAINTEXT://127.0.0.1:{sasl}"
    )
    known = " ".join(f'user_{user}="{PASSWORD}"' for user in ALL)
    properties = {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        "SASL_PLAINTEXT:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": "org.apache.kafka.common.security."
        f"plain.PlainLoginModule required {known};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": "User:ANONYMOUS",
    }

    async def grant(connection: KafkaConnection) -> None:
        await create_topics(connection, specs(PREFIX, partitions=1, replication=1))
        client = AIOKafkaAdminClient(**connection.client_arguments())
        await client.start()
        try:
            answer = await client._send_request(GrantAll(ALL))
            assert {code for code, _ in answer.creation_responses} == {0}
        finally:
            await client.close()
        async with Publisher(connection) as publisher:
            await publisher.publish(
                [OutboundRecord(spec.name, b"k", b"{}") for spec in specs(PREFIX)]
            )

    with EmbeddedBroker(data_dir=folder / "kafka", properties=properties) as started:
        connection = KafkaConnection(bootstrap=started.bootstrap)
        asyncio.run(grant(connection))
        yield Authorized(connection, f"127.0.0.1:{sasl}", folder)


# What each service does with Kafka, call by call.


def topic(name: str) -> str:
    return NAMES.topic(name)


async def publish(connection: KafkaConnection, *names: str) -> None:
    for name in names:
        async with Publisher(connection, publish_seconds=SECONDS) as publisher:
            await publisher.publish([OutboundRecord(topic(name), b"k", b"{}")])


async def read_all(connection: KafkaConnection, *names: str) -> None:
    for name in names:
        await read_latest(connection, topic(name))


async def append(connection: KafkaConnection, owner: str, *names: str) -> None:
    async with Journal(connection, f"{PREFIX}{owner}") as journal:
        await journal.append([OutboundRecord(topic(name), b"k", b"{}") for name in names])


def without_write(service: Service, name: str) -> str:
    """The user that is the service without Write on a topic."""
    return f"{service}-{CASES.index((service, ('topic', NAMES.topic(name), 'Write')))}"


async def own_and_settle(connection: KafkaConnection, name: str, group: str) -> None:
    await count_partitions(connection, [topic(name)])
    queue = Queue(connection, topic(name), group)
    await queue.start()
    try:
        while not (owned := await queue.waiting()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        whole = OffsetRange(
            topic=topic(name), partition=0, start=owned[0].committed, end=owned[0].stable
        )
        await queue.commit([whole])
    finally:
        await queue.stop()


async def topics_job(connection: KafkaConnection) -> None:
    wanted = specs(PREFIX, partitions=1, replication=1)
    await create_topics(connection, wanted)
    await describe_topics(connection, [spec.name for spec in wanted])


async def producer(connection: KafkaConnection) -> None:
    await publish(connection, topics.PRODUCTION)


class Scored:
    """One outcome for each output; every second record is refused."""

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        outputs = (topics.VERDICTS, topics.REPAIR, topics.REVIEW)
        return [
            Rejection("score", "StreamError", "refused")
            if record.value == b"refused"
            else tuple(OutboundRecord(topic(name), record.key, b"{}") for name in outputs)
            for record in records
        ]


async def scorer(connection: KafkaConnection) -> None:
    await read_latest(connection, topic(topics.RELEASES))
    seen = Seen()
    processor = Processor(
        connection,
        service="scorer",
        group=NAMES.group("scorer"),
        topics=NAMES.interactions(),
        handler=Scored(),
        deadletter_topic=topic(topics.DEADLETTERS),
        output_topics=[topic(i) for i in (topics.VERDICTS, topics.REPAIR, topics.REVIEW)],
        id_prefix=PREFIX,
        policy=QUICK,
        observer=seen,
    )
    async with running(processor) as task:
        # Each topic its own: what another test left on the others counts for none.
        wanted = NAMES.interactions()
        await until(lambda: task.done() or all(seen.by_topic[name] >= 2 for name in wanted))


async def monitor(connection: KafkaConnection) -> None:
    await own_and_settle(connection, topics.RATES, NAMES.group("monitor"))
    await append(connection, "monitor", topics.RATES, topics.ALARMS)
    followed = [
        *(topics.VERDICTS, topics.LABELS, topics.DEADLETTERS),
        *(topics.ALARMS, topics.RELEASES),
    ]
    await read_all(connection, topics.RATES, *followed)
    async with Follower(connection, [topic(name) for name in followed], {}) as follower:
        await follower.poll()
    await publish(connection, topics.ANCHOR)


async def prober(connection: KafkaConnection) -> None:
    await append(connection, "prober.nightly", topics.PROBE)
    await read_all(connection, topics.PROBE, topics.VERDICTS, topics.DEADLETTERS, topics.REPAIRS)
    watched = [topic(topics.PRODUCTION), topic(topics.PROBE)]
    await group_lag(connection, NAMES.group("scorer"), watched)


async def repairer(connection: KafkaConnection) -> None:
    await own_and_settle(connection, topics.REPAIR, NAMES.group("repairer"))
    await read_all(connection, topics.REPAIR, topics.LABELS, topics.REPAIRS, topics.RELEASES)
    await publish(connection, topics.REPAIRS, topics.RELEASES)


async def notary(connection: KafkaConnection) -> None:
    await own_and_settle(connection, topics.NOTARY, NAMES.group("notary"))
    own = (topics.NOTARY, topics.SALTS, topics.CHECKPOINTS)
    await append(connection, "notary", *own)
    await read_all(connection, *NAMES.notarised, topics.RELEASES, *own)


async def console(connection: KafkaConnection) -> None:
    decided = (topics.LABELS, topics.ALARMS, topics.RELEASES)
    shown = (topics.REVIEW, topics.REPAIR, topics.REPAIRS, topics.RATES)
    await read_all(connection, *shown, *decided)
    await publish(connection, *decided)


async def replayer(connection: KafkaConnection) -> None:
    for spec in specs(PREFIX):
        await read_latest(connection, spec.name)
    await describe_topics(connection, [spec.name for spec in specs(PREFIX)])


async def eraser(connection: KafkaConnection) -> None:
    await read_all(connection, topics.SALTS)
    await publish(connection, topics.SALTS)


WORK: Final[dict[Service, Callable[[KafkaConnection], Awaitable[None]]]] = {
    "topics": topics_job,
    "producer": producer,
    "scorer": scorer,
    "monitor": monitor,
    "prober": prober,
    "repairer": repairer,
    "notary": notary,
    "console": console,
    "replayer": replayer,
    "eraser": eraser,
}


async def send_inputs(broker: Authorized) -> None:
    async with Publisher(broker.open) as publisher:
        await publisher.publish(
            [
                OutboundRecord(name, b"k", value)
                for name in NAMES.interactions()
                for value in (b"{}", b"refused")
            ]
        )


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_works_with_exactly_its_access_control_lists(
    broker: Authorized, service: Service
) -> None:
    await send_inputs(broker)
    async with asyncio.timeout(SECONDS):
        await WORK[service](broker.as_user(service))


async def refused(broker: Authorized, service: Service, user: str) -> str:
    """What the service says when it works as a user who lacks a right."""
    if service == "scorer":
        await send_inputs(broker)
    with pytest.raises(AccessError) as told:
        async with asyncio.timeout(SECONDS):
            await WORK[service](broker.as_user(user))
    return str(told.value)


@pytest.mark.parametrize(
    ("number", "service", "right"),
    [(number, *case) for number, case in enumerate(CASES)],
    ids=[f"{service}: {' '.join(reversed(right))}" for service, right in CASES],
)
async def test_a_service_names_the_right_that_it_misses(
    broker: Authorized, number: int, service: Service, right: Right
) -> None:
    told = await refused(broker, service, f"{service}-{number}")
    _, name, operation = right
    # Without Read and Write a topic cannot even be seen.
    assert name in told
    assert f"{operation} on" in told or "Describe on" in told
    assert PASSWORD not in told


@pytest.mark.parametrize(
    ("number", "service", "right"),
    [(number, *case) for number, case in enumerate(SEEN)],
    ids=[f"{service}: {' '.join(reversed(right))}" for service, right in SEEN],
)
async def test_a_right_that_is_missing_on_what_can_be_described_is_named_and_not_waited_for(
    broker: Authorized, number: int, service: Service, right: Right
) -> None:
    told = await refused(broker, service, f"{service}-seen-{number}")
    await let_go()
    _, name, operation = right
    assert f"{operation} on" in told
    assert name in told


@pytest.mark.parametrize("forbidden", [topics.RATES, topics.ALARMS])
@pytest.mark.parametrize("order", ["before the next send", "after all sends", "and no abort"])
async def test_a_refusal_is_told_whenever_it_comes_and_whatever_fails_after_it(
    broker: Authorized, monkeypatch: pytest.MonkeyPatch, forbidden: str, order: str
) -> None:
    user = broker.as_user(without_write("monitor", forbidden))
    names = (topics.RATES, topics.ALARMS, topics.RATES)
    async with Journal(user, f"{PREFIX}monitor") as journal:
        producer = journal._producer
        assert producer is not None
        send, ask = producer.send, producer._sender._do_add_partitions_to_txn
        all_sent = asyncio.Event()
        count = 0

        async def send_in_order(*args: Any, **more: Any) -> Any:
            nonlocal count
            future = await send(*args, **more)
            count += 1
            if count == len(names):
                all_sent.set()
            if order == "before the next send" and args[0] == topic(forbidden):
                await until(lambda: not producer._txn_manager.is_in_transaction())
            return future

        async def ask_in_order(partitions: Any) -> Any:
            if order == "after all sends":
                await all_sent.wait()
            return await ask(partitions)

        async def no_abort() -> None:
            raise RequestTimedOutError

        monkeypatch.setattr(producer, "send", send_in_order)
        monkeypatch.setattr(producer._sender, "_do_add_partitions_to_txn", ask_in_order)
        if order == "and no abort":
            monkeypatch.setattr(producer, "abort_transaction", no_abort)
        with pytest.raises(AccessError, match=f"Write on topic {topic(forbidden)};"):
            await journal.append([OutboundRecord(topic(name), b"k", b"{}") for name in names])
    await let_go()
