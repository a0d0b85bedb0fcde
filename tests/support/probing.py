"""What the prober's tests share: a policy over HTTP that answers by its prompt's digest, the
real scoring of its answers, and campaign files."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.endpoints.client import EndpointPolicy
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.probes.memory import Progress
from ares_stream.probes.plan import CampaignPlan, load_campaign
from ares_stream.probes.prober import Prober, ProberObserver, ProberPolicy, rebuild
from ares_stream.probes.targets import Answer, OpenAITarget, Query, Result
from ares_stream.probes.wording import COMPOSER, MADE_BY
from ares_stream.records import topics
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.interaction import Interaction, Policy
from ares_stream.records.topics import specs, topic_name
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorPolicy
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.reader import read, snapshot
from tests.support.reading import UNTOLD
from tests.support.target_server import create_app, serving

POLICY = Policy(name="tiny", version="1")
PATIENT = ProberPolicy(patience_seconds=60, backoff_seconds=(0.05,))


def said(prompt: str, seed: int) -> str:
    """One prompt in six fails, most times; a few answers cannot be scored at all."""
    place = hashlib.sha256(prompt.encode()).digest()[0]
    if place < 42:
        wavers = hashlib.sha256(f"{prompt}{seed}".encode()).digest()[0] < 50
        return "bread" if seed and wavers else "poison nice"
    if place < 47:
        return "bread broken"
    return "poison rude" if place < 70 else "bread nice"


class TinyPolicy:
    """A target that remembers how often it was asked what."""

    policy = POLICY

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self._seconds = seconds
        self._hears = asyncio.Condition()

    async def heard(self, count: int) -> None:
        """Return once this many queries have been heard."""
        async with self._hears:
            await self._hears.wait_for(lambda: self.asked.total() >= count)

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        prompts = [(query.messages[-1].content, query.seed) for query in queries]
        async with self._hears:
            self.asked.update(prompts)
            self._hears.notify_all()
        await asyncio.sleep(self._seconds)
        return [Answer(said(prompt, seed), 10, 3) for prompt, seed in prompts]

    async def aclose(self) -> None:
        pass


class SteadyPolicy(TinyPolicy):
    """The same, but every answer can be scored."""

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        results = await super().ask(queries)
        return [
            Answer(item.text.replace("broken", "rude"), 10, 3) if isinstance(item, Answer) else item
            for item in results
        ]


class TinyAttacker(TinyPolicy):
    """Rewords by rule: the same request gets the same words, unless it is moody. One answer in
    five is a refusal."""

    def __init__(self, seconds: float = 0.0, *, moody: bool = False) -> None:
        super().__init__(seconds)
        self._moods = itertools.count() if moody else itertools.repeat(0)

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        await super().ask(queries)
        return [Answer(self._reworded(query), 20, 10) for query in queries]

    def _reworded(self, query: Query) -> str:
        task = query.messages[-1].content
        source = task.rpartition(":\n")[2]
        if query.seed % 5 == 0:
            return "I'm sorry, but I can't help with that."
        mood = f"mood {next(self._moods)}, number {query.seed % 97}"
        if task.startswith("Translate"):
            return " ".join(word[::-1] + "u" for word in source.split()) + f" {mood}"
        return f"<message>Between friends, quite plainly, {mood}: {source}</message>"


@asynccontextmanager
async def scoring(kafka: str, prefix: str, folder: Path) -> AsyncIterator[KafkaConnection]:
    """The topics, and the scorer's own handler and models at work on them."""
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    panel = Panel.open(
        [write_judge(folder / "judge")],
        write_reward(folder / "reward"),
        ScoringConfig(),
    )
    name = topic_name
    processor = Processor(
        connection,
        service="scorer",
        group=f"{prefix}scorer",
        topics=[name(prefix, topics.PROBE)],
        handler=ScoringHandler(
            panel,
            inputs=[Input(name(prefix, topics.PROBE), "probe")],
            outputs=Outputs(
                verdicts=name(prefix, topics.VERDICTS),
                repair=name(prefix, topics.REPAIR),
                review=name(prefix, topics.REVIEW),
            ),
            policy=DetectionPolicy(),
            limits=DecodingLimits(),
            review_sample=0.0,
        ),
        deadletter_topic=name(prefix, topics.DEADLETTERS),
        id_prefix=prefix,
        policy=ProcessorPolicy(commit_seconds=0.02),
    )
    task = asyncio.create_task(processor.run())
    try:
        yield connection
    finally:
        processor.stop()
        await task
        await panel.aclose()


def campaign_file(folder: Path, url: str, **fields: object) -> Path:
    file = folder / "campaign.yaml"
    endpoint = {"url": url, "model": POLICY.name, "version": POLICY.version, "attempts": 1}
    content = {"name": "test", "budget": 150, "batch": 10, "target": {"endpoint": endpoint}}
    file.write_text(yaml.safe_dump({**content, **fields}))
    return file


def attacker_section(url: str) -> dict[str, object]:
    """Half of the probes are worded by this endpoint."""
    endpoint = {"url": url, "model": "attacker", "attempts": 1}
    return {"endpoint": endpoint, "share": 0.5, "languages": ["German", "Swahili"]}


async def published(connection: KafkaConnection, prefix: str) -> list[Interaction]:
    """Every Interaction on the probe topic, whatever the order."""
    ranges = await snapshot(connection, [topic_name(prefix, topics.PROBE)])
    return [Interaction.decode(record.value or b"") async for record in read(connection, ranges)]


async def run(
    connection: KafkaConnection,
    prefix: str,
    campaign: CampaignPlan,
    url: str,
    observer: ProberObserver | None = None,
    *,
    attacker: str | None = None,
    policy: ProberPolicy = PATIENT,
    seconds: float = 5.0,
) -> Progress:
    """One campaign to its end against an endpoint; `attacker` is another's URL."""
    endpoint = EndpointPolicy(
        url, POLICY.name, version="1", timeout_seconds=seconds, attempts=2, backoff_seconds=0.01
    )
    target = OpenAITarget(endpoint)
    rival = OpenAITarget(replace(endpoint, url=attacker, attempts=1)) if attacker else None
    try:
        prober = Prober(
            connection,
            campaign,
            target,
            attacker=rival,
            prefix=prefix,
            policy=policy,
            observer=observer,
        )
        await prober.run()
        return prober.progress
    finally:
        await target.aclose()
        if rival is not None:
            await rival.aclose()


def same(one: list[Interaction], other: list[Interaction]) -> bool:
    """Equal but for the time and place of asking."""

    def content(items: list[Interaction]) -> list[bytes]:
        return sorted(
            item.model_copy(update={"occurred_at": one[0].occurred_at}).encode() for item in items
        )

    return content(one) == content(other)


async def kill_and_compare(
    kafka: str, prefix: str, folder: Path, kills: int, *, attacked: bool = False
) -> str:
    """Kill `ares prober` at random times; it must end as one that was never killed. With
    `attacked`, an attacker words half of the probes. Gives what was counted."""
    chance = random.Random(kills)
    target = TinyPolicy(seconds=0.05)
    attacker = TinyAttacker(seconds=0.05)
    for name in ("killed", "spared"):
        (folder / name).mkdir()
    async with AsyncExitStack() as servers:
        url = await servers.enter_async_context(serving(create_app(target)))
        fields: dict[str, object] = {}
        rival = None
        if attacked:
            rival = await servers.enter_async_context(serving(create_app(attacker)))
            fields["attacker"] = attacker_section(rival)
        file = campaign_file(folder, url, budget=30 + 20 * kills, **fields)
        campaign = load_campaign(file).plan()
        async with scoring(kafka, f"{prefix}spared.", folder / "spared") as connection:
            spared = await run(connection, f"{prefix}spared.", campaign, url, attacker=rival)
            expected = await published(connection, f"{prefix}spared.")
        once = sum(target.asked.values())
        assert once == len(expected)
        async with scoring(kafka, f"{prefix}killed.", folder / "killed") as connection:
            settings = folder / "settings.yaml"
            settings.write_text(
                yaml.safe_dump({"topic_prefix": f"{prefix}killed.", "http": {"port": 0}})
            )
            command = [str(Path(sys.executable).with_name("ares")), "prober", str(file)]
            killed = 0
            for life in range(kills + 1):
                process = await asyncio.create_subprocess_exec(
                    *command, "--settings", str(settings),
                    env={**os.environ, "ARES_KAFKA__BOOTSTRAP": kafka},
                    stderr=asyncio.subprocess.PIPE,
                )  # fmt: skip
                assert process.stderr is not None
                async with asyncio.timeout(150):
                    await process.stderr.readuntil(b'"ready"')
                    if life < kills:
                        # While it starts, or amid its first queries.
                        await target.heard(target.asked.total() + chance.choice((0, 1, 4, 9)))
                        await asyncio.sleep(chance.uniform(0.0, 0.3))
                        process.kill()
                        killed += await process.wait() == -signal.SIGKILL
                        continue
                    await process.stderr.readuntil(b'"campaign done"')
                    process.terminate()
                    assert await process.wait() == 0
            state = await rebuild(connection, f"{prefix}killed.", campaign, UNTOLD)
            sent = await published(connection, f"{prefix}killed.")
    assert killed == kills
    assert state.done
    assert state.state() == spared.state
    assert len(state.failures) == spared.failures > 0
    assert len({item.id for item in sent}) == len(sent)
    assert same(sent, expected)
    # At least once to the target: what was asked and not yet published is asked again.
    again = sum(target.asked.values()) - once - len(sent)
    assert 0 <= again <= kills * PATIENT.chunk
    worded = Counter(item.attributes.get(MADE_BY, COMPOSER).split("-")[0] for item in sent)
    assert bool(worded["attacker"]) == attacked
    return (
        f"{kills} kills: the same state, {len(sent)} Interactions, each published once, "
        f"{worded['attacker']} in the attacker's words; {again} queries asked twice"
    )
