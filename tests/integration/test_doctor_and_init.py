"""The first minutes: what `ares init` makes of a sample, and what `ares doctor` finds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.topics import TopicSpec
from ares_stream.services.settings import load_settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord

OPENAI = {
    "request": {"messages": [{"role": "user", "content": "hi"}], "model": "m-1"},
    "response": {"choices": [{"message": {"role": "assistant", "content": "hello"}}]},
    "created": 1_760_000_000,
}
PLAIN = {"question": "hi", "answer": "hello", "timestamp": "2026-01-01T00:00:00Z", "model": "m"}
PARTS = [{"type": "text", "text": "hello"}]
ANTHROPIC = {
    "request": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "response": {"type": "message", "model": "m-1", "content": PARTS, "stop_reason": "end_turn"},
}
RESPONSES = {
    "request": {"model": "m", "input": "hi"},
    "response": {"output": [{"type": "message", "role": "assistant", "content": PARTS}]},
}
LANGFUSE = {
    "traceId": "t", "id": "1", "type": "GENERATION", "model": "m",
    "input": [{"role": "user", "content": "hi"}],
    "output": {"role": "assistant", "content": "hello"},
}  # fmt: skip
LITELLM = {
    "id": "1", "call_type": "acompletion", "model_group": "m", "startTime": 1_760_000_000.0,
    "messages": [{"role": "user", "content": "hi"}],
    "response": {"choices": [{"message": {"role": "assistant", "content": "hello"}}]},
}  # fmt: skip
NAMELESS = {
    "messages": [{"role": "user", "content": "hi"}],
    "choices": [{"message": {"role": "assistant", "content": "hello"}}],
}
PRESETS: list[tuple[str, dict[str, Any], str | None]] = [
    ("openai", OPENAI, "openai"),
    ("responses", RESPONSES, "openai"),
    ("anthropic", ANTHROPIC, "anthropic"),
    ("langfuse", LANGFUSE, "langfuse"),
    ("litellm", LITELLM, "litellm"),
    ("without a model", NAMELESS, None),
    ("plain", PLAIN, None),
]
INTERACTION = {
    "id": "1",
    "occurred_at": "2026-01-01T00:00:00Z",
    "messages": [{"role": "user", "content": "hi"}],
    "response": "hello",
    "policy": {"name": "m", "version": "1"},
}


def ares(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("record", "preset"),
    [*[item[1:] for item in PRESETS], (INTERACTION, None)],
    ids=[*[item[0] for item in PRESETS], "ours"],
)
def test_init_finds_how_a_sample_is_read(
    record: dict[str, Any], preset: str | None, tmp_path: Path
) -> None:
    sample, out = tmp_path / "sample.jsonl", tmp_path / "ares.yaml"
    sample.write_text(f"{json.dumps(record)}\n" * 5)

    done = ares("init", "--topic", "chat", "--sample", str(sample), "--out", str(out))

    assert done.exit_code == 0, done.output
    (item,) = load_settings(out).scorer.inputs
    raw = json.dumps(record).encode()
    interaction = decode_interaction(b"k", raw, (), DecodingLimits(), item.map, timestamp_ms=0)
    assert (interaction.prompt, interaction.response) == ("hi", "hello")
    assert (item.map and item.map.preset) == preset


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}", "\\ud800", "not JSON"]
)
def test_init_passes_over_what_is_no_json(line: str, tmp_path: Path) -> None:
    sample, out = tmp_path / "sample.jsonl", tmp_path / "ares.yaml"
    sample.write_text(f"{line}\n{json.dumps(PLAIN)}\n")
    done = ares("init", "--topic", "chat", "--sample", str(sample), "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "1 of 2 records are read" in done.output


def test_init_names_the_fields_of_what_it_does_not_know(tmp_path: Path) -> None:
    sample, out = tmp_path / "sample.jsonl", tmp_path / "ares.yaml"
    sample.write_text('{"frage": "geheim", "sehr": {"tief": "geheim"}}\n')

    done = ares("init", "--topic", "chat", "--sample", str(sample), "--out", str(out))

    assert done.exit_code == 1
    assert "sehr.tief" in done.output
    assert "geheim" not in done.output
    assert not out.exists()


@pytest.mark.kafka
async def test_init_reads_the_topic_itself(kafka: str, prefix: str, tmp_path: Path) -> None:
    connection, topic = KafkaConnection(bootstrap=kafka), f"{prefix}chat"
    await create_topics(connection, [TopicSpec(topic, 2, 1)])
    async with Publisher(connection) as publisher:
        raw = json.dumps(PLAIN).encode()
        await publisher.publish([OutboundRecord(topic, b"k", raw) for _ in range(3)])
    out = tmp_path / "ares.yaml"

    done = await asyncio.to_thread(
        ares, "init", "--topic", topic, "--bootstrap", kafka, "--out", str(out)
    )

    assert done.exit_code == 0, done.output
    assert yaml.safe_load(out.read_text())["scorer"]["inputs"][0]["map"]["prompt"] == "question"


@pytest.mark.kafka
def test_doctor_says_what_is_missing_and_then_that_all_is_there(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    settings = tmp_path / "ares.yaml"
    content: dict[str, Any] = {
        "kafka": {"bootstrap": kafka},
        "topic_prefix": prefix,
        "scorer": {"harm": [str(tmp_path / "judge")], "reward": str(tmp_path / "reward")},
    }
    settings.write_text(yaml.safe_dump(content))

    before = findings(settings)
    write_judge(tmp_path / "judge")
    write_reward(tmp_path / "reward")
    ares("topics", "create", "--settings", str(settings))
    after = findings(settings)

    assert {what for what, state in before if state == "fail"} == {"bundle", "topics"}
    assert {what for what, state in after if state == "fail"} == set()
    assert {"python", "cores", "disk", "provider", "broker", "topics", "clocks", "bundle"} <= {
        what for what, state in after if state == "ok"
    }


def test_doctor_without_a_broker_says_so(tmp_path: Path) -> None:
    settings = tmp_path / "ares.yaml"
    settings.write_text("kafka: {bootstrap: '127.0.0.1:1'}\n")
    assert ("broker", "fail") in findings(settings)


def findings(settings: Path) -> list[tuple[str, str]]:
    done = ares("doctor", "--settings", str(settings), "--json")
    found = [(item["what"], item["state"]) for item in json.loads(done.stdout)["findings"]]
    assert done.exit_code == (1 if any(state == "fail" for _, state in found) else 0)
    return found
