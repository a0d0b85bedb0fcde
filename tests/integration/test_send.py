"""`ares send`: what arrives is what stands in the file."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot

pytestmark = pytest.mark.kafka


async def held(connection: KafkaConnection, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    ranges = await snapshot(connection, [topic])
    return [(record.key, record.value) async for record in read(connection, ranges)]


def test_each_line_arrives_once_as_it_is(kafka: str, prefix: str, tmp_path: Path) -> None:
    connection, topic = KafkaConnection(bootstrap=kafka), f"{prefix}in"
    asyncio.run(create_topics(connection, [TopicSpec(topic, 1, 1)]))
    lines = [b'{"n": %d, "text": "caf\xc3\xa9"}' % number for number in range(25)]
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"\n".join(lines))
    options = ["--topic", topic, "--bootstrap", kafka, "--rate", "1000"]
    result = CliRunner().invoke(app, ["send", str(file), *options])
    assert result.exit_code == 0, result.output
    assert "25 sent" in result.output
    arrived = asyncio.run(held(connection, topic))
    assert arrived == [(b"line-%d" % number, line) for number, line in enumerate(lines, 1)]


def test_an_empty_file_and_a_missing_topic_are_said(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"\n\n")
    options = ["--topic", f"{prefix}none", "--bootstrap", kafka]
    result = CliRunner().invoke(app, ["send", str(file), *options])
    assert (result.exit_code, "holds no lines" in result.output) == (2, True)
    file.write_bytes(b"{}\n")
    result = CliRunner().invoke(app, ["send", str(file), *options])
    assert (result.exit_code, "missing" in result.output) == (2, True)


def test_with_now_a_conversation_happens_as_it_is_sent(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection, topic = KafkaConnection(bootstrap=kafka), f"{prefix}in"
    asyncio.run(create_topics(connection, [TopicSpec(topic, 1, 1)]))
    old = {"id": "caf\xe9", "occurred_at": "2026-01-01T00:00:00Z", "response": "\U0001f642"}
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps(old, ensure_ascii=False) + "\n" + json.dumps({"id": "b"}))
    options = ["--topic", topic, "--bootstrap", kafka, "--now"]
    before = datetime.now(UTC)
    result = CliRunner().invoke(app, ["send", str(file), *options])
    assert result.exit_code == 0, result.output
    sent = [json.loads(value or b"") for _, value in asyncio.run(held(connection, topic))]
    for item in sent:
        assert before <= datetime.fromisoformat(item["occurred_at"]) <= datetime.now(UTC)
    assert [item | {"occurred_at": None} for item in sent] == [
        old | {"occurred_at": None},
        {"id": "b", "occurred_at": None},
    ]


@pytest.mark.parametrize("line", [b"[1]", b"{", b"null", b"\xff"])
def test_with_now_a_line_that_is_no_conversation_is_named(
    line: bytes, kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection, topic = KafkaConnection(bootstrap=kafka), f"{prefix}in"
    asyncio.run(create_topics(connection, [TopicSpec(topic, 1, 1)]))
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"{}\n" + line + b"\n")
    options = ["--topic", topic, "--bootstrap", kafka, "--now"]
    result = CliRunner().invoke(app, ["send", str(file), *options])
    assert result.exit_code == 2
    assert "line 2: not a JSON object" in " ".join(result.output.split())
