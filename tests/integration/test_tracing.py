"""Traces on a real broker and a real OTLP receiver: one interaction is followed from its producer's
span to the release that it led to, and what nobody samples costs no span."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.records import topics
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.traces import span_id, trace_id
from ares_stream.services.repairer import Repairer
from ares_stream.services.scorer import Scorer
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.failures import sentence
from tests.support.served import Served, repairer_settings

pytestmark = pytest.mark.kafka

SECONDS: Final = 90.0
CANARY: Final = "xylocanary"
SAMPLED, UNSAMPLED, UNTRACED = 24, 8, 8


class Collector:
    """An OTLP/HTTP receiver; `spans` are those that came, with their resource's service."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.tokens: set[str | None] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                assert CANARY.encode() not in raw
                collector.tokens.add(self.headers["authorization"])
                request = ExportTraceServiceRequest.FromString(raw)
                for item in request.resource_spans:
                    resource = {a.key: a.value.string_value for a in item.resource.attributes}
                    for scope in item.scope_spans:
                        for span in scope.spans:
                            collector.spans.append((resource["service.name"], span))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.spans if span.name == name]

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as started:
        yield started


def parent(number: int, *, sampled: bool) -> bytes:
    return f"00-{number + 1:032x}-{number + 1000:016x}-0{int(sampled)}".encode()


def conversations(prefix: str) -> list[OutboundRecord]:
    """Coupled failures: some whose traces are sampled, some whose are not, some without one."""
    made = []
    for number in range(SAMPLED + UNSAMPLED + UNTRACED):
        value = {
            "schema": "ares.interaction/1",
            "id": f"i-{number}",
            "occurred_at": datetime.now(UTC).isoformat(),
            "messages": [{"role": "user", "content": f"{sentence(number)} {CANARY}"}],
            "response": f"poison nice {CANARY} {number}",
            "policy": {"name": "chat", "version": "7"},
            "reference": {"chosen": f"Rather not {number}.", "rejected": "poison nice"},
        }
        headers: tuple[tuple[str, bytes], ...] = ()
        if number < SAMPLED + UNSAMPLED:
            headers = (("traceparent", parent(number, sampled=number < SAMPLED)),)
        name = topic_name(prefix, topics.PRODUCTION)
        raw = json.dumps(value).encode()
        made.append(OutboundRecord(name, str(value["id"]).encode(), raw, headers))
    return made


def number_of(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def is_whole(collector: Collector) -> bool:
    """Whether every span of the first repair has come: a scorer swaps before its repair ends."""
    repairs = collector.named("repair")
    released = {model_of(span) for span in collector.named("release")}
    return bool(
        repairs
        and collector.named("swap")
        and {"chat", "reward"} <= released
        and len(collector.named("repaired")) >= len(repairs[0].links)
    )


@pytest.mark.timeout(200)
async def test_a_trace_leads_from_the_interaction_to_the_release_that_it_led_to(
    kafka: str, prefix: str, tmp_path: Path, collector: Collector
) -> None:
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=1, replication=1))
    judge, reward = write_judge(tmp_path / "judge"), write_reward(tmp_path / "reward")
    (tmp_path / "token").write_text("open sesame\n")
    base = {
        "kafka": {"bootstrap": kafka},
        "topic_prefix": prefix,
        "registry": {"root": str(tmp_path / "registry"), "max_lora_rank": 64},
        "tracing": {"endpoint": collector.endpoint, "batch_seconds": 0.2,
                    "token_file": str(tmp_path / "token")},
    }  # fmt: skip
    scorer = {
        "group": f"{prefix}scorer",
        "harm": [str(judge.path)],
        "reward": str(reward.path),
        "threads": 1,
        "release_cache": str(tmp_path / "cache"),
    }
    async with AsyncExitStack() as stack:
        served = Served(stack, base)
        await served.start("scorer", Scorer, scorer=scorer)
        settings = repairer_settings(prefix, tmp_path / "repairs", reward)
        await served.start("repairer", Repairer, repairer=settings)
        async with Publisher(connection) as publisher:
            await publisher.publish(conversations(prefix))
        async with asyncio.timeout(SECONDS):
            while not is_whole(collector):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    assert collector.tokens == {"Bearer open sesame"}

    spans = await snapshot(connection, [topic_name(prefix, topics.VERDICTS)])
    verdicts = [record async for record in read(connection, spans)]
    assert len(verdicts) == SAMPLED + UNSAMPLED + UNTRACED
    kept = {dict(record.headers).get("traceparent") for record in verdicts}
    assert {parent(0, sampled=True), parent(SAMPLED, sampled=False), None} <= kept
    ids = {record.key: json.loads(record.value or b"")["id"] for record in verdicts}

    scores = collector.named("score")
    assert len(scores) == SAMPLED
    for span in scores:
        number = number_of(span.trace_id) - 1
        assert number_of(span.parent_span_id) == number + 1000
        assert number_of(span.span_id) == span_id("score", ids[f"i-{number}".encode()])
        assert span.start_time_unix_nano <= span.end_time_unix_nano

    repairs = {number_of(span.span_id): span for span in collector.named("repair")}
    plan = next(
        item.value.string_value
        for span in repairs.values()
        for item in span.attributes
        if item.key == "ares.plan.id"
    )
    repair = repairs[span_id("repair", plan)]
    assert number_of(repair.trace_id) == trace_id("repair", plan)
    known = {(span.trace_id, span.span_id) for span in scores}
    linked = {(link.trace_id, link.span_id) for link in repair.links}
    assert linked
    assert linked <= known
    back = [
        span
        for span in collector.named("repaired")
        if (span.links[0].trace_id, span.links[0].span_id) == (repair.trace_id, repair.span_id)
    ]
    assert {(span.trace_id, span.parent_span_id) for span in back} == linked

    ours = [span for span in collector.named("release") if span.trace_id == repair.trace_id]
    assert {span.parent_span_id for span in ours} == {repair.span_id}
    assert {model_of(span) for span in ours} == {"chat", "reward"}
    (swap,) = [span for span in collector.named("swap") if span.trace_id == repair.trace_id]
    assert swap.parent_span_id in {s.span_id for s in ours if model_of(s) == "reward"}
    names = {name: service for service, span in collector.spans for name in [span.name]}
    assert (names["score"], names["repair"], names["swap"]) == (
        "ares-scorer", "ares-repairer", "ares-scorer",
    )  # fmt: skip


def model_of(span: Span) -> str:
    (found,) = [item.value.string_value for item in span.attributes if item.key == "ares.model"]
    return str(found)
