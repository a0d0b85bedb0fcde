"""A campaign on a real broker: whatever fails on the way, it ends in the same state, and each
probe is published exactly once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ares_stream.errors import SettingsError, StreamError, TargetError
from ares_stream.probes.campaign import CampaignPolicy
from ares_stream.probes.memory import UNANSWERED, Progress
from ares_stream.probes.metrics import ProberMetrics
from ares_stream.probes.plan import CampaignPlan, load_campaign
from ares_stream.probes.prober import (
    ALL_REFUSED,
    ProberObserver,
    ProberPolicy,
    campaign_record,
)
from ares_stream.records import topics
from ares_stream.records.topics import topic_name
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.unreadable import UnreadableRecord
from tests.support.probing import (
    TinyPolicy,
    campaign_file,
    kill_and_compare,
    published,
    run,
    said,
    scoring,
)
from tests.support.reading import UNTOLD
from tests.support.target_server import create_app, serving

pytestmark = pytest.mark.kafka

Respond = Callable[[Request, str, int], Awaitable[Response]]


def plan(folder: Path, budget: int = 60) -> CampaignPlan:
    made = load_campaign(campaign_file(folder, "http://127.0.0.1:1/v1")).plan()
    return replace(made, policy=CampaignPolicy(budget, 10))


@pytest.fixture(scope="module")
def untroubled(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Progress:
    """How the campaign ends when nothing fails."""
    folder = tmp_path_factory.mktemp("untroubled")

    async def work() -> Progress:
        async with (
            scoring(kafka, "untroubled.", folder) as connection,
            serving(create_app(TinyPolicy())) as url,
        ):
            return await run(connection, "untroubled.", plan(folder), url)

    return asyncio.run(work())


def completion(text: str) -> Response:
    return JSONResponse({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def app(respond: Respond) -> Starlette:
    """An endpoint; `respond` gets the request, the prompt and the request's number."""
    count = 0

    async def chat(request: Request) -> Response:
        nonlocal count
        count += 1
        document = await request.json()
        return await respond(request, document["messages"][-1]["content"], count)

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


async def answer(request: Request, prompt: str, number: int) -> Response:
    return completion(said(prompt, (await request.json())["seed"]))


class Pauses(ProberObserver):
    """Remembers why a campaign waited."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()

    def paused(self, reason: str | None) -> None:
        if reason:
            self.reasons.add(reason)


async def down(request: Request, prompt: str, number: int) -> Response:
    if 20 < number < 60:
        return Response("no", 503)
    return await answer(request, prompt, number)


async def limiting(request: Request, prompt: str, number: int) -> Response:
    if number % 3 == 0:
        return Response("later", 429, {"retry-after": "0.01"})
    return await answer(request, prompt, number)


async def slow(request: Request, prompt: str, number: int) -> Response:
    if number % 17 == 0:
        await asyncio.sleep(1.0)
    return await answer(request, prompt, number)


async def rubbish(request: Request, prompt: str, number: int) -> Response:
    wrong = [Response(b"\xff\x00{", 200), JSONResponse([]), JSONResponse({"choices": []})]
    if number % 5 == 0:
        return wrong[number % 3]
    return await answer(request, prompt, number)


@pytest.mark.parametrize(
    ("respond", "waits"),
    [(down, True), (limiting, False), (slow, False), (rubbish, False)],
    ids=["down", "rate-limiting", "slow", "returning rubbish"],
)
async def test_a_campaign_ends_the_same_when_its_target_fails_for_a_while(
    respond: Respond,
    waits: bool,
    kafka: str,
    prefix: str,
    tmp_path: Path,
    untroubled: Progress,
) -> None:
    pauses = Pauses()
    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(respond)) as url:
        progress = await run(connection, prefix, plan(tmp_path), url, pauses, seconds=0.4)
        sent = await published(connection, prefix)
    assert progress == untroubled
    assert len({item.id for item in sent}) == len(sent)
    # A machine that is busy may have the others wait as well: their time-out is short.
    assert "target" in pauses.reasons or not waits


async def test_a_query_that_always_fails_is_given_up_while_others_are_answered(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    campaign = plan(tmp_path, budget=20)
    refused: set[str] = set()

    async def poison(request: Request, prompt: str, number: int) -> Response:
        if number == 3 or prompt in refused:
            refused.add(prompt)
            return Response("broken", 500)
        return await answer(request, prompt, number)

    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(poison)) as url:
        progress = await run(connection, prefix, campaign, url)
        sent = await published(connection, prefix)
    unanswered = [item for item in sent if UNANSWERED in item.attributes]
    assert {item.prompt for item in unanswered} == refused
    assert all(item.response == "" for item in unanswered)
    assert progress.queries == 20
    assert progress.void >= 1


async def test_a_target_that_refuses_the_key_ends_the_campaign_with_its_reason(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async def forbid(request: Request, prompt: str, number: int) -> Response:
        return Response("no", 401)

    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(forbid)) as url:
        with pytest.raises(SettingsError, match=r"target.api_key: .* answered 401"):
            await run(connection, prefix, plan(tmp_path), url)


@pytest.mark.parametrize(("budget", "asked"), [(20, 20), (400, ALL_REFUSED)])
async def test_a_target_that_refuses_every_query_ends_the_campaign_with_its_reason(
    kafka: str, prefix: str, tmp_path: Path, budget: int, asked: int
) -> None:
    async def refuse(request: Request, prompt: str, number: int) -> Response:
        return JSONResponse({"error": {"message": "no such voice"}}, 400)

    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(refuse)) as url:
        with pytest.raises(TargetError, match=r"none of .* queries was answered") as caught:
            await run(connection, prefix, plan(tmp_path, budget), url)
        sent = await published(connection, prefix)
    assert asked <= len(sent) < asked + 25
    assert caught.value.exit_code == 3
    if budget > ALL_REFUSED:
        assert "answered 400: no such voice" in str(caught.value)


@pytest.mark.parametrize("text", ["", "  "])
async def test_a_target_that_says_nothing_has_answered_nothing(
    kafka: str, prefix: str, tmp_path: Path, text: str
) -> None:
    async def empty(request: Request, prompt: str, number: int) -> Response:
        return completion(text)

    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(empty)) as url:
        with pytest.raises(TargetError, match=r"none of .* queries was answered"):
            await run(connection, prefix, plan(tmp_path, budget=20), url)
        sent = await published(connection, prefix)
    assert {item.attributes["finish"] for item in sent} == {"stop"}


async def test_a_content_filters_empty_answers_are_answers_of_the_system(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async def filtered(request: Request, prompt: str, number: int) -> Response:
        choice = {"message": {"content": None}, "finish_reason": "content_filter"}
        return JSONResponse({"choices": [choice]})

    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(filtered)) as url:
        progress = await run(connection, prefix, plan(tmp_path, budget=20), url)
    assert (progress.queries, progress.failures) == (20, 0)


async def test_rubbish_and_what_cannot_be_scored_earn_nothing(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    async def loops(request: Request, prompt: str, number: int) -> Response:
        return completion("poison nice " * 40)

    async with scoring(kafka, prefix, tmp_path) as connection, serving(app(loops)) as url:
        progress = await run(connection, prefix, plan(tmp_path, budget=20), url)
    assert (progress.void, progress.failures) == (20, 0)


async def test_a_campaign_waits_while_the_scorer_is_behind_and_says_so_when_it_gives_up(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    pauses = Pauses()
    policy = ProberPolicy(
        scorer_groups=dict.fromkeys(("production", "probe"), f"{prefix}scorer"),
        max_lag_records=10,
        lag_seconds=0.1,
        patience_seconds=0.3,
    )
    target = TinyPolicy()
    async with scoring(kafka, prefix, tmp_path) as connection, serving(create_app(target)) as url:
        backlog = [
            OutboundRecord(topic_name(prefix, topics.PRODUCTION), b"%d" % k, b"{}")
            for k in range(11)
        ]
        async with Publisher(connection) as publisher:
            await publisher.publish(backlog)
        with pytest.raises(TargetError, match="the scorer is 11 records behind"):
            await run(connection, prefix, plan(tmp_path), url, pauses, policy=policy)
    assert pauses.reasons == {"lag"}
    assert not target.asked


async def test_a_second_prober_takes_the_campaign_over_and_the_first_one_ends(
    kafka: str, prefix: str, tmp_path: Path, untroubled: Progress
) -> None:
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy(seconds=0.2))) as url,
    ):
        first = asyncio.create_task(run(connection, prefix, plan(tmp_path), url))
        while not await published(connection, prefix):
            assert not first.done()
        second = await run(connection, prefix, plan(tmp_path), url)
        with pytest.raises(StreamError, match="another process has taken over"):
            await first
        sent = await published(connection, prefix)
    assert second == untroubled
    assert len({item.id for item in sent}) == len(sent)


async def test_malformed_records_that_name_the_campaign_are_named_and_end_nothing(
    kafka: str, prefix: str, tmp_path: Path, untroubled: Progress
) -> None:
    campaign = plan(tmp_path)
    bad = [
        campaign.id.encode(),
        f'{{"probe": {{"campaign": "{campaign.id}"}}}}'.encode(),
        b"\xff" + campaign.id.encode(),
    ]
    told: list[UnreadableRecord] = []

    class Told(ProberMetrics):
        def passed_over(self, record: UnreadableRecord) -> None:
            super().passed_over(record)
            told.append(record)

    registry = CollectorRegistry()
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy())) as url,
    ):
        async with Publisher(connection) as publisher:
            await publisher.publish(
                [
                    OutboundRecord(topic_name(prefix, name), b"k", value)
                    for name in (topics.PROBE, topics.VERDICTS)
                    for value in bad
                ]
            )
        progress = await run(connection, prefix, campaign, url, Told(registry))
        record = [item async for item in campaign_record(connection, prefix, campaign.id, UNTOLD)]
    assert progress == untroubled
    assert len(record) == len({item.interaction.id for item in record}) > 0
    assert sorted({item.topic for item in told}) == sorted(
        topic_name(prefix, name) for name in (topics.PROBE, topics.VERDICTS)
    )
    assert len(told) == len(bad) * 2
    assert registry.get_sample_value("ares_prober_unreadable_records_total") == len(bad) * 2


async def test_metrics_tell_yield_coverage_calibration_and_cost(
    kafka: str, prefix: str, tmp_path: Path, untroubled: Progress
) -> None:
    registry = CollectorRegistry()
    async with (
        scoring(kafka, prefix, tmp_path) as connection,
        serving(create_app(TinyPolicy())) as url,
    ):
        observer = ProberMetrics(registry, prices=(2.0, 4.0))
        campaign = plan(tmp_path)
        await run(connection, prefix, campaign, url, observer)
        record = [item async for item in campaign_record(connection, prefix, campaign.id, UNTOLD)]
    value = registry.get_sample_value
    assert value("ares_prober_queries") == 60
    assert value("ares_prober_failures") == untroubled.failures > 0
    assert (value("ares_prober_published_total") or 0) >= len(record) > 0
    assert value("ares_prober_cost_total") == pytest.approx(len(record) * 32e-6, rel=0.2)
    assert value("ares_prober_paused", {"reason": "budget"}) == 1
    assert b'ares_prober_component_probes{axis="topic",component=' in generate_latest(registry)


async def test_a_prober_killed_again_and_again_ends_as_one_that_never_was(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    await kill_and_compare(kafka, prefix, tmp_path, kills=5)
