"""`ares topics` against a real broker: what it makes, what it says, what it exits with."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.errors import BrokerError, TopicError
from ares_stream.records import topics
from ares_stream.records.interaction import Policy
from ares_stream.records.topics import TopicSpec, specs, topic_name
from ares_stream.records.verdict import (
    FailureClass,
    Harm,
    Reward,
    ScoredHigh,
    SourceCoordinates,
    Verdict,
)
from ares_stream.streaming.admin import count_partitions, create_topics
from ares_stream.streaming.connection import KafkaConnection

pytestmark = pytest.mark.kafka


def ares(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["topics", *arguments])


def verdict(interaction: str) -> Verdict:
    return Verdict(
        id=f"verdict-of-{interaction}",
        interaction_id=interaction,
        lane="production",
        source=SourceCoordinates(topic="t", partition=0, offset=0, timestamp_ms=0),
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        policy=Policy(name="p", version="1"),
        harm=Harm(probability=0.9, judges={"judge": 0.9}),
        reward=Reward(score=1.0, quantile=0.8),
        scored_high=ScoredHigh(above_quantile=True),
        failure_class=FailureClass.COUPLED_FAILURE,
        reasons=(),
        releases={"judge": "a" * 64},
        detection_policy="b" * 64,
    )


def test_created_topics_pass_the_check_and_creating_again_changes_nothing(
    kafka: str, prefix: str
) -> None:
    where = ("--bootstrap", kafka, "--prefix", prefix, "--replication", "1", "--partitions", "2")

    created = json.loads(ares("create", *where, "--json").stdout)
    checked = ares("check", *where)
    again = json.loads(ares("create", *where, "--json").stdout)

    assert len(created["created"]) == len(specs())
    assert checked.exit_code == 0, checked.output
    assert again == {"created": [], "existing": created["created"]}


def test_check_names_what_differs_and_exits_1(kafka: str, prefix: str) -> None:
    where = ("--bootstrap", kafka, "--prefix", prefix, "--replication", "1")

    empty = ares("check", *where)
    ares("create", *where, "--partitions", "1")
    small = json.loads(ares("check", *where, "--partitions", "2", "--json").stdout)

    assert empty.exit_code == 1
    assert f"{prefix}verdicts: the topic is missing, expected to exist" in empty.stdout
    assert {item["what"] for item in small["differences"]} == {"partitions"}


async def test_a_missing_topic_is_named_with_what_to_do(kafka: str, prefix: str) -> None:
    with pytest.raises(TopicError, match=f"{prefix}nowhere; create them with `ares topics create`"):
        await count_partitions(KafkaConnection(bootstrap=kafka), [f"{prefix}nowhere"])


async def test_a_topic_that_the_broker_refuses_is_named(kafka: str) -> None:
    with pytest.raises(TopicError, match=r"a/b: cannot be created: .*invalid"):
        await create_topics(KafkaConnection(bootstrap=kafka), [TopicSpec("a/b", 1, 1)])


async def test_a_broker_that_is_not_there_is_an_error_that_a_retry_may_cure() -> None:
    with pytest.raises(BrokerError) as caught:
        await count_partitions(KafkaConnection(bootstrap="127.0.0.1:1"), ["t"], seconds=5)
    assert caught.value.retryable
    assert caught.value.exit_code == 3


def test_a_single_broker_gets_as_many_copies_as_it_can_hold(kafka: str, prefix: str) -> None:
    """Three copies, the default, would be refused."""
    where = ("--bootstrap", kafka, "--prefix", prefix, "--partitions", "1")

    created = ares("create", *where)

    assert created.exit_code == 0, created.output
    assert ares("check", *where).exit_code == 0


def test_a_topic_of_the_users_own_is_made_alone(kafka: str, prefix: str) -> None:
    where = ("--bootstrap", kafka, "--topic", f"{prefix}chat-logs", "--partitions", "2")

    assert json.loads(ares("create", *where, "--json").stdout)["created"] == [f"{prefix}chat-logs"]
    assert json.loads(ares("check", *where, "--json").stdout) == {"topics": 1, "differences": []}


async def test_tail_shows_committed_verdicts_alone(kafka: str, prefix: str) -> None:
    topic = topic_name(prefix, topics.VERDICTS)
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, [TopicSpec(topic, 1, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{prefix}tail")
    await producer.start()
    try:
        for name, kept in (("first", True), ("aborted", False), ("last", True)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, verdict(name).encode())
            await (producer.commit_transaction if kept else producer.abort_transaction)()
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"no verdict")
        await producer.send_and_wait(topic, verdict("closing").encode())
        await producer.commit_transaction()
    finally:
        await producer.stop()
    where = ("--bootstrap", kafka, "--prefix", prefix, "--from-beginning")

    shown = await asyncio.to_thread(run_tail, *where, "--limit", "3", "--json")
    lines = await asyncio.to_thread(run_tail, *where, "--limit", "3")

    assert [json.loads(line)["interaction_id"] for line in shown.stdout.splitlines()] == [
        "first",
        "last",
        "closing",
    ]
    assert "offset 6: no verdict: not JSON" in shown.stderr
    assert [line.split()[-1] for line in lines.stdout.splitlines()] == ["first", "last", "closing"]


def run_tail(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["verdicts", "tail", *arguments])
