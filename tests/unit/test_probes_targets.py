"""Endpoints fail in every way; a campaign sees an answer, an error in place, or a clear stop."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ares_stream.endpoints.client import EndpointPolicy
from ares_stream.endpoints.limits import RateLimiter
from ares_stream.errors import FileFormatError, SettingsError, TargetError
from ares_stream.probes.targets import (
    Answer,
    OpenAITarget,
    Query,
    RecordedTarget,
    Result,
)
from ares_stream.records.interaction import Message, Policy
from tests.support.raw_http import Answers
from tests.support.target_server import create_app

HELLO = Query((Message(role="user", content="hello"),))
ENDPOINT = EndpointPolicy("http://policy.test/v1", "tiny", version="7", api_key="secret-key")


def completion(text: object = "hi") -> httpx.Response:
    return httpx.Response(
        200,
        json={
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 5},
        },
    )


class Naps:
    """A sleep that takes no time and a clock that it moves."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def asked(
    respond: Callable[[httpx.Request], httpx.Response],
    count: int = 1,
    endpoint: EndpointPolicy = ENDPOINT,
) -> tuple[list[Result], OpenAITarget, Naps]:
    naps = Naps()
    target = OpenAITarget(
        endpoint,
        transport=Answers(respond),
        clock=lambda: naps.now,
        sleep=naps.sleep,
    )
    try:
        return await target.ask([HELLO] * count), target, naps
    finally:
        await target.aclose()


async def test_an_answer_with_its_tokens() -> None:
    seen: list[dict[str, object]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        assert request.headers["authorization"] == "Bearer secret-key"
        return completion()

    [result], target, _ = await asked(respond)
    assert isinstance(result, Answer)
    assert (result.text, result.prompt_tokens, result.completion_tokens) == ("hi", 3, 5)
    assert seen[0]["messages"] == [{"role": "user", "content": "hello"}]
    assert seen[0]["stream"] is False
    assert target.usage.cost((1e6, 2e6)) == 13
    assert target.policy == Policy(name="tiny", version="7")


async def test_a_failing_endpoint_is_asked_again_with_longer_pauses() -> None:
    replies = iter([httpx.Response(503), httpx.Response(500), completion()])
    [result], target, naps = await asked(lambda request: next(replies))
    assert isinstance(result, Answer)
    assert naps.slept == [0.5, 1.0]
    assert target.usage.retries == 2


async def test_retry_after_is_obeyed() -> None:
    replies = iter([httpx.Response(429, headers={"retry-after": "7"}), completion()])
    _, _, naps = await asked(lambda request: next(replies))
    assert naps.slept == [7.0]


@pytest.mark.parametrize(
    "rubbish",
    [
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, json={"choices": [{"message": {"content": 5}}]}),
        httpx.Response(200, json=[]),
        httpx.Response(200, content=b"[" * 100_000),
    ],
)
async def test_rubbish_is_an_error_in_its_place(rubbish: httpx.Response) -> None:
    [result], target, _ = await asked(lambda request: rubbish)
    assert isinstance(result, TargetError)
    assert "4 attempts" in str(result)
    assert target.usage.errors == 1


async def test_half_a_surrogate_pair_becomes_text_that_a_record_can_hold() -> None:
    half = httpx.Response(200, content=b'{"choices": [{"message": {"content": "a\\ud800b"}}]}')
    [result], _, _ = await asked(lambda request: half)
    assert isinstance(result, Answer)
    assert result.text == "a?b"


async def test_a_down_endpoint_does_not_multiply_its_own_load() -> None:
    results, target, _ = await asked(lambda request: httpx.Response(503), count=200)
    assert all(isinstance(result, TargetError) for result in results)
    assert target.usage.requests <= 200 * 1.3 + 15


async def test_an_endpoint_that_answers_without_end_is_cut_off() -> None:
    [result], _, _ = await asked(lambda request: httpx.Response(200, content=b" " * 5_000_000))
    assert "more than" in str(result)


async def test_a_slow_endpoint_is_timed_out() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    endpoint = EndpointPolicy("http://policy.test/v1", "tiny", timeout_seconds=0.01, attempts=1)
    target = OpenAITarget(endpoint, transport=Silent())
    [result] = await target.ask([HELLO])
    await target.aclose()
    assert "no answer in 0.01 s" in str(result)


@pytest.mark.parametrize(("status", "field"), [(401, "api_key"), (404, "target.model")])
async def test_what_can_never_work_stops_at_once(status: int, field: str) -> None:
    with pytest.raises(SettingsError, match=field) as caught:
        await asked(lambda request: httpx.Response(status))
    assert "secret-key" not in str(caught.value)


async def test_one_refused_probe_spoils_no_other() -> None:
    replies = iter([completion(), httpx.Response(400), completion()])
    endpoint = EndpointPolicy("http://policy.test/v1", "tiny", concurrency=1)
    results, _, _ = await asked(lambda request: next(replies), 3, endpoint)
    assert [isinstance(result, Answer) for result in results] == [True, False, True]


async def test_a_content_filter_is_an_answer() -> None:
    body = {"error": {"code": "content_filter"}}
    [result], _, _ = await asked(lambda request: httpx.Response(400, json=body))
    assert isinstance(result, Answer)
    assert result.finish == "content_filter"


async def test_requests_are_spaced_by_the_rate() -> None:
    naps = Naps()
    limiter = RateLimiter(120, clock=lambda: naps.now, sleep=naps.sleep)
    for _ in range(4):
        await limiter.wait()
    assert naps.slept == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "field"), [({"url": "ftp://x"}, "target.url"), ({"concurrency": 0}, "concurrency")]
)
def test_bad_settings_name_the_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(SettingsError, match=field):
        EndpointPolicy(**{"url": "http://x", "model": "m", **change})  # type: ignore[arg-type]


def recorded(tmp_path: Path, *lines: object) -> Path:
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return file


async def test_recorded_answers_are_samples_in_turn(tmp_path: Path) -> None:
    file = recorded(
        tmp_path,
        {"prompt": "hello", "response": "one"},
        {"messages": [{"role": "user", "content": "hello"}], "response": "two"},
    )
    target = RecordedTarget.load(file, Policy(name="tape", version="1"))
    queries = [Query(HELLO.messages, seed) for seed in (0, 1, 2)]
    unknown = Query((Message(role="user", content="other"),))
    *known, missing = await target.ask([*queries, unknown])
    assert [answer.text for answer in known if isinstance(answer, Answer)] == ["one", "two", "one"]
    assert isinstance(missing, TargetError)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "2: not JSON"),
        ({"prompt": "x"}, "2: response"),
        ({"response": "x"}, "2: expected exactly one of messages and prompt"),
        ({"response": "x", "messages": [{"role": "king", "content": "x"}]}, "2: messages"),
    ],
)
def test_a_bad_recording_names_its_line(tmp_path: Path, line: object, reason: str) -> None:
    file = recorded(tmp_path, {"prompt": "hello", "response": "one"}, line)
    with pytest.raises(FileFormatError, match=reason):
        RecordedTarget.load(file, Policy(name="tape", version="1"))


async def test_the_built_in_server_serves_any_target(tmp_path: Path) -> None:
    file = recorded(tmp_path, {"prompt": "hello", "response": "one"})
    app = create_app(RecordedTarget.load(file, Policy(name="tape", version="1")))
    endpoint = EndpointPolicy("http://local.test/v1", "tape", attempts=1)
    target = OpenAITarget(endpoint, transport=httpx.ASGITransport(app))
    other = Query((Message(role="user", content="other"),))
    first, second = await target.ask([HELLO, other])
    await target.aclose()
    assert isinstance(first, Answer)
    assert first.text == "one"
    assert isinstance(second, TargetError)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://l") as http:
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tape"
        bad = await http.post("/v1/chat/completions", json={"messages": "no"})
        assert bad.status_code == 400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 5000, "not JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "not JSON"),
        (b"[]", "expected an object"),
        (b"{}", "messages: expected a list of role and content"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": "x", "n": 2}', "n: one answer"),
        (b'{"messages": "x", "stream": true}', "stream: not supported"),
        (b'{"messages": "x", "seed": {}}', "seed: expected a whole number"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "not text"),
    ],
)
async def test_the_built_in_server_refuses_what_it_cannot_answer(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    file = recorded(tmp_path, {"prompt": "hello", "response": "one"})
    app = create_app(RecordedTarget.load(file, Policy(name="tape", version="1")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://l") as http:
        answer = await http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]
        parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        good = await http.post("/v1/chat/completions", json={"messages": parts})
        assert good.json()["choices"][0]["message"]["content"] == "one"
