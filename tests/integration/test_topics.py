"""`ares topics` against a real broker: what it makes, what it says, what it exits with."""

import json

import pytest
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.errors import BrokerError, TopicError
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import count_partitions, create_topics
from ares_stream.streaming.connection import KafkaConnection

pytestmark = pytest.mark.kafka


def ares(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["topics", *arguments])


def test_created_topics_pass_the_check_and_creating_again_changes_nothing(
    kafka: str, prefix: str
) -> None:
    where = ("--bootstrap", kafka, "--prefix", prefix, "--replication", "1", "--partitions", "2")

    created = json.loads(ares("create", *where, "--json").stdout)
    checked = ares("check", *where)
    again = json.loads(ares("create", *where, "--json").stdout)

    assert len(created["created"]) == 9
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
