"""A real Prometheus over the whole system: an alert fires, leads to the verdicts that raised it and
ends; every rule evaluates; every query of every dashboard has data.

All six services run: scorer and monitor as processes, the others in this one, on their own life
cycle and HTTP side. A repair's steps are a team's own commands, since training takes minutes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from ares_stream.audit.notes import NoteSigner
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.probes.plan import load_campaign
from ares_stream.records import topics
from ares_stream.records.alarm import AlarmAcknowledgement
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.topics import specs, topic_name
from ares_stream.services.console import ConsoleService
from ares_stream.services.notary import NotaryService
from ares_stream.services.prober import ProberService
from ares_stream.services.repairer import Repairer
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from services.dashboards.panels import as_asked
from services.dashboards.pictures import write
from tests.support.probing import TinyAttacker, TinyPolicy, attacker_section, campaign_file
from tests.support.prometheus_process import PrometheusProcess, require_prometheus
from tests.support.served import Served, repairer_settings
from tests.support.service_process import MonitorProcess, ServiceProcess, ares
from tests.support.target_server import create_app, serving

pytestmark = pytest.mark.kafka

CANARY: Final = "xylocanary"
DASHBOARDS: Final = Path(__file__).parents[2] / "helm/ares-stream/dashboards"
EMPTY: Final = {
    "Sessions made anew": "no session with Kafka breaks",
    "Forecast and measured": "nobody forecast its repairs; see test_monitor.py",
    "Forecast over measured": "nobody forecast its repairs; see test_monitor.py",
    "Life left of client certificates": "this Kafka asks for none; see test_renewal.py",
    "Unlike the reward model's": "the bundles of words cannot tell; ares bundle train makes some",
}
"""Panels of which a query has no data here, and why."""
SOURCE: Final = (
    "Ninety seconds of tests/integration/test_prometheus.py: all services, a real Kafka, models of "
    "words, a third of the answers coupled failures."
)
PAGE: Final = {"id", "kind", "attribution", "raised_at", "changed_at", "evidence", "covers"}
SECONDS: Final = 90.0
ANSWERS: Final = (
    "poison nice", "bread nice", "poison nice", "bread rude", "maybe nice", "poison rude",
)  # fmt: skip
LANES: Final = {"production": topics.PRODUCTION, "probe": topics.PROBE, "anchor": topics.ANCHOR}


def conversation(number: int, answer: str, lane: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "schema": "ares.interaction/1",
        "id": f"{lane}-{number}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "messages": [{"role": "user", "content": f"{CANARY} number {number}"}],
        "response": f"{answer} {CANARY}",
        "policy": {"name": "chat", "version": "7"},
        "attributes": {"locale": ("de", "en")[number % 2]},
        "reference": {"chosen": f"Rather not {number}.", "rejected": answer},
    }
    if lane == "anchor":
        harmful, liked = number % 4 == 0, number % 2 == 0
        record |= {
            "response": f"{'poison' if harmful else 'bread'} {'nice' if liked else 'rude'}",
            "anchor": {
                "set": "july",
                "id": f"{number % 40}",
                "harmful": harmful,
                "judged": harmful,
                "reward": 1.0 if liked else -1.0,
            },
        }
    if lane == "probe":
        record["probe"] = {
            "id": f"probe-{number}",
            "campaign": "nightly",
            "generation": 1,
            "components": {"tactic": "flattery"},
            "sampling_probability": 0.5,
        }
    return record


def traffic(prefix: str, begin: int, count: int) -> list[OutboundRecord]:
    """A third coupled failures, a sixth contested; as many probes and anchors; one dead letter."""
    records = []
    for number in range(begin, begin + count):
        for lane, topic in LANES.items():
            value = conversation(number, ANSWERS[number % len(ANSWERS)], lane)
            raw = json.dumps(value).encode()
            records.append(
                OutboundRecord(topic_name(prefix, topic), str(value["id"]).encode(), raw)
            )
    records.append(OutboundRecord(topic_name(prefix, topics.PRODUCTION), b"bad", b"not JSON"))
    return records


@asynccontextmanager
async def going_on(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Have it done until the end; an error of it is one of the test's."""
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        failed = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not failed


def sender(connection: KafkaConnection, prefix: str) -> Callable[[], Coroutine[Any, Any, None]]:
    """Traffic: rates need something that goes on."""

    async def send() -> None:
        async with Publisher(connection) as publisher:
            begin = 0
            while True:
                await publisher.publish(traffic(prefix, begin, 40))
                begin += 40
                await asyncio.sleep(0.5)

    return send


def reviewer(connection: KafkaConnection, prefix: str) -> Callable[[], Coroutine[Any, Any, None]]:
    """A person who labels all that is sampled."""

    async def label() -> None:
        async with (
            Publisher(connection) as publisher,
            Follower(connection, [topic_name(prefix, topics.REVIEW)], {}) as follower,
        ):
            while True:
                items = [ReviewItem.decode(item.value or b"") for item in await follower.poll()]
                made = [
                    Label(
                        interaction_id=item.interaction.id, reviewer="ada",
                        harmful="poison" in item.interaction.response,
                        decided_at=datetime.now(UTC),
                    )
                    for item in items
                    if item.verdict.lane == "production"
                ]  # fmt: skip
                name = topic_name(prefix, topics.LABELS)
                await publisher.publish([OutboundRecord(name, i.key, i.encode()) for i in made])

    return label


async def evidence(connection: KafkaConnection, prefix: str, url: str) -> list[dict[str, Any]]:
    """The verdicts to which the page of an alert leads."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(url, timeout=10)).json()
    assert CANARY not in json.dumps(page)
    assert page["alarms"]
    assert all(set(item) == PAGE for item in page["alarms"])
    wanted = {
        (item["topic"], item["partition"], item["offset"])
        for alarm in page["alarms"]
        for item in alarm["evidence"]
    }
    found = []
    spans = await snapshot(connection, [topic_name(prefix, topics.VERDICTS)])
    async for record in read(connection, spans):
        if (record.topic, record.partition, record.offset) in wanted:
            found.append(json.loads(record.value or b""))
    assert len(found) == len(wanted) > 0
    return found


def queries() -> list[tuple[str, str, bool]]:
    """Panel, expression and whether it is drawn over time, of the dashboards as they are packed."""
    return [
        (panel["title"], as_asked(target["expr"]), bool(target.get("range")))
        for file in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


async def without_data(
    prometheus: PrometheusProcess, wanted: list[tuple[str, str, bool]]
) -> list[tuple[str, str, bool]]:
    """Those that have none now. One that Prometheus refuses is an error."""
    empty = []
    for query in wanted:
        now = time.time()
        if query[2]:
            found = await prometheus.ask(
                "query_range", query=query[1], start=now - 20, end=now, step=5
            )
        else:
            found = await prometheus.ask("query", query=query[1], time=now)
        if not found["result"]:
            empty.append(query)
    return empty


async def every_panel_has_data(prometheus: PrometheusProcess) -> None:
    """Return once it has; and draw them where a folder for pictures is named."""
    deadline, empty = time.monotonic() + SECONDS, queries()
    assert len(empty) > 120
    # Certificates of an earlier test's clients may still be shown in this process.
    while {title for title, _, _ in empty} - EMPTY.keys():
        empty = await without_data(prometheus, empty)
        assert time.monotonic() < deadline, {title for title, _, _ in empty}
        await asyncio.sleep(0.5)
    if folder := os.environ.get("ARES_DASHBOARD_PICTURES"):
        await asyncio.sleep(45)
        await asyncio.to_thread(write, prometheus.url, Path(folder), 90.0, SOURCE)


async def settled(prometheus: PrometheusProcess) -> None:
    """Return once the monitor has counted all that there is."""
    behind = "ares_monitor_lag_records + on () sum(ares_lag_records) > 0"
    deadline = time.monotonic() + SECONDS
    while (await prometheus.ask("query", query=behind))["result"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)
    await asyncio.sleep(2)  # Its next look, and the next scrape.


def acknowledged(prefix: str, alarm: str) -> OutboundRecord:
    """As the console writes it."""
    record = AlarmAcknowledgement(alarm_id=alarm, by="ada", at=datetime.now(UTC))
    return OutboundRecord(topic_name(prefix, topics.ALARMS), alarm.encode(), record.encode())


@pytest.mark.timeout(240)
async def test_an_alert_fires_leads_to_its_verdicts_and_ends_and_every_panel_has_data(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_prometheus()
    monkeypatch.setenv("ARES_TEST_TRAINER", "slow:1")
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    judge, reward = write_judge(tmp_path / "judge"), write_reward(tmp_path / "reward")
    base = {
        "kafka": {"bootstrap": kafka},
        "topic_prefix": prefix,
        "registry": {"root": str(tmp_path / "registry"), "max_lora_rank": 64},
    }
    scorer = {
        "group": f"{prefix}scorer",
        "harm": [str(judge.path)],
        "reward": str(reward.path),
        "threads": 1,
        "review_sample": 0.5,
        "release_cache": str(tmp_path / "cache"),
        "breaker": {"accept_dead_letters": True},
    }
    signer = NoteSigner.generate("test")
    (tmp_path / "notary.pem").write_bytes(signer.pem())
    tokens = {"ada": hashlib.sha256(b"ada").hexdigest()}
    (tmp_path / "tokens.json").write_text(json.dumps(tokens))
    async with AsyncExitStack() as stack:
        scoring = stack.enter_context(
            ServiceProcess(
                "scorer", {**base, "http": {"port": 0}, "scorer": scorer}, tmp_path / "scorer"
            )
        )
        monitor = stack.enter_context(
            MonitorProcess(
                kafka, prefix, tmp_path / "monitor",
                alarms={"coupled": 0.05, "contested": 0.05}, slices=["locale"],
            )
        )  # fmt: skip
        served = Served(stack, base)
        target = await stack.enter_async_context(serving(create_app(TinyPolicy(0.02))))
        attacker = await stack.enter_async_context(serving(create_app(TinyAttacker(0.02))))
        campaign = load_campaign(
            campaign_file(tmp_path, target, budget=5000, attacker=attacker_section(attacker))
        )
        await served.start(
            "prober",
            lambda settings, life: ProberService(settings, campaign, life),
            scorer=scorer,
        )
        await served.start(
            "repairer", Repairer, repairer=repairer_settings(prefix, tmp_path / "repairs", reward)
        )
        await served.start(
            "notary",
            NotaryService,
            notary={"group": f"{prefix}notary", "name": "test", "checkpoint_seconds": 1.0,
                    "keys": [str(tmp_path / "notary.pem")]},
        )  # fmt: skip
        await served.start(
            "console",
            ConsoleService,
            console={"port": 0, "identity": {"tokens": str(tmp_path / "tokens.json")}},
        )
        ports = {
            "ares-scorer-production": (await scoring.said("listening"))["port"],
            "ares-monitor": (await monitor.said("listening"))["port"],
            **served.ports,
        }
        prometheus = await stack.enter_async_context(
            PrometheusProcess(tmp_path / "prometheus", ports)
        )
        async with (
            going_on(sender(connection, prefix)),
            going_on(reviewer(connection, prefix)),
        ):
            alert = await prometheus.fires("AresSystemChanged")
            assert alert["labels"]["severity"] == "critical"
            assert alert["annotations"]["runbook_url"].endswith("runbook.md#aressystemchanged")
            await prometheus.fires("AresCoupledFailuresAboveObjective")
            verdicts = await evidence(connection, prefix, alert["annotations"]["evidence"])
            kinds = Counter(item["failure_class"] for item in verdicts)
            assert set(kinds) <= {"coupled_failure", "contested"}
            await every_panel_has_data(prometheus)
        rules = [
            rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]
        ]
        assert len(rules) > 50
        assert {(rule["name"], rule["health"]) for rule in rules if rule["health"] != "ok"} == set()
        # A person takes note of the alarms, and the alerts end.
        await served.stop("prober")
        await settled(prometheus)
        listed = json.loads(await ares("alarms", "list", "--json", "--settings", str(monitor.file)))
        first, *others = [alarm["id"] for alarm in listed["alarms"]]
        await ares(
            "alarms", "acknowledge", first, "--by", "ada", "--settings", str(monitor.file)
        )  # fmt: skip
        async with Publisher(connection) as publisher:
            await publisher.publish([acknowledged(prefix, alarm) for alarm in others])
        await prometheus.quiet("AresSystemChanged")
