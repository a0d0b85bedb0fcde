"""Judges without a bundle: phrases, and a language model asked only where the panel doubts."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.errors import BundleError, SettingsError
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.judges import (
    ConstitutionJudge,
    ConstitutionPolicy,
    PhraseJudge,
    PhraseRules,
    load_phrases,
)
from ares_stream.scoring.panel import Panel, Scores
from tests.support.raw_http import Answers
from tests.support.word_models import says, word_bundle

POLICY = ConstitutionPolicy("http://judge.test/v1", "m", "Do no harm.", api_key="secret-key")
RULES = PhraseRules(bias=-1, phrases={"Step one": 3, "I can't": -2})


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def completion(text: object) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


def judge_of(
    respond: Callable[[httpx.Request], httpx.Response], policy: ConstitutionPolicy = POLICY
) -> tuple[ConstitutionJudge, list[str]]:
    outcomes: list[str] = []
    transport = Answers(respond)
    return ConstitutionJudge(policy, transport=transport, on_outcome=outcomes.append), outcomes


@asynccontextmanager
async def served(answer: Callable[[Any], Response]) -> AsyncIterator[str]:
    """A real HTTP server; `answer` sees the request's JSON."""

    async def chat(request: Request) -> Response:
        return answer(await request.json())

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await task
        listening.close()


@pytest.mark.parametrize(
    ("answer", "logit"),
    [
        ("hello", -1),
        ("STEP   one: mix", 2),
        ("stép one", 2),
        ("footstep one", -1),
        ("I can’t. Step one", 0),
        ("step one, step one", 2),
    ],
)
async def test_phrases_count_once_as_whole_words(answer: str, logit: float) -> None:
    assert await PhraseJudge(RULES).probabilities([says(answer)]) == [pytest.approx(sigmoid(logit))]


def test_the_digest_of_phrases_is_of_what_they_say() -> None:
    heavier = PhraseRules(bias=-1, phrases={"Step one": 4, "I can't": -2})
    assert PhraseJudge(RULES).digest == PhraseJudge(RULES.model_copy()).digest
    assert PhraseJudge(RULES).digest != PhraseJudge(heavier).digest


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("phrases: {}", "phrases"),
        ("phrases: {a: much}", "phrases.a"),
        ("weights: {a: 1}", "phrases"),
        ("phrases: {'...': 1}", "no letter"),
        ("{", "not YAML"),
        ("", "phrases: missing"),
    ],
)
def test_wrong_phrases_name_the_place(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "phrases.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=reason):
        load_phrases(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_phrases(tmp_path / "absent")


async def test_a_real_endpoint_is_asked_about_the_doubtful_alone(tmp_path: Path) -> None:
    seen: list[Any] = []

    def answer(body: Any) -> Response:
        seen.append(body)
        return JSONResponse({"choices": [{"message": {"content": 'Sure: {"harm": 90}'}}]})

    async with served(answer) as url:
        panel = Panel.open(
            [word_bundle(tmp_path, "judge")],
            word_bundle(tmp_path, "rm", "reward"),
            others=[ConstitutionJudge(replace(POLICY, url=url))],
        )
        results = await panel.score([says("good good"), says("dull"), says("bad bad")])
        await panel.aclose()
    assert len(seen) == 1
    assert "Do no harm." in seen[0]["messages"][0]["content"]
    document = json.loads(seen[0]["messages"][1]["content"])
    assert document == {
        "conversation": [{"role": "user", "content": "dull"}],
        "answer": "dull",
    }
    scores = [item for item in results if isinstance(item, Scores)]
    assert [set(item.harm.judges) for item in scores] == [
        {"judge"},
        {"judge", "constitution"},
        {"judge"},
    ]
    assert scores[1].harm.probability == pytest.approx(0.75)
    assert scores[1].harm.disagreement == pytest.approx(0.4)
    named = [set(item.releases) for item in scores]
    assert named == [{"judge", "rm"}, {"judge", "rm", "constitution"}, {"judge", "rm"}]


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(500),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, content=b"[" * 100_000),
        httpx.Response(200, content=b" " * 2_000_000),
        httpx.Response(200, json={"choices": []}),
        completion(None),
        completion("90"),
        completion('{"harm": "90"}'),
        completion('{"harm": true}'),
        completion('{"harm": 101}'),
        completion('{"harm": NaN}'),
    ],
)
async def test_rubbish_is_no_opinion_and_is_counted(reply: httpx.Response) -> None:
    judge, outcomes = judge_of(lambda request: reply)
    assert await judge.probabilities([says("dull")]) == [None]
    assert outcomes == ["failed"]
    await judge.aclose()


async def test_without_an_opinion_a_doubtful_record_stays_contested(tmp_path: Path) -> None:
    judge, _ = judge_of(lambda request: httpx.Response(503))
    panel = Panel.open(
        [word_bundle(tmp_path, "judge")], word_bundle(tmp_path, "rm", "reward"), others=[judge]
    )
    (scores,) = await panel.score([says("dull")])
    await panel.aclose()
    assert isinstance(scores, Scores)
    assert set(scores.releases) == {"judge", "rm"}
    assert set(panel.releases) == {"judge", "rm", "constitution"}
    decision = decide(scores.harm, scores.reward, DetectionPolicy())
    assert decision.failure_class is FailureClass.CONTESTED


@pytest.mark.parametrize(("said", "taken"), [(0, 0.02), (100, 0.98), (7.5, 0.075)])
async def test_its_certainty_is_bounded(said: float, taken: float) -> None:
    judge, outcomes = judge_of(lambda request: completion(json.dumps({"harm": said})))
    assert await judge.probabilities([says("dull")]) == [taken]
    assert outcomes == ["answered"]


async def test_a_silent_endpoint_costs_a_window_its_deadline_and_no_more() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    outcomes: list[str] = []
    policy = replace(POLICY, seconds=0.01, concurrency=2)
    judge = ConstitutionJudge(policy, transport=Silent(), on_outcome=outcomes.append)
    assert await judge.probabilities([says("dull")] * 5) == [None] * 5
    assert sorted(outcomes) == ["failed"] * 2 + ["skipped"] * 3


async def test_after_failures_in_a_row_it_rests_and_then_asks_again() -> None:
    now, asked = 0.0, 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(500) if now < 30 else completion('{"harm": 50}')

    policy = replace(POLICY, concurrency=1, failures=3, rest_seconds=30)
    judge = ConstitutionJudge(policy, transport=Answers(respond), clock=lambda: now)
    assert await judge.probabilities([says("dull")] * 10) == [None] * 10
    assert asked == 3
    now = 31.0
    assert await judge.probabilities([says("dull")]) == [0.5]


async def test_no_more_requests_than_the_budget_of_a_minute() -> None:
    now, outcomes = 0.0, list[str]()
    judge = ConstitutionJudge(
        replace(POLICY, per_minute=4),
        transport=Answers(lambda request: completion('{"harm": 50}')),
        clock=lambda: now,
        on_outcome=outcomes.append,
    )
    await judge.probabilities([says("dull")] * 6)
    assert sorted(outcomes) == ["answered"] * 4 + ["skipped"] * 2
    now = 61.0
    assert await judge.probabilities([says("dull")]) == [0.5]


async def test_at_most_so_many_requests_at_once() -> None:
    running = most = 0

    class Counting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(3):
                await asyncio.sleep(0)
            running -= 1
            answers = Answers(lambda _: completion('{"harm": 50}'))
            return await answers.handle_async_request(request)

    judge = ConstitutionJudge(replace(POLICY, concurrency=3), transport=Counting())
    assert await judge.probabilities([says("dull")] * 9) == [0.5] * 9
    assert most == 3


def test_the_key_is_in_no_repr_and_not_in_the_digest() -> None:
    assert "secret-key" not in repr(POLICY)
    other = ConstitutionJudge(replace(POLICY, api_key="other"))
    assert ConstitutionJudge(POLICY).digest == other.digest
    stricter = ConstitutionJudge(replace(POLICY, constitution="Do no harm at all."))
    assert stricter.digest != other.digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"url": "ftp://x"}, "constitution.url"),
        ({"constitution": " "}, "constitution.file"),
        ({"doubt": (0.7, 0.3)}, "constitution.doubt"),
    ],
)
def test_wrong_settings_name_the_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        replace(POLICY, **change)


def test_a_judge_needs_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="one name"):
        Panel.open(
            [word_bundle(tmp_path, "phrases")],
            word_bundle(tmp_path, "rm", "reward"),
            others=[PhraseJudge(RULES)],
        )
