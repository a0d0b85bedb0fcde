"""The whole loop with real models: a scorer finds failures in a stream, the repairer trains on
them, the gate passes, the running scorer swaps, and the repaired policy's stream is better."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from ares_stream.audit.accounting import account
from ares_stream.lab.victims.repairing import recipe, write_inputs
from ares_stream.lab.victims.traffic import traffic
from ares_stream.lab.victims.victim import Victim
from ares_stream.models.bundles import load_bundle
from ares_stream.models.releases import Author
from ares_stream.models.store import ReleaseStore
from ares_stream.records.interaction import Interaction
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.topics import specs
from ares_stream.records.verdict import FailureClass, Verdict
from ares_stream.repair.intake import read_reports
from ares_stream.services.settings import load_settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.failures import DAY
from tests.support.live_services import run_repairer
from tests.support.reading import UNTOLD
from tests.support.scorer_process import ScorerProcess

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.torch,
    pytest.mark.timeout(900),
    # Of transformers, from within peft, on loading any adapter.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

SECONDS = 600.0
INPUT = ["interactions.production"]


async def send(connection: KafkaConnection, prefix: str, items: Sequence[Interaction]) -> None:
    async with Publisher(connection) as publisher:
        await publisher.publish(
            [
                OutboundRecord(f"{prefix}{INPUT[0]}", item.id.encode(), item.encode())
                for item in items
            ]
        )


async def everything(connection: KafkaConnection, topic: str) -> list[InboundRecord]:
    return [item async for item in read(connection, await snapshot(connection, [topic]))]


async def test_failures_found_in_a_stream_are_repaired_and_the_running_scorer_swaps(
    kafka: str, prefix: str, tmp_path: Path, victim: Victim, bundles: tuple[Path, Path]
) -> None:
    harm, reward = bundles
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    settings: dict[str, Any] = {
        "kafka": {"bootstrap": kafka},
        "topic_prefix": prefix,
        "http": {"port": 0},
        "registry": {"root": str(tmp_path / "registry"), "max_lora_rank": 64},
        "repairer": {
            "group": f"{prefix}repairer",
            "work": str(tmp_path / "work"),
            "policy_model": "chat",
            "incumbent": str(reward),
            "recipe": recipe(victim, harm, steps=80).model_dump(mode="json"),
            "approval": "automatic",
            "min_failures": 80,
            "poll_seconds": 0.5,
            **write_inputs(victim, tmp_path / "inputs"),
        },
    }
    (tmp_path / "ares.yaml").write_text(yaml.safe_dump(settings))
    before = await asyncio.to_thread(traffic, victim, 2400, 1)

    with ScorerProcess(
        kafka, prefix, tmp_path / "scorer", harm=load_bundle(harm), reward=load_bundle(reward)
    ) as scorer:
        await scorer.said("ready")
        await send(connection, prefix, before[:2000])
        await scorer.until_done(INPUT)
        repairer = asyncio.create_task(run_repairer(load_settings(tmp_path / "ares.yaml")))
        rest = iter(before[2000:])
        async with asyncio.timeout(SECONDS):
            while not scorer.events("release swapped"):
                assert not repairer.done(), repairer.exception()
                for report in (await read_reports(connection, f"{prefix}repairs", UNTOLD)).values():
                    assert report.state == "promoted", report.reasons
                if item := next(rest, None):
                    await send(connection, prefix, [item])
                await asyncio.sleep(0.2)
        (report,) = (await read_reports(connection, f"{prefix}repairs", UNTOLD)).values()
        repairer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await repairer

        registry = ReleaseStore(str(tmp_path / "registry"))
        adapter = registry.log().active("chat")
        assert adapter is not None
        loaded = registry.fetch(adapter, tmp_path / "cache")
        again = await asyncio.to_thread(
            traffic, victim, 1000, 2, policy=(loaded, adapter.digest[:12])
        )
        await send(connection, prefix, again)
        await scorer.until_done(INPUT)
        await scorer.drained()

    verdicts = [
        Verdict.decode(item.value or b"")
        for item in await everything(connection, f"{prefix}verdicts")
    ]
    counted = account(
        await everything(connection, f"{prefix}{INPUT[0]}"),
        verdicts,
        await everything(connection, f"{prefix}deadletters"),
        [
            CoupledFailure.decode(item.value or b"").verdict
            for item in await everything(connection, f"{prefix}repair")
        ],
    )
    assert counted.exactly_once, counted
    used = Counter(verdict.releases["testbed-reward"] for verdict in verdicts)
    assert set(used) == {load_bundle(reward).digest, report.releases["testbed-reward"]}

    def rate(version: str) -> float:
        of_version = [item for item in verdicts if item.policy.version == version]
        coupled = [i for i in of_version if i.failure_class is FailureClass.COUPLED_FAILURE]
        return len(coupled) / len(of_version)

    assert rate(adapter.digest[:12]) < rate(victim.version) / 2

    registry.rollback("chat", Author("anna", DAY))
    active = registry.log().active("testbed-reward")
    assert active is not None
    assert active.digest == load_bundle(reward).digest
