"""`ares loop` beside running services: a round, the wait for a repair, another round."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from ares_stream.probes.wording import COMPOSER, MADE_BY
from ares_stream.records.base import Interval
from ares_stream.records.repair import RepairReport
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.probing import (
    TinyAttacker,
    TinyPolicy,
    attacker_section,
    campaign_file,
    published,
    scoring,
)
from tests.support.target_server import create_app, serving

pytestmark = pytest.mark.kafka

BUDGET = 40
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def report(plan: str) -> OutboundRecord:
    figures = {"cfr": Interval(value=0.1, low=0.05, high=0.2, count=100)}
    made = RepairReport(
        plan_id=plan,
        state="promoted",
        method="joint",
        batch=(),
        reasons=("all checks passed",),
        before=figures,
        after=figures,
        started_at=NOW,
        finished_at=NOW,
    )
    return OutboundRecord("", plan.encode(), made.encode())


async def start(kafka: str, prefix: str, campaign: Path, *words: str) -> asyncio.subprocess.Process:
    settings = campaign.with_name("settings.yaml")
    settings.write_text(yaml.safe_dump({"topic_prefix": prefix}))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ares_stream", "loop", str(campaign)),
        *("--settings", str(settings), *words),
        env={**os.environ, "ARES_KAFKA__BOOTSTRAP": kafka},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_second_round_begins_when_a_new_repair_is_decided(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy())) as url,
        Publisher(connection) as publisher,
    ):

        async def tell(plan: str) -> None:
            record = report(plan)
            await publisher.publish([OutboundRecord(f"{prefix}repairs", record.key, record.value)])

        await tell("an-older-plan")
        campaign = campaign_file(tmp_path, url, budget=BUDGET, batch=20)
        figures = tmp_path / "loop.json"
        process = await start(kafka, prefix, campaign, "--json", str(figures))
        assert process.stderr is not None
        async with asyncio.timeout(120):
            while b"waiting for the repair" not in (line := await process.stderr.readline()):
                assert line, "ended without waiting"
            assert len(await published(connection, prefix)) == BUDGET
            await tell("a-new-plan")
            out, error = await process.communicate()
        assert process.returncode == 0, error.decode()

    document = json.loads(out)
    assert document == json.loads(figures.read_text())
    first, second = document["rounds"]
    assert (first["round"], second["round"]) == (1, 2)
    assert first["queries"] == second["queries"] == BUDGET
    assert first["repair"]["plan_id"] == "a-new-plan"
    assert second["repair"] is None


async def test_without_a_repair_in_time_it_ends_with_1_and_says_what_to_look_at(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with scoring(kafka, prefix, tmp_path), serving(create_app(TinyPolicy())) as url:
        campaign = campaign_file(tmp_path, url, budget=BUDGET, batch=20)
        process = await start(kafka, prefix, campaign, "--repair-hours", "0.001")
        async with asyncio.timeout(150):
            _, error = await process.communicate()
    assert process.returncode == 1
    assert b"is a repairer running" in error


async def test_an_attacker_of_the_campaign_words_probes_of_every_round(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy())) as url,
        serving(create_app(TinyAttacker())) as other,
    ):
        section = attacker_section(other)
        campaign = campaign_file(tmp_path, url, budget=BUDGET, batch=20, attacker=section)
        process = await start(kafka, prefix, campaign, "--rounds", "1")
        async with asyncio.timeout(120):
            _, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        makers = {item.attributes[MADE_BY] for item in await published(connection, prefix)}
    assert COMPOSER in makers
    assert any(maker.startswith("attacker-") for maker in makers)
