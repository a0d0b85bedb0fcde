"""Every service as a process, and every topic that it reads full of bent records: before it starts,
while it runs and after a kill. It stays alive and ready, in flat memory, and does its work on the
good records between them.

    ARES_BENT_RECORDS=300 ARES_BENT_SEED=7 pytest tests/chaos/test_bent_topics.py -s
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
import yaml

from ares_stream.audit.notes import NoteSigner
from ares_stream.errors import DecodeError
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records import topics
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.records.rates import Rates
from ares_stream.records.repair import RepairReport
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.integration.test_repairer import World
from tests.support.bent_topics import bent_batches
from tests.support.failures import sentence
from tests.support.notarised import NAME
from tests.support.probing import TinyPolicy, campaign_file
from tests.support.raw_batches import RawRecord, produce
from tests.support.service_process import ServiceProcess
from tests.support.target_server import create_app, serving
from tests.support.verdicts import NOON
from tests.unit.test_audit_trace import interaction
from tests.unit.test_bent_records import WHOLE

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600)]

RECORDS: Final = int(os.environ.get("ARES_BENT_RECORDS", "100"))
"""On each partition of each topic, each of three times."""
SEED: Final = int(os.environ.get("ARES_BENT_SEED", "1"))
SECONDS: Final = 180.0
NUDGE_SECONDS: Final = 30.0
GROWTH_MIB: Final = 64
PREFIX: Final = "bent."
PARTITIONS: Final = 2
ANSWERS: Final = ("poison nice", "bread nice", "maybe nice", "bread rude")
"""Coupled, harmless, contested, harmless."""
GOOD: Final = 12 * len(ANSWERS)
SERVICES: Final = ("scorer", "monitor", "notary", "console", "repairer", "prober")
DEFECTS: Final = re.compile(r"Traceback|this is a defect|Task exception|never retrieved")


def spoken(number: int, version: str) -> Interaction:
    answer = ANSWERS[number % len(ANSWERS)]
    return Interaction(
        id=f"good-{version}-{number}",
        occurred_at=NOON,
        messages=(Message(role="user", content=sentence(f"{version} {number}")),),
        response=f"{answer} {number}",
        policy=Policy(name="chat", version=version),
    )


def templates() -> dict[str, list[RawRecord]]:
    """Real records of each topic, without a prefix."""
    found: dict[str, list[RawRecord]] = {spec.name: [] for spec in specs("")}
    for name, item in WHOLE.values():
        found[name].append(RawRecord(b"k", item.encode()))
    for name in (topics.PRODUCTION, topics.PROBE, topics.ANCHOR):
        found[name].append(RawRecord(b"k", interaction(1).encode()))
    found[topics.VERDICTS].append(RawRecord(b"k", WHOLE_VERDICT))
    found[topics.DEADLETTERS].append(RawRecord(b"k", b"{}", ((b"h", b"x"),)))
    return found


WHOLE_VERDICT: Final = json.dumps(
    json.loads(WHOLE["review"][1].encode())["verdict"]
).encode()  # fmt: skip


class Bent:
    """The broker's topics, what is written to them, and the services."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.world = World(bootstrap, PREFIX, folder)
        self.connection = KafkaConnection(bootstrap=bootstrap)
        self.bootstrap = bootstrap
        self.folder = folder
        self.chance = random.Random(SEED)
        self.running: dict[str, ServiceProcess] = {}
        self.ports: dict[str, int] = {}
        self.bent = 0

    def settings(self) -> dict[str, Any]:
        """Of all services at once, a port each."""
        key = self.folder / "key.pem"
        if not key.exists():
            key.write_bytes(NoteSigner.generate(NAME).pem())
            write_judge(self.folder / "judge")
            write_reward(self.folder / "reward")
        of_repairer: dict[str, Any] = yaml.safe_load(self.world.settings_file().read_text())
        return of_repairer | {
            "scorer": {
                "group": f"{PREFIX}scorer",
                "harm": [str(self.folder / "judge")],
                "reward": str(self.folder / "reward"),
                "breaker": {"accept_dead_letters": True},
                "threads": 1,
            },
            "monitor": {"group": f"{PREFIX}monitor", "publish_seconds": 0.5, "slices": ["locale"]},
            "notary": {
                "group": f"{PREFIX}notary", "name": NAME, "keys": [str(key)],
                "checkpoint_seconds": 0.5,
            },
            "console": {"port": 0, "identity": {"header": {}}},
        }  # fmt: skip

    async def bend(self, real: Mapping[str, Sequence[RawRecord]]) -> None:
        """Bent records on every partition of these topics."""
        for name, records in real.items():
            count = PARTITIONS if name in PARTITIONED else 1
            for partition in range(count):
                made = list(bent_batches(records, RECORDS, self.chance, keyed=name in COMPACTED))
                await produce(self.bootstrap, f"{PREFIX}{name}", made, partition)
                self.bent += RECORDS

    async def harvest(self) -> dict[str, list[RawRecord]]:
        """What the services themselves have written by now, and what was sent to them."""
        found = templates()
        for name in found:
            found[name] += [
                RawRecord(item.key, item.value, tuple((k.encode(), v) for k, v in item.headers))
                for item in await self.content(name)
                if item.value is not None and _is_object(item.value) and len(item.value) < 50_000
            ][-200:]
        return found

    async def content(self, name: str) -> list[InboundRecord]:
        ranges = await snapshot(self.connection, [topic_name(PREFIX, name)])
        return [item async for item in read(self.connection, ranges)]

    async def speak(self, version: str) -> None:
        """Good conversations."""
        async with Publisher(self.connection) as publisher:
            made = [spoken(number, version) for number in range(GOOD)]
            topic = topic_name(PREFIX, topics.PRODUCTION)
            await publisher.publish(
                [OutboundRecord(topic, item.id.encode(), item.encode()) for item in made]
            )

    # Services

    def start(self, environment: Mapping[str, str]) -> None:
        for name in SERVICES:
            self.running[name] = ServiceProcess(
                name, self.settings(), self.folder / name, environment=environment
            )

    async def until(self, what: str, holds: Callable[[], Awaitable[object]]) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            found = await holds()
            self.check_alive()
            if found is True:
                return
            assert time.monotonic() < deadline, f"{what}: {found}"
            await asyncio.sleep(0.5)

    def check_alive(self) -> None:
        for name, service in self.running.items():
            code = service.process.poll()
            assert code is None, f"{name} ended with {code}: {service.log[-3000:]}"

    async def get(self, name: str, path: str) -> httpx.Response:
        port = (await self.running[name].said("listening"))["port"]
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{port}{path}", timeout=30)

    async def all_ready(self) -> None:
        for name in SERVICES:

            async def ready(name: str = name) -> object:
                answer = await self.get(name, "/readyz")
                return answer.status_code == 200 or answer.text

            await self.until(f"{name} is ready", ready)

    async def metric(self, name: str, sample: str) -> float:
        text = (await self.get(name, "/metrics")).text
        found = re.findall(rf"^{sample}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    async def acted(self, version: str) -> None:
        """Every service has done its work on the good records of this version."""
        await self.until(f"verdicts of {version}", lambda: self._decided(version))
        await self.until(f"rates of {version}", lambda: self._counted(version))
        nudged = time.monotonic()

        async def repaired() -> object:
            nonlocal nudged
            found = await self._repaired(version)
            if found is not True and time.monotonic() - nudged > NUDGE_SECONDS:
                # A repair that bent failures began may have left fewer than one is begun for.
                nudged = time.monotonic()
                await self.speak(f"more of {version}, {nudged}")
            return found

        await self.until(f"a repair of {version}", repaired)
        for name in ("notary", "monitor", "console"):

            async def caught_up(name: str = name) -> object:
                left = await self.metric(name, f"ares_{name}_lag_records")
                return left == 0 or f"{left} records behind"

            await self.until(f"{name} has read all", caught_up)
        await self._look_at_pages()

    async def _decided(self, version: str) -> object:
        seen: list[str] = []
        for item in await self.content(topics.VERDICTS):
            try:
                made = Verdict.decode(item.value or b"")
            except DecodeError:
                continue
            if made.interaction_id.startswith(f"good-{version}-") and made.source.topic == (
                topic_name(PREFIX, topics.PRODUCTION)
            ):
                seen.append(made.interaction_id)
        return len(set(seen)) == GOOD or f"{len(set(seen))} of {GOOD}"

    async def _counted(self, version: str) -> object:
        totals = [0]
        for item in await self.content(topics.RATES):
            try:
                row = Rates.decode(item.value or b"")
            except DecodeError:
                continue
            if row.slice.policy.version == version and not row.slice.attribute:
                totals.append(row.figures.total)
        return max(totals) >= GOOD or f"{max(totals)} of {GOOD}"

    async def _repaired(self, version: str) -> object:
        """A promoted repair that covers every good coupled failure."""
        places = set()
        for item in await self.content(topics.REPAIR):
            if json_id(item.value) in {f"good-{version}-{n}" for n in range(0, GOOD, 4)}:
                places.add((item.partition, item.offset))
        covered = set()
        for item in await self.content(topics.REPAIRS):
            try:
                report = RepairReport.decode(item.value or b"")
            except DecodeError:
                continue
            if report.state == "promoted":
                covered |= {
                    place for place in places for part in report.batch
                    if part.topic == topic_name(PREFIX, topics.REPAIR)
                    and part.partition == place[0] and part.start <= place[1] < part.end
                }  # fmt: skip
        note = (await self.get("repairer", "/readyz")).text
        done = bool(places) and covered == places
        return done or f"{len(covered)} of {len(places)}; {note}"

    async def _look_at_pages(self) -> None:
        """Every page of the console that its pages lead to."""
        port = (await self.running["console"].said("pages"))["port"]
        waiting, seen = ["/"], set[str]()
        headers = {"x-forwarded-user": "ada"}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60
        ) as client:
            while waiting and len(seen) < 60:
                path = waiting.pop(0)
                if path in seen:
                    continue
                seen.add(path)
                answer = await client.get(path)
                assert answer.status_code < 500, f"{path}: {answer.status_code} {answer.text[:300]}"
                waiting += re.findall(r'href="(/[^"#]*)"', answer.text)
        print(f"{len(seen)} pages of the console")

    def memory(self) -> dict[str, int]:
        """MiB of each service."""
        return {
            name: psutil.Process(item.process.pid).memory_info().rss >> 20
            for name, item in self.running.items()
        }

    def check_logs(self) -> None:
        for name, service in self.running.items():
            found = DEFECTS.search(service.log)
            assert found is None, f"{name}: {service.log[max(0, found.start() - 1500) :][:3000]}"


COMPACTED: Final = frozenset(
    spec.name for spec in specs("") if spec.config["cleanup.policy"] == "compact"
)
"""A broker takes no record without a key for these."""
PARTITIONED: Final = frozenset(
    spec.name for spec in specs("", partitions=PARTITIONS) if spec.partitions == PARTITIONS
)


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def json_id(raw: bytes | None) -> str:
    """Of an interaction in a record of the repair topic."""
    try:
        return str(json.loads(raw or b"")["interaction"]["id"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


PROPERTIES: Final = {
    "log.retention.ms": "-1",
    "log.message.timestamp.after.max.ms": str(2**63 - 1),
    "message.max.bytes": str(4 << 20),
}


async def test_services_stay_alive_and_work_while_all_their_topics_are_bent(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(properties=PROPERTIES))
        target = TinyPolicy()
        url = await stack.enter_async_context(serving(create_app(target)))
        campaign = campaign_file(tmp_path, url, budget=60)
        made = Bent(broker.bootstrap, tmp_path)
        await create_topics(made.connection, specs(PREFIX, partitions=PARTITIONS, replication=1))
        environment = {"ARES_CAMPAIGN": str(campaign), "PYTHONWARNINGS": "default"}
        try:
            await made.bend(templates())
            await made.speak("first")
            made.start(environment)
            await made.all_ready()
            await made.acted("first")
            await made.running["prober"].said("campaign done")
            asked = target.asked.total()
            early = made.memory()

            await made.bend(await made.harvest())
            await made.speak("second")
            await made.acted("second")
            await made.all_ready()
            late = made.memory()
            made.check_logs()

            for service in made.running.values():
                service.kill()
            await made.bend(await made.harvest())
            await made.speak("third")
            made.start(environment)
            await made.all_ready()
            await made.acted("third")
            await made.running["prober"].said("campaign done")
            # A bent probe or verdict may be whole, and then changes what is worth asking.
            assert target.asked.total() < 2 * asked
            made.check_logs()
            print(
                f"\n{made.bent} bent records, seed {SEED}; MiB after the first, after the second "
                f"and after a restart: {early}, {late}, {made.memory()}"
            )
            assert {n: late[n] - early[n] for n in early if late[n] - early[n] > GROWTH_MIB} == {}
            codes = {name: service.stop() for name, service in made.running.items()}
            assert codes == dict.fromkeys(SERVICES, 0)
        finally:
            for service in made.running.values():
                if service.process.poll() is None:
                    service.kill()
