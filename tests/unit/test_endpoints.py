"""One client for targets, attacker and judges: it adapts to what an endpoint refuses, says why,
and shows neither key nor prompt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ares_stream.endpoints.client import ChatClient, EndpointPolicy, Unanswerable
from ares_stream.endpoints.completion import Completion, parse_completion, parse_refusal
from ares_stream.endpoints.limits import RateLimiter
from ares_stream.errors import AresError, SettingsError, TargetError
from ares_stream.processes.ports import free_port
from tests.support.raw_http import Answers
from tests.support.target_server import serving

PROMPT = "how do I plant the seed of doubt in a max_tokens discussion"
ASK = [{"role": "user", "content": PROMPT}]
POLICY = EndpointPolicy(
    "http://policy.test/v1", "m", api_key="secret-key", top_p=0.9, backoff_seconds=0.0
)


def reply(message: dict[str, Any], finish: str | None = "stop") -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": finish}]})


def openai_refusal(name: str, message: str | None = None) -> httpx.Response:
    said = message or f"Unsupported parameter: '{name}' is not supported with this model."
    error = {"message": said, "type": "invalid_request_error", "param": name, "code": "unsupported"}
    return httpx.Response(400, json={"error": error})


def fastapi_refusal(name: str) -> httpx.Response:
    detail = [{"loc": ["body", name], "msg": "Extra inputs are not permitted", "input": PROMPT}]
    return httpx.Response(422, json={"detail": detail})


def plain_refusal(name: str) -> httpx.Response:
    return httpx.Response(422, json={"message": f"field {name}: unknown"})


def mistral_refusal(name: str) -> httpx.Response:
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs"}]
    return httpx.Response(422, json={"object": "error", "message": {"detail": detail}})


class Picky:
    """An endpoint that takes only some parameters."""

    def __init__(self, refuses: set[str], say: Callable[[str], httpx.Response]) -> None:
        self.refuses = refuses
        self.say = say
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        bad = sorted(self.refuses & self.bodies[-1].keys())
        return self.say(bad[0]) if bad else reply({"content": "yes"})


def client(
    respond: Callable[[httpx.Request], httpx.Response], policy: EndpointPolicy = POLICY
) -> ChatClient:
    async def sleep(seconds: float) -> None: ...

    return ChatClient(policy, transport=Answers(respond), sleep=sleep)


@pytest.mark.parametrize("say", [openai_refusal, fastapi_refusal, plain_refusal, mistral_refusal])
@pytest.mark.parametrize(
    "refuses", [{"seed"}, {"max_tokens"}, {"temperature"}, {"seed", "max_tokens", "top_p"}]
)
async def test_a_parameter_that_is_refused_is_left_out_and_that_is_remembered(
    say: Callable[[str], httpx.Response], refuses: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Picky(refuses, say)
    asked = client(endpoint)
    with caplog.at_level(logging.WARNING):
        assert (await asked.complete(ASK, seed=3)).text == "yes"
        assert (await asked.complete(ASK, seed=4)).text == "yes"
    assert len(endpoint.bodies) == len(refuses) + 2
    assert not refuses & endpoint.bodies[-1].keys()
    assert ({"seed", "max_tokens", "temperature", "top_p"} - refuses) <= endpoint.bodies[-1].keys()
    assert len(caplog.records) == len(refuses), "each is told once, with the endpoint's reason"
    assert all("asked without" in line.getMessage() for line in caplog.records)
    assert "doubt" not in caplog.text
    assert asked.usage.retries == 0
    await asked.aclose()


async def test_max_completion_tokens_takes_the_place_of_max_tokens_where_it_is_asked_for() -> None:
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    endpoint = Picky({"max_tokens"}, lambda name: openai_refusal(name, said))
    asked = client(endpoint)
    assert (await asked.complete(ASK)).text == "yes"
    assert endpoint.bodies[-1]["max_completion_tokens"] == 256


async def test_an_endpoint_that_does_not_say_what_it_refuses_is_tried_without_each() -> None:
    endpoint = Picky({"max_tokens"}, lambda name: httpx.Response(400))
    asked = client(endpoint)
    assert (await asked.complete(ASK, seed=1)).text == "yes"
    before = len(endpoint.bodies)
    await asked.complete(ASK, seed=1)
    assert len(endpoint.bodies) == before + 1


async def test_an_endpoint_that_refuses_everything_is_not_asked_without_end() -> None:
    asked_for = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal asked_for
        asked_for += 1
        return httpx.Response(400, json={"error": {"message": "no seed, no max_tokens, nothing"}})

    asked = client(respond)
    for _ in range(20):
        with pytest.raises(Unanswerable, match="answered 400: no seed, no max_tokens, nothing"):
            await asked.complete(ASK, seed=1)
    assert asked_for <= 20 + 20


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens; reduce max_tokens or the prompt.",
        "'max_tokens' is too large: 256",
    ],
)
async def test_a_prompt_that_is_too_long_costs_no_parameter(said: str) -> None:
    endpoint = Picky({"max_tokens"}, lambda name: openai_refusal(name, said))
    asked = client(endpoint)
    for _ in range(2):
        with pytest.raises(Unanswerable):
            await asked.complete(ASK)
    assert all("max_tokens" in body for body in endpoint.bodies)


async def test_a_reason_that_quotes_prompt_or_key_is_not_shown() -> None:
    for said in (f"cannot parse: {PROMPT}", "cannot parse 'plant the seed of doubt'", "secret-key"):
        body = {"error": {"message": said}}
        asked = client(lambda request, body=body: httpx.Response(400, json=body))  # type: ignore[misc]
        with pytest.raises(Unanswerable, match="is left out") as caught:
            await asked.complete(ASK)
        assert "doubt" not in str(caught.value)
        assert "secret-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "finish", "text", "shown"),
    [
        ({"content": None}, "content_filter", "", "content_filter"),
        ({"role": "assistant"}, "content_filter", "", "content_filter"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", "", "tool_calls"),
        ({"tool_calls": [{"id": "1"}]}, None, "", "tool_calls"),
        ({"content": None, "refusal": "I won't."}, "stop", "I won't.", "stop"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", "ab",
         "stop"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"text": "b"}, "c"]}, "length", "bc",
         "length"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "stop", "no", "stop"),
        ({"content": []}, None, "", "stop"),
    ],
)  # fmt: skip
async def test_a_message_without_text_is_an_empty_answer_and_parts_are_joined(
    message: dict[str, Any], finish: str | None, text: str, shown: str
) -> None:
    answer = await client(lambda request: reply(message, finish)).complete(ASK)
    assert (answer.text, answer.finish) == (text, shown)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "error", "detail", "loc", "param", "msg",
                         "usage", "text", "finish_reason", "type", "refusal"]),
        inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
def test_no_reply_breaks_the_readers(document: Any) -> None:
    raw = json.dumps(document).encode()
    found = parse_completion(raw)
    assert found is None or isinstance(found, Completion)
    assert parse_refusal(raw, {"seed"}, ["text"]).parameters <= {"seed"}


@given(st.binary(max_size=40))
def test_no_bytes_break_the_readers(raw: bytes) -> None:
    parse_completion(raw)
    parse_refusal(raw, {"seed"}, [])


async def test_an_endpoint_that_is_down_is_said_to_be_so_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    url = f"http://127.0.0.1:{free_port()}/v1"
    asked = ChatClient(replace(POLICY, url=url, backoff_seconds=9.0), sleep=sleep)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(TargetError, match=f"^target: {url}: connection refused$"):
                await asked.complete(ASK)
    await asked.aclose()
    assert naps == []
    assert caplog.text.count("connection refused") == 1, "an outage is one line, not one a request"


@asynccontextmanager
async def server(answer: Callable[[dict[str, Any]], Response]) -> Any:
    async def completions(request: Request) -> Response:
        return answer(json.loads(await request.body()))

    async with serving(
        Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])
    ) as url:
        yield url


async def test_a_real_server_that_refuses_seed_and_max_tokens_is_asked_without_them() -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Response:
        seen.append(body)
        for name in ("seed", "max_tokens"):
            if name in body:
                return JSONResponse({"detail": [{"loc": ["body", name], "msg": "extra"}]}, 422)
        return JSONResponse({"choices": [{"message": {"content": [{"text": "hello"}]}}]})

    async with server(answer) as url:
        asked = ChatClient(replace(POLICY, url=url))
        assert (await asked.complete(ASK, seed=1)).text == "hello"
        await asked.aclose()
    assert [sorted({"seed", "max_tokens"} & body.keys()) for body in seen] == [
        ["max_tokens", "seed"],
        ["max_tokens"],
        [],
    ]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "socks5://user:hidden@proxy:1080", "httpx\\[socks\\]"),
        ("HTTP_PROXY", "http://[::1", "not an address"),
        ("HTTPS_PROXY", "http://user:hidden@host:port", "not an address"),
        ("NO_PROXY", "fe80::/10", "not an address"),
        ("HTTP_PROXY", "ftp://hidden", "not an address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^target: {variable}: .*{said}") as caught:
        ChatClient(POLICY)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("value", ["http://[::1]:3128", "http://proxy:3128"])
async def test_a_proxy_of_ipv6_is_used(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    monkeypatch.setenv("NO_PROXY", "::1,localhost,127.0.0.1,.internal")
    await ChatClient(POLICY).aclose()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "ftp://x"}, "target.url"),
        ({"url": "http://"}, "target.url"),
        ({"url": "http://[::1/v1"}, "target.url"),
        ({"url": "http://host:port/v1"}, "target.url"),
        ({"url": "http://host:99999999/v1"}, "target.url"),
        ({"url": "http://ho st/v1"}, "target.url"),
        ({"api_key": "sk–1"}, "target.api_key: character 3 is U\\+2013"),
        ({"api_key": "sk 1"}, "target.api_key: character 3"),
        ({"timeout_seconds": 0}, "target.timeout_seconds"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_first_request(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(SettingsError, match=field):
        replace(POLICY, **change)


async def test_a_password_and_a_query_in_the_url_are_used_and_not_shown() -> None:
    seen: list[httpx.URL] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.url)
        return httpx.Response(404)

    url = "http://user:hidden@host:8000/v1/?api-version=hidden"
    with pytest.raises(SettingsError, match="http://host:8000/v1/ answered 404") as caught:
        await client(respond, replace(POLICY, url=url)).complete(ASK)
    assert "hidden" not in str(caught.value)
    assert (seen[0].path, seen[0].query) == ("/v1/chat/completions", b"api-version=hidden")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, SettingsError), (307, SettingsError), (401, SettingsError), (402, SettingsError),
        (403, SettingsError), (404, SettingsError), (405, SettingsError), (407, SettingsError),
        (400, Unanswerable), (413, Unanswerable), (422, Unanswerable), (410, Unanswerable),
        (408, TargetError), (429, TargetError), (500, TargetError), (529, TargetError),
    ],
)  # fmt: skip
async def test_every_status_is_a_stop_a_refusal_or_a_failure(
    status: int, kind: type[AresError]
) -> None:
    asked = client(lambda request: httpx.Response(status))
    with pytest.raises(kind, match=f"answered {status}") as caught:
        await asked.complete(ASK)
    assert type(caught.value) is kind


class Silent(httpx.AsyncBaseTransport):
    """Takes requests; answers one of them, when it is let."""

    def __init__(self) -> None:
        self.asked, self.came, self.let = 0, asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        self.came.set()
        await (self.let if self.asked == 1 else asyncio.Event()).wait()
        return await Answers(lambda _: reply({"content": "yes"})).handle_async_request(request)


async def _ask_all(endpoint: ChatClient, many: int) -> list[Completion | BaseException]:
    try:
        return await asyncio.gather(
            *(endpoint.complete(ASK) for _ in range(many)), return_exceptions=True
        )
    finally:
        await endpoint.aclose()


async def test_many_requests_to_an_endpoint_that_never_answers_end_together() -> None:
    policy = replace(POLICY, timeout_seconds=60.0, patience_seconds=0.2, concurrency=2)
    silent = Silent()
    async with asyncio.timeout(50):
        found = await _ask_all(ChatClient(policy, transport=silent), 40)
    assert {type(item) for item in found} == {TargetError}
    assert str(found[-1]) == ("target: http://policy.test/v1 has answered nothing for 0.2 s")
    # Most of them were never sent.
    assert silent.asked < 40


async def test_patience_is_counted_from_the_last_answer_and_not_from_the_first_question() -> None:
    policy = replace(POLICY, timeout_seconds=600.0, concurrency=1)
    silent = Silent()
    endpoint = ChatClient(policy, transport=silent)
    first, second = (asyncio.create_task(endpoint.complete(ASK)) for _ in range(2))
    await silent.came.wait()
    before = [patience.when() for patience in endpoint._waiting]
    silent.let.set()
    assert (await first).text == "yes"
    (after,) = (patience.when() for patience in endpoint._waiting)
    assert after is not None
    assert all(when is not None and when < after for when in before)
    second.cancel()
    await asyncio.wait([second])
    await endpoint.aclose()


def test_patience_is_twice_the_timeout_and_a_request_may_wait_for_its_turn() -> None:
    assert replace(POLICY, timeout_seconds=600.0).patience == 1200
    assert replace(POLICY, patience_seconds=20.0, requests_per_minute=2).patience == 50
    with pytest.raises(SettingsError, match=r"target\.patience_seconds"):
        replace(POLICY, patience_seconds=-1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 9))
def test_no_minute_has_more_requests_than_are_admitted(gaps: list[float], most: int) -> None:
    clock = Clock()
    limiter = RateLimiter(most, clock=lambda: clock.now)
    started: list[float] = []
    for gap in gaps:
        clock.now += gap
        if limiter.admit():
            started.append(clock.now)
    for first, over in zip(started, started[most:], strict=False):
        assert over - first >= 60


async def test_after_retry_after_nobody_starts_before_its_time() -> None:
    clock = Clock()
    limiter = RateLimiter(0, clock=lambda: clock.now, sleep=clock.sleep)
    limiter.hold(7)
    assert not limiter.admit()
    await limiter.wait()
    assert clock.now == 7
