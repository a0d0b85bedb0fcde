"""Who answers the probes: an OpenAI-compatible endpoint, or answers recorded before.

A target takes many queries and returns one result per query, in order. A query that cannot be
answered is a TargetError in its place, so that one does not spoil the others; what no query can
survive (a wrong key, an unknown model) is raised.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ares_stream.errors import SettingsError, TargetError
from ares_stream.files import read_rows
from ares_stream.records.base import digest
from ares_stream.records.interaction import Message, Policy

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""A server that streams without end must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question. Queries with equal messages and another seed ask for another sample."""

    messages: tuple[Message, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy said. `finish` is the endpoint's reason to stop; "content_filter" means
    that the endpoint, not the policy, refused (text may then be empty)."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finish: str = "stop"


class Unanswerable(TargetError):
    """This very query is refused (too long, an unknown role, nothing recorded); others may pass,
    and asking it again cannot help."""

    retryable = False


Result = Answer | TargetError


class Target(Protocol):
    """A policy under test."""

    @property
    def policy(self) -> Policy:
        """Name and version of who answers."""
        ...

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """One result per query, in order."""
        ...

    async def aclose(self) -> None:
        """Release what the target holds."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """How an endpoint is asked.

    `retry_share` bounds retries as a share of requests (plus a few to start with): without it
    an endpoint that is down is asked several times as often as one that is up.
    """

    url: str
    model: str
    version: str = "unknown"
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    requests_per_minute: float = 0.0
    """0 means no limit."""
    timeout_seconds: float = 60.0
    attempts: int = 4
    retry_share: float = 0.2
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0
    price_per_million: tuple[float, float] = (0.0, 0.0)
    """Of prompt and completion tokens, in any currency."""
    section: str = "target"
    """Where it is configured, for errors."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"{self.section}.url: expected http:// or https://")
        for name in ("concurrency", "timeout_seconds", "attempts", "max_tokens"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{self.section}.{name}: must be above 0")


@dataclass(slots=True)
class Usage:
    """What a target has cost so far."""

    requests: int = 0
    retries: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, per_million: tuple[float, float]) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * per_million[0] + self.completion_tokens * per_million[1]) / 1e6


class RateLimiter:
    """Starts at most `per_minute` requests a minute, evenly spaced. 0 means no limit."""

    def __init__(
        self,
        per_minute: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval = 60.0 / per_minute if per_minute > 0 else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0

    async def wait(self) -> None:
        """Return when the next request may start."""
        if not self._interval:
            return
        now = self._clock()
        start = max(self._next, now)
        self._next = start + self._interval
        if start > now:
            await self._sleep(start - now)

    def hold(self, seconds: float) -> None:
        """Nobody starts for this long: the endpoint said so (Retry-After)."""
        if self._interval:
            self._next = max(self._next, self._clock() + seconds)


class OpenAITarget:
    """`POST {url}/chat/completions` without streaming."""

    def __init__(
        self,
        policy: EndpointPolicy,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.endpoint = policy
        self.policy = Policy(name=policy.model, version=policy.version)
        self.usage = Usage()
        headers = {"authorization": f"Bearer {policy.api_key}"} if policy.api_key else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=policy.timeout_seconds,
            transport=transport,
            limits=httpx.Limits(max_connections=policy.concurrency),
        )
        self._slots = asyncio.Semaphore(policy.concurrency)
        self._limiter = RateLimiter(policy.requests_per_minute, clock=clock, sleep=sleep)
        self._clock = clock
        self._sleep = sleep

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """Ask all, at most `concurrency` at a time.

        Raises SettingsError where the endpoint says that the request can never work
        (401, 403, 404, 405).
        """
        results: list[Result | None] = [None] * len(queries)

        async def one(place: int, query: Query) -> None:
            async with self._slots:
                try:
                    results[place] = await self._ask(query)
                except TargetError as error:
                    self.usage.errors += 1
                    results[place] = error

        try:
            async with asyncio.TaskGroup() as group:
                for place, query in enumerate(queries):
                    group.create_task(one(place, query))
        except* SettingsError as errors:
            raise errors.exceptions[0] from None
        return [result for result in results if result is not None]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, query: Query) -> Answer:
        policy = self.endpoint
        failure = TargetError(f"{policy.section}: not asked")
        for attempt in range(policy.attempts):
            if attempt:
                if not self._may_retry():
                    raise TargetError(f"{failure}; the retry budget is spent")
                self.usage.retries += 1
            await self._limiter.wait()
            self.usage.requests += 1
            try:
                return await self._request(query)
            except _Again as again:
                failure = TargetError(f"{policy.section}: {again.reason}")
                pause = min(policy.backoff_seconds * 2**attempt, policy.max_backoff_seconds)
                if again.after is not None:
                    pause = min(again.after, policy.max_backoff_seconds)
                    self._limiter.hold(pause)
                if attempt + 1 < policy.attempts:
                    await self._sleep(pause)
        raise TargetError(f"{failure} ({policy.attempts} attempts)")

    def _may_retry(self) -> bool:
        return self.usage.retries < 10 + self.endpoint.retry_share * self.usage.requests

    async def _request(self, query: Query) -> Answer:
        policy = self.endpoint
        started = self._clock()
        body = {
            "model": policy.model,
            "messages": [message.model_dump() for message in query.messages],
            "max_tokens": policy.max_tokens,
            "temperature": policy.temperature,
            "top_p": policy.top_p,
            "seed": query.seed,
            "stream": False,
        }
        url = policy.url.rstrip("/") + "/chat/completions"
        try:
            # httpx's own time-outs are per read: a server that drips would never end.
            async with (
                asyncio.timeout(policy.timeout_seconds),
                self._client.stream("POST", url, json=body) as response,
            ):
                raw = await _read(response)
        except TimeoutError:
            raise _Again(f"no answer in {policy.timeout_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise _Again(f"{type(error).__name__} at {policy.url}") from None
        if response.status_code != 200:
            return _refused(response, raw, policy)
        return self._parse(raw, self._clock() - started)

    def _parse(self, raw: bytes, seconds: float) -> Answer:
        try:
            document = json.loads(raw)
            choice = document["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Again("answered with something else than a chat completion") from None
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise _Again("answered with a content that is not text")
        # JSON can hold half of a surrogate pair; no record can.
        text = text.encode(errors="replace").decode()
        usage = document.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        prompt, completion = (
            _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")
        )
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += completion
        return Answer(text, prompt, completion, seconds, str(choice.get("finish_reason") or "stop"))


class RecordedTarget:
    """Answers from a file: one JSON object per line with `messages` or `prompt`, and `response`.

    Several answers to one question are its samples, taken in turn by seed.
    """

    def __init__(self, policy: Policy, answers: Mapping[str, Sequence[str]]) -> None:
        """`answers`: digest of the messages → answers."""
        self.policy = policy
        self._answers = answers

    @classmethod
    def load(cls, path: Path, policy: Policy) -> RecordedTarget:
        """Read a file. Raises FileFormatError with line and field."""
        answers: dict[str, list[str]] = {}
        for _, row in read_rows(path, _Recorded):
            answers.setdefault(_key(row.question), []).append(row.response)
        return cls(policy, answers)

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """TargetError for a question without a recorded answer."""
        results: list[Result] = []
        for query in queries:
            known = self._answers.get(_key(query.messages))
            if known is None:
                results.append(Unanswerable("target: no recorded answer to this probe"))
            else:
                results.append(Answer(known[query.seed % len(known)]))
        return results

    async def aclose(self) -> None:
        """Nothing to close."""

    def __len__(self) -> int:
        return len(self._answers)


class _Again(Exception):
    """This attempt failed; another may not."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


async def _read(response: httpx.Response) -> bytes:
    raw = bytearray()
    async for chunk in response.aiter_bytes():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise _Again(f"answered with more than {MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


def _refused(response: httpx.Response, raw: bytes, policy: EndpointPolicy) -> Answer:
    """A content filter's refusal is an answer; everything else is raised."""
    status = response.status_code
    if status == 400 and (b"content_filter" in raw or b"content_policy" in raw):
        return Answer("", finish="content_filter")
    if status in (401, 403):
        raise SettingsError(
            f"{policy.section}.api_key: {policy.url} answered {status}; give a valid key"
        )
    if status in (404, 405):
        raise SettingsError(
            f"{policy.section}.url, {policy.section}.model: {policy.url} answered {status} for "
            f"model {policy.model}; check both"
        )
    if status in (400, 413, 422):
        # This query is refused as it is (too long, a role it does not know); others may pass.
        raise Unanswerable(f"{policy.section}: {policy.url} answered {status} to this probe")
    after: float | None = None
    with suppress(ValueError):
        after = max(0.0, float(response.headers.get("retry-after", "")))
    raise _Again(f"{policy.url} answered {status}", after)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _key(messages: Sequence[Message]) -> str:
    return digest([[message.role, message.content] for message in messages])


class _Recorded(BaseModel):
    """`messages` or `prompt`, and `response`; whatever else a row holds is its own."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    messages: tuple[Message, ...] | None = Field(None, min_length=1)
    prompt: str | None = None
    response: str

    @model_validator(mode="after")
    def _question(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("expected exactly one of messages and prompt")
        return self

    @property
    def question(self) -> tuple[Message, ...]:
        """As a conversation."""
        if self.messages is not None:
            return self.messages
        return (Message(role="user", content=self.prompt or ""),)
