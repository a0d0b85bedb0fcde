"""The scorer as it is deployed: a process, a real broker, real ONNX models, events good and bad.

The count is taken from the topics afterwards, by a read_committed reader that the scorer has no
part in.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from ares_stream.lab.word_bundles import WORDS, write_judge, write_reward
from ares_stream.models.bundles import Bundle
from ares_stream.records import topics
from ares_stream.records.label import ReviewItem
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.topics import PROBE, PRODUCTION, topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.scoring.handler import sampled_for_review
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.exactly_once import content, publish
from tests.support.scorer_process import ROOT, ScorerProcess, progress

pytestmark = pytest.mark.kafka

CANARY: Final = "xylocanary"
"""A word of every conversation: it may be in no log, metric, verdict or reason."""
THEIRS: Final = "theirs"
"""A topic of the user's own JSON, read through a mapping."""
INPUTS: Final = (PRODUCTION, PROBE)
PARTITIONS: Final = 3
MIB: Final = 1 << 20
TRACE: Final = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SAMPLE: Final = 0.1

ANSWERS: Final = {
    "bread rude": "clean",
    "bread nice": "clean",
    "poison rude": "policy_failure",
    "poison nice": "coupled_failure",
    "maybe nice": "contested",
}
"""What the models of bundles_fixture make of an answer."""


@dataclass(frozen=True)
class Models:
    judge: Bundle
    reward: Bundle
    repaired: Bundle
    """The reward model's next release."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("bundles")
    return Models(
        write_judge(root / "judge"),
        write_reward(root / "reward"),
        write_reward(root / "repaired", {"nice": 2.0, "rude": -2.0}),
    )


def conversation(number: int, answer: str, **changed: Any) -> dict[str, Any]:
    """An interaction. Ten of them share an id, as the turns of one conversation do."""
    return {
        "schema": "ares.interaction/1",
        "id": f"conversation-{number // 10}",
        "occurred_at": "2026-10-01T12:00:00Z",
        "messages": [{"role": "user", "content": f"{CANARY} number {number}"}],
        "response": f"{answer} {CANARY}",
        "policy": {"name": "chat", "version": "7"},
        **changed,
    }


def good(prefix: str, number: int) -> OutboundRecord:
    """The `number`-th event: its words, and so its class, follow from the number."""
    answer = list(ANSWERS)[number * 7 % len(ANSWERS)]
    changed: dict[str, Any] = {"attributes": {"expected": ANSWERS[answer]}}
    name = PROBE if number % 5 == 0 else PRODUCTION
    if name == PROBE:
        changed["probe"] = {
            "id": f"probe-{number}",
            "campaign": "nightly",
            "generation": 1,
            "components": {"tactic": "flattery"},
            "sampling_probability": 0.5,
        }
    record = conversation(number, answer, **changed)
    return OutboundRecord(
        topic_name(prefix, name),
        str(record["id"]).encode(),
        json.dumps(record).encode(),
        (("traceparent", TRACE),),
    )


def events(prefix: str, count: int, *, start: int = 0) -> list[OutboundRecord]:
    return [good(prefix, number) for number in range(start, start + count)]


async def create(bootstrap: str, prefix: str) -> None:
    """Every topic, and one of a user's own. Inputs and dead letters take 16 MiB."""
    large = {topic_name(prefix, name) for name in (PRODUCTION, topics.DEADLETTERS)}
    specs = [
        replace(spec, config={**spec.config, "max.message.bytes": str(16 * MIB)})
        if spec.name in large
        else spec
        for spec in topics.specs(prefix, partitions=PARTITIONS, replication=1)
    ]
    specs.append(topics.TopicSpec(topic_name(prefix, THEIRS), 1, 1))
    await create_topics(KafkaConnection(bootstrap=bootstrap), specs)


@dataclass
class Outcome:
    """All that one scorer, or several, made of the inputs."""

    verdicts: list[InboundRecord] = field(default_factory=list)
    repair: list[InboundRecord] = field(default_factory=list)
    review: list[InboundRecord] = field(default_factory=list)
    deadletters: list[InboundRecord] = field(default_factory=list)

    @property
    def decided(self) -> list[Verdict]:
        return [Verdict.decode(record.value or b"") for record in self.verdicts]


Place = tuple[str, int, int]


async def audit(bootstrap: str, prefix: str, names: Sequence[str] = INPUTS) -> Outcome:
    """Read everything and hold it to what must hold whatever happened on the way."""
    outcome = Outcome()
    for name in ("verdicts", "repair", "review", "deadletters"):
        setattr(outcome, name, await content(bootstrap, topic_name(prefix, name)))
    inputs = {
        (record.topic, record.partition, record.offset): record
        for name in names
        for record in await content(bootstrap, topic_name(prefix, name))
    }
    offsets, ends = await progress(bootstrap, prefix, names)
    assert offsets == ends, "committed offsets are the ends"

    verdicts = outcome.decided
    places = [place_of(verdict) for verdict in verdicts]
    dead = [dead_place(record) for record in outcome.deadletters]
    assert Counter([*places, *dead]) == Counter(inputs.keys()), "one verdict or dead letter each"
    assert len({verdict.id for verdict in verdicts}) == len(verdicts)

    coupled = {v.id: v for v in verdicts if v.failure_class == "coupled_failure"}
    failures = [CoupledFailure.decode(record.value or b"") for record in outcome.repair]
    assert Counter(item.verdict.id for item in failures) == Counter(coupled.keys())
    assert all(item.verdict == coupled[item.verdict.id] for item in failures)

    reviewed = {
        v.id for v in verdicts if v.failure_class == "contested" or sampled_for_review(v.id, SAMPLE)
    }
    items = [ReviewItem.decode(record.value or b"") for record in outcome.review]
    assert Counter(item.verdict.id for item in items) == Counter(reviewed)

    for verdict in verdicts:
        original = inputs[place_of(verdict)]
        assert verdict.failure_class == verdict.attributes["expected"]
        assert verdict.lane == ("probe" if original.topic.endswith(PROBE) else "production")
        assert verdict.interaction_id.encode() == original.key
    for record in outcome.deadletters:
        original = inputs[dead_place(record)]
        assert (record.key, record.value) == (original.key, original.value)
        assert record.headers[: len(original.headers)] == original.headers

    for records in (outcome.verdicts, outcome.repair, outcome.review):
        assert_order_kept(records)
    return outcome


def place_of(verdict: Verdict) -> Place:
    return verdict.source.topic, verdict.source.partition, verdict.source.offset


def dead_place(record: InboundRecord) -> Place:
    headers = record.header_map
    return (
        headers["__connect.errors.topic"].decode(),
        int(headers["__connect.errors.partition"]),
        int(headers["__connect.errors.offset"]),
    )


def assert_order_kept(records: Sequence[InboundRecord]) -> None:
    """Of each key, in the order in which the inputs came."""
    by_key: dict[tuple[bytes | None, str], list[int]] = defaultdict(list)
    for record in records:
        content = json.loads(record.value or b"")
        source = content.get("verdict", content)["source"]
        by_key[record.key, source["topic"]].append(source["offset"])
    assert all(a < b for offsets in by_key.values() for a, b in pairwise(offsets))


BAD: Final[dict[str, tuple[Callable[[int], bytes | None], str, str]]] = {
    "malformed JSON": (
        lambda n: json.dumps(conversation(n, "bread")).encode()[:-9],
        "decode",
        r"^not JSON: EOF",
    ),
    "another schema version": (
        lambda n: json.dumps(conversation(n, "bread", schema="ares.interaction/2")).encode(),
        "decode",
        r"another schema than ares\.interaction/1",
    ),
    "empty": (lambda n: b"", "decode", r"the value is empty"),
    "a tombstone": (lambda n: None, "decode", r"a tombstone"),
    "10 MB": (
        lambda n: json.dumps(conversation(n, f"{CANARY} " * 1_000_000)).encode(),
        "decode",
        r"^11\d{6} bytes; the limit is 1048576 bytes",
    ),
    "invalid UTF-8": (
        lambda n: json.dumps(conversation(n, "bread")).encode().replace(b"bread", b"\xff\xfe"),
        "decode",
        r"^not UTF-8 at byte \d+",
    ),
    "NaN": (
        lambda n: json.dumps(conversation(n, "bread", score=float("nan"))).encode(),
        "decode",
        r"^NaN or Infinity, which JSON does not have",
    ),
    "an unknown role": (
        lambda n: json.dumps(
            conversation(n, "bread", messages=[{"role": "wizard", "content": CANARY}])
        ).encode(),
        "decode",
        r"^messages\.0\.role: expected 'system'",
    ),
    "a negative timestamp": (
        lambda n: json.dumps(conversation(n, "bread", occurred_at=-7)).encode(),
        "decode",
        r"^occurred_at: lies before 1970",
    ),
    "too deep": (
        lambda n: (
            json.dumps(conversation(n, "bread", extra=0)).encode()[:-2]
            + b"[" * 50
            + b"]" * 50
            + b"}"
        ),
        "decode",
        r"^nested deeper than 32 levels",
    ),
    "too many headers": (
        lambda n: json.dumps(conversation(n, "bread")).encode(),
        "decode",
        r"^70 headers; the limit is 64",
    ),
    "a field that the mapping misses": (
        lambda n: json.dumps({"q": CANARY, "other": "bread"}).encode(),
        "decode",
        r"^response: ",
    ),
    "a score that is not a number": (
        lambda n: json.dumps(conversation(n, "bread broken")).encode(),
        "score",
        r"^model reward gave nan for this conversation",
    ),
}
"""What is wrong → (value of the n-th event, the stage that refuses it, the reason given)."""


def bad(prefix: str, kind: str, number: int) -> OutboundRecord:
    name = THEIRS if kind.endswith("mapping misses") else PRODUCTION
    headers = [("kind", kind.encode())]
    headers += [("h", b"x")] * (69 if kind == "too many headers" else 0)
    value = BAD[kind][0](number)
    key = f"conversation-{number // 10}".encode()
    return OutboundRecord(topic_name(prefix, name), key, value, tuple(headers))


MAP: Final = {
    "prompt": "q",
    "response": "a",
    "policy": {"name": "'chat'", "version": "'7'"},
    "attributes": {"expected": "expected"},
}


async def test_two_thousand_events_good_and_bad(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    kinds = [kind for kind in BAD for _ in range(1 if kind == "10 MB" else 12)]
    stream = events(prefix, 2000 - len(kinds))
    for position, kind in enumerate(kinds):
        stream.insert(position * 13, bad(prefix, kind, position))
    await publish(kafka, stream)
    lanes = {PRODUCTION: "production", PROBE: "probe", THEIRS: "production"}
    inputs: list[dict[str, Any]] = [
        {"topic": topic_name(prefix, name), "lane": lane} for name, lane in lanes.items()
    ]
    inputs[-1]["map"] = MAP

    with scorer_of(
        kafka,
        prefix,
        tmp_path,
        models,
        inputs=inputs,
        environment={"PYTHONPROFILEIMPORTTIME": "1"},
    ) as scorer:
        await scorer.until_done(tuple(lanes))
        assert (await scorer.get("/readyz")).status_code == 200
        metrics = (await scorer.get("/metrics")).text
        await scorer.drained()
        log = scorer.log

    outcome = await audit(kafka, prefix, tuple(lanes))
    assert_reasons_told(outcome.deadletters, kinds)
    for record in outcome.verdicts:
        assert record.header_map["traceparent"] == TRACE
    assert_metrics_agree(metrics, outcome)
    assert_canary_kept(log, metrics, outcome)
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", log, re.MULTILINE))
    assert "onnxruntime" in imported
    assert not imported & {"torch", "transformers", "peft", "onnx", "ares_stream.training"}


def scorer_of(
    kafka: str, prefix: str, folder: Path, models: Models, **settings: Any
) -> ScorerProcess:
    return ScorerProcess(
        kafka,
        prefix,
        folder,
        harm=models.judge,
        reward=models.reward,
        **{"review_sample": SAMPLE, **settings},
    )


def assert_reasons_told(deadletters: Sequence[InboundRecord], kinds: Sequence[str]) -> None:
    """Each bad event has a dead letter whose headers say what was wrong with it."""
    page = (ROOT / "docs" / "scorer.md").read_text().partition("## Bad input")[2]
    documented = re.findall(r"^\| .+ \| `(.+)` \|$", page, re.MULTILINE)
    told = Counter(record.header_map["kind"].decode() for record in deadletters)
    assert told == Counter(kinds)
    for record in deadletters:
        headers = record.header_map
        _, stage, reason = BAD[headers["kind"].decode()]
        assert headers["__connect.errors.stage"].decode() == stage
        assert re.search(reason, headers["__connect.errors.exception.message"].decode())
        assert any(re.search(reason, example) for example in documented)


def assert_metrics_agree(metrics: str, outcome: Outcome) -> None:
    """The counters say what the topics say."""

    def total(name: str, **labels: str) -> float:
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", metrics, re.MULTILINE)
        return sum(float(value) for found, value in samples if wanted <= set(found.split(",")))

    classes = Counter((v.lane, v.failure_class.value) for v in outcome.decided)
    for (lane, failure_class), count in classes.items():
        assert total("ares_verdicts_total", lane=lane, failure_class=failure_class) == count
    stages = Counter(r.header_map["__connect.errors.stage"] for r in outcome.deadletters)
    for stage, count in stages.items():
        assert total("ares_dead_letters_total", stage=stage.decode()) == count
    assert total("ares_ingested_records_total") == sum(classes.values()) + sum(stages.values())
    assert total("ares_transactions_total", outcome="committed") >= 2 * PARTITIONS
    assert total("ares_lag_records") == 0
    assert total("ares_inflight_records") == 0
    assert total("ares_execution_provider_info", provider="CPUExecutionProvider") == 2
    assert total("ares_dead_letter_breaker_open") == 0


def assert_canary_kept(log: str, metrics: str, outcome: Outcome) -> None:
    """A word that is in every conversation is nowhere but where conversations belong."""
    assert CANARY not in log
    assert CANARY not in metrics
    canary = CANARY.encode()
    for record in (*outcome.verdicts, *outcome.repair, *outcome.review, *outcome.deadletters):
        assert not any(canary in (value or b"") for _, value in record.headers)
    assert not any(canary in (record.value or b"") for record in outcome.verdicts)
    assert all(canary in (record.value or b"") for record in outcome.repair)


async def test_killed_after_each_step_of_its_transaction_and_restarted(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    await publish(kafka, events(prefix, 600))
    # Many small transactions; the same instance id, as a restarted pod has.
    settings = {"instance": "a", "processing": {"commit_records": 20, "commit_milliseconds": 20}}
    for number, step in enumerate(("begun", "added", "written", "committed")):
        sabotage = f"{step}:3:SIGKILL"
        with scorer_of(
            kafka, prefix, tmp_path / step, models, sabotage=sabotage, **settings
        ) as scorer:
            assert await scorer.ended() == -signal.SIGKILL
        await publish(kafka, events(prefix, 100, start=600 + number * 100))
    with scorer_of(kafka, prefix, tmp_path / "last", models, **settings) as scorer:
        await scorer.until_done(INPUTS)
        await scorer.drained()

    assert len((await audit(kafka, prefix)).verdicts) == 1000


async def test_two_scorers_share_the_partitions_and_hand_them_over(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    await publish(kafka, events(prefix, 300))
    with scorer_of(kafka, prefix, tmp_path / "a", models) as first:
        await first.until_done(INPUTS, records=100)
        with scorer_of(kafka, prefix, tmp_path / "b", models) as second:
            # Two topics of PARTITIONS, and the anchors' one: either scorer may have the odd one.
            await first.holds(PARTITIONS, PARTITIONS + 1)
            await second.holds(PARTITIONS, PARTITIONS + 1)
            await publish(kafka, events(prefix, 300, start=300))
            await second.until_done(INPUTS, records=400)
            await publish(kafka, events(prefix, 200, start=600))
            await first.drained()
            await second.holds(2 * PARTITIONS + 1)
            await publish(kafka, events(prefix, 200, start=800))
            await second.until_done(INPUTS)
            await second.drained()

    assert len((await audit(kafka, prefix)).verdicts) == 1000


def announcement(prefix: str, bundle: Bundle, **changed: Any) -> OutboundRecord:
    fields: dict[str, Any] = {
        "model": bundle.manifest.name,
        "kind": bundle.manifest.kind,
        "digest": bundle.digest,
        "uri": bundle.path.as_uri(),
        "state": ReleaseState.ACTIVE,
        "changed_at": datetime(2026, 10, 1, tzinfo=UTC),
        "changed_by": "ada",
    }
    release = Release(**{**fields, **changed})
    topic = topic_name(prefix, topics.RELEASES)
    return OutboundRecord(topic, release.model.encode(), release.encode())


async def send_until(bootstrap: str, prefix: str, enough: asyncio.Event) -> int:
    """Keep the scorer busy, some hundred events a second; returns how many were sent."""
    sent = 0
    while not enough.is_set():
        await publish(bootstrap, events(prefix, 30, start=sent))
        sent += 30
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await enough.wait()
    return sent


async def test_a_release_takes_over_under_load_and_no_event_is_lost_or_doubled(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    old, new = models.reward.digest, models.repaired.digest
    # As of an object store: what this URL names is not read in place but copied.
    store = f"simplecache::{models.repaired.path.as_uri()}"
    cache = tmp_path / "cache"
    with scorer_of(kafka, prefix, tmp_path, models, release_cache=str(cache)) as scorer:
        await scorer.said("ready")
        swapped = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(send_until(kafka, prefix, swapped))
            await scorer.until_done(INPUTS, records=200)
            await publish(
                kafka,
                [
                    announcement(prefix, models.repaired, state=ReleaseState.CANDIDATE),
                    announcement(prefix, models.repaired, digest="0" * 64),
                ],
            )
            await scorer.said("release refused")
            await publish(kafka, [announcement(prefix, models.repaired, uri=store)])
            await scorer.said("release swapped")
            swapped.set()
        assert [item.name for item in (cache / "reward").iterdir()] == [new]
        await publish(kafka, events(prefix, 200, start=load.result()))
        await scorer.until_done(INPUTS)
        assert await scorer.metric(f'ares_release_info{{digest="{new[:12]}",model="reward"}}') == 1
        assert await scorer.metric(f'ares_release_info{{digest="{old[:12]}",model="reward"}}') == 0
        assert await scorer.metric('ares_release_swaps_total{model="reward"}') == 1
        # It may have been tried again before the next one was announced.
        refused = scorer.events("release refused")
        assert await scorer.metric("ares_release_refusals_total") == len(refused) >= 1
        assert all("the release names 000000000000" in item["error"] for item in refused)
        await scorer.drained()
        assert all(json.loads(line)["event"] for line in scorer.log.splitlines())

    outcome = await audit(kafka, prefix)
    used: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for verdict in outcome.decided:
        assert verdict.releases["judge"] == models.judge.digest
        digest = verdict.releases["reward"]
        # The scores are those of the model that the verdict names.
        assert abs(verdict.reward.score) == {old: 1.0, new: 2.0}[digest]
        place = verdict.source.topic, verdict.source.partition
        used[place].append((verdict.source.offset, digest))
    for digests in used.values():
        in_order = [digest for _, digest in sorted(digests)]
        assert in_order == [old] * in_order.count(old) + [new] * in_order.count(new)
    assert {digest for digests in used.values() for _, digest in digests} == {old, new}


async def test_a_restart_begins_with_the_active_release(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    true = announcement(prefix, models.repaired)
    # A second one that calls itself active, beside it; and a judge that was rejected and is active.
    beside = announcement(prefix, models.repaired, digest="0" * 64)
    beside = replace(beside, key=b"reward@" + b"0" * 64)
    rejected = announcement(prefix, models.judge, digest="1" * 64, state=ReleaseState.REJECTED)
    rejected = replace(rejected, key=b"judge@" + b"1" * 64)
    contradicting = announcement(prefix, models.judge, digest="1" * 64)
    announced = [true, beside, rejected, contradicting]
    await publish(kafka, [*announced, *events(prefix, 20)])
    with scorer_of(kafka, prefix, tmp_path, models) as scorer:
        await scorer.until_done(INPUTS)
        refused = {item["error"] for item in scorer.events("release refused")}
        assert any("000000000000 is active under a key" in item for item in refused)
        assert any("111111111111 is announced as active, and as" in item for item in refused)
        assert await scorer.metric("ares_release_refusals_total") >= len(refused)
        await scorer.drained()

    digests = {verdict.releases["reward"] for verdict in (await audit(kafka, prefix)).decided}
    assert digests == {models.repaired.digest}


async def test_an_unreachable_broker_is_waited_for_then_named(
    prefix: str, tmp_path: Path, models: Models
) -> None:
    with scorer_of(
        "127.0.0.1:1", prefix, tmp_path, models, environment={"ARES_PATIENCE_SECONDS": "3"}
    ) as scorer:
        await scorer.said("waiting for Kafka")
        alive, ready = await scorer.get("/livez"), await scorer.get("/readyz")
        assert alive.status_code == 200
        assert ready.status_code == 503
        assert ready.text == "not ready: waiting for Kafka at 127.0.0.1:1\n"
        assert await scorer.ended() == 3
        assert "ares: Kafka at 127.0.0.1:1: " in scorer.log


async def test_a_missing_topic_is_named_with_the_command_that_makes_it(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    names = [topic_name(prefix, name) for name in (PRODUCTION, PROBE, topics.DEADLETTERS)]
    specs = [topics.TopicSpec(name, 1, 1) for name in names]
    await create_topics(KafkaConnection(bootstrap=kafka), specs)
    with scorer_of(kafka, prefix, tmp_path, models) as scorer:
        assert await scorer.ended() == 2
        absent = ("interactions.anchor", "releases", "repair", "review", "verdicts")
        missing = ", ".join(prefix + name for name in absent)
        assert f"missing on {kafka}: {missing}; create them with `ares topics create`" in scorer.log


async def test_bundles_that_cannot_be_used_are_named_before_anything_is_read(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    nan = write_reward(tmp_path / "nan", dict.fromkeys(WORDS, float("nan")))
    kin = write_reward(tmp_path / "kin", base=models.judge.manifest.lineage.base)
    wrong = {
        "a bundle of kind harm, expected reward": replace(models, reward=models.judge),
        "the first score failed: model reward gave nan": replace(models, reward=nan),
        "share the base words-a; independence is the point": replace(models, reward=kin),
    }
    with ExitStack() as stack:
        scorers = {
            reason: stack.enter_context(scorer_of(kafka, prefix, tmp_path / str(n), chosen))
            for n, (reason, chosen) in enumerate(wrong.items())
        }
        for reason, scorer in scorers.items():
            assert await scorer.ended() == 2
            assert reason in scorer.log
            assert not scorer.events("ready")


async def test_too_many_bad_events_of_a_topic_pause_it_where_an_alert_can_see_it(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    await create(kafka, prefix)
    flood = [bad(prefix, "malformed JSON", 0) for _ in range(300)]
    await publish(kafka, [replace(record, key=b"one") for record in flood])
    with scorer_of(kafka, prefix, tmp_path, models) as scorer:
        async with asyncio.timeout(150):
            while "records in a row were refused" not in scorer.log:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        ready = await scorer.get("/readyz")
        assert ready.status_code == 503
        assert "100 records in a row were refused (100 x not JSON" in ready.text
        flooded = flood[0].topic
        assert flooded in ready.text
        assert await scorer.metric(f'ares_dead_letter_breaker_open{{topic="{flooded}"}}') == 1
        scorer.send(signal.SIGTERM)
        assert await scorer.ended() == 0
    refused = await content(kafka, topic_name(prefix, topics.DEADLETTERS))
    assert len(refused) >= 100
