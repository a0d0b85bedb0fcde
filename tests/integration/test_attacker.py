"""A campaign with an attacker on a real broker: whoever words a probe, its words are final once
published, and an attacker that fails costs the campaign nothing but its words."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ares_stream.errors import SettingsError
from ares_stream.probes.attacker import Fault, Kind
from ares_stream.probes.metrics import ProberMetrics
from ares_stream.probes.plan import CampaignPlan, load_campaign
from ares_stream.probes.prober import ProberObserver, ProberPolicy, campaign_record, rebuild
from ares_stream.probes.targets import Target
from ares_stream.probes.wording import COMPOSER, MADE_BY
from ares_stream.records.interaction import Interaction
from tests.support.probing import (
    TinyAttacker,
    TinyPolicy,
    attacker_section,
    campaign_file,
    kill_and_compare,
    published,
    run,
    scoring,
)
from tests.support.reading import UNTOLD
from tests.support.target_server import create_app, serving

pytestmark = pytest.mark.kafka

NOWHERE = "http://127.0.0.1:1/v1"


def plan(folder: Path, budget: int = 60) -> CampaignPlan:
    section = attacker_section(NOWHERE)
    return load_campaign(campaign_file(folder, NOWHERE, budget=budget, attacker=section)).plan()


@asynccontextmanager
async def both(attacker: Target) -> AsyncIterator[tuple[str, str]]:
    """The URLs of a target and of an attacker."""
    async with serving(create_app(TinyPolicy())) as one, serving(create_app(attacker)) as other:
        yield one, other


def by_probe(sent: list[Interaction]) -> dict[str, list[Interaction]]:
    probes: dict[str, list[Interaction]] = {}
    for item in sent:
        assert item.probe is not None
        probes.setdefault(item.probe.id, []).append(item)
    return probes


async def test_an_attacker_words_its_share_and_every_interaction_tells_who_did(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    # So many that each language is drawn, whatever the campaign's id makes of the seeds.
    campaign = plan(tmp_path, budget=200)
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        both(TinyAttacker()) as (target, attacker),
    ):
        progress = await run(
            connection,
            prefix,
            campaign,
            target,
            ProberMetrics(registry, attacker_prices=(1.0, 1.0)),
            attacker=attacker,
        )
        record = [item async for item in campaign_record(connection, prefix, campaign.id, UNTOLD)]
        sent = await published(connection, prefix)
        state = await rebuild(connection, prefix, campaign, UNTOLD)
    assert state.state() == progress.state
    assert progress.queries == 200
    made_by = Counter(item.verdict.attributes[MADE_BY] for item in record)
    assert set(made_by) == {
        COMPOSER,
        "attacker-mutation",
        "attacker-paraphrase",
        "attacker-translation-German",
        "attacker-translation-Swahili",
    }
    probes = by_probe(sent)
    for items in probes.values():
        assert len({item.messages for item in items}) == 1
    value = registry.get_sample_value
    name = "ares_prober_attacker_probes_total"
    kinds = ("mutation", "paraphrase", "translation")
    worded = sum(value(name, {"kind": kind, "outcome": "worded"}) or 0 for kind in kinds)
    refused = sum(value(name, {"kind": kind, "outcome": "refusal"}) or 0 for kind in kinds)
    assert worded == sum(items[0].attributes[MADE_BY] != COMPOSER for items in probes.values())
    assert refused > 0
    assert value("ares_prober_attacker_tokens_total", {"kind": "prompt"}) == 20 * (worded + refused)
    assert value("ares_prober_cost_total") == pytest.approx(30e-6 * (worded + refused))


class Stop(ProberObserver):
    """Ends a life after so many transactions."""

    def __init__(self, transactions: int) -> None:
        self.left = transactions
        self.ended = asyncio.Event()

    def published(self, count: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.ended.set()


async def test_words_are_final_once_published_though_the_attacker_never_says_the_same_twice(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    campaign = plan(tmp_path)
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        both(TinyAttacker(moody=True)) as (target, attacker),
    ):
        kept: dict[str, Interaction] = {}
        for transactions in (1, 2, 5):
            stop = Stop(transactions)
            life = asyncio.create_task(
                run(connection, prefix, campaign, target, stop, attacker=attacker)
            )
            await stop.ended.wait()
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
            now = {item.id: item for item in await published(connection, prefix)}
            assert kept.items() <= now.items()
            kept = now
        progress = await run(connection, prefix, campaign, target, attacker=attacker)
        sent = await published(connection, prefix)
        state = await rebuild(connection, prefix, campaign, UNTOLD)
    assert kept.items() <= {item.id: item for item in sent}.items()
    assert len({item.id for item in sent}) == len(sent)
    assert (state.state(), len(state.failures)) == (progress.state, progress.failures)
    probes = by_probe(sent)
    assert any(
        len(items) > 1 and "attacker" in items[0].attributes[MADE_BY] for items in probes.values()
    )
    for items in probes.values():
        assert len({(item.messages, item.attributes[MADE_BY]) for item in items}) == 1


async def test_a_prober_with_an_attacker_that_is_killed_ends_as_one_that_never_was(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    await kill_and_compare(kafka, prefix, tmp_path, kills=1, attacked=True)


class Faults(ProberObserver):
    """Remembers what came of the attacker's words."""

    def __init__(self) -> None:
        self.seen: Counter[str | None] = Counter()

    def reworded(self, kind: Kind, fault: Fault | None) -> None:
        self.seen[fault] += 1


def answering(response: Response | None) -> Starlette:
    """An attacker that always answers this; None: never in time."""

    async def chat(request: Request) -> Response:
        if response is None:
            await asyncio.Event().wait()
        assert response is not None
        return response

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (Response("no", 503), "unanswered"),
        (None, "unanswered"),
        (JSONResponse({"choices": [{"message": {"content": "1. a\n2. b"}}]}), "form"),
    ],
    ids=["down", "silent", "not one message"],
)
async def test_a_campaign_goes_on_with_the_composers_words_when_the_attacker_fails(
    response: Response | None, fault: str, kafka: str, prefix: str, tmp_path: Path
) -> None:
    faults = Faults()
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy())) as target,
        serving(answering(response)) as attacker,
    ):
        progress = await run(
            connection,
            prefix,
            plan(tmp_path, budget=20),
            target,
            faults,
            attacker=attacker,
            policy=ProberPolicy(patience_seconds=60, attacker_seconds=0.3),
        )
        sent = await published(connection, prefix)
    assert progress.queries == 20
    assert set(faults.seen) == {fault}
    assert {item.attributes[MADE_BY] for item in sent} == {COMPOSER}


async def test_an_attacker_that_refuses_the_key_ends_the_campaign_with_its_reason(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy())) as target,
        serving(answering(Response("no", 401))) as attacker,
    ):
        with pytest.raises(SettingsError, match=r"api_key: .* answered 401"):
            await run(connection, prefix, plan(tmp_path), target, attacker=attacker)
        with pytest.raises(SettingsError, match=r"attacker: campaign .* has one"):
            await run(connection, prefix, plan(tmp_path), target)
