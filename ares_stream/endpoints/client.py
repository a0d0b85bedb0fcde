"""`POST {url}/chat/completions`, without streaming: the one way to ask an endpoint.

A request that fails for a while is asked again with longer pauses, within a budget; one that is
refused for a parameter that the endpoint does not know (`max_tokens`, `seed`, ...) is asked again
without it, which is remembered. What a request cannot survive (a wrong key, no such model) is
raised as SettingsError, one that this request alone cannot (too long) as Unanswerable.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx

from ares_stream.endpoints.completion import (
    Completion,
    parse_completion,
    parse_error,
    parse_refusal,
)
from ares_stream.endpoints.limits import RateLimiter, retry_after
from ares_stream.errors import SettingsError, TargetError, remember_secrets_of
from ares_stream.files import (
    ASKED_ENCODINGS,
    AnswerError,
    Renewed,
    checked_api_key,
    read_answer,
    said,
)

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""A server that streams without end must not fill the memory."""
_OPTIONAL: Final = ("seed", "top_p", "temperature", "max_tokens", "max_completion_tokens")
"""What an endpoint may refuse and answer without; in the order in which they are left out where
it does not say which one it means."""
_MAX_GUESSES: Final = 16
"""Requests spent on finding out what an endpoint that never says so refuses."""
_COMPLETIONS: Final = "/chat/completions"
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,32}/[\w.+-]{1,64}")
_TOLD_SECONDS: Final = 60.0
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_AUTHORITIES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_OF_KEYS: Final = {401, 403}
_PASSING: Final = {408, 409, 425, 429}
_MISDIRECTED: Final = {301, 302, 303, 307, 308, 404, 405}

_log = logging.getLogger(__name__)


class Unanswerable(TargetError):
    """This very query is refused (too long, an unknown role, nothing recorded); others may pass,
    and asking it again cannot help."""

    retryable = False


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """How an endpoint is asked.

    `retry_share` bounds retries as a share of requests (plus a few to start with): without it
    an endpoint that is down is asked several times as often as one that is up.
    """

    url: str
    model: str
    version: str = "unknown"
    api_key: str | Renewed[str] | None = field(default=None, repr=False)
    concurrency: int = 8
    requests_per_minute: float = 0.0
    """0 means no limit."""
    timeout_seconds: float = 60.0
    patience_seconds: float = 0.0
    """A request ends, whatever attempts it has left, once it has waited so long and the endpoint
    has answered no request for as long. 0 means twice `timeout_seconds`."""
    attempts: int = 4
    retry_share: float = 0.2
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0
    """1 is every endpoint's default, and is not sent: some refuse it beside a temperature."""
    price_per_million: tuple[float, float] = (0.0, 0.0)
    """Of prompt and completion tokens, in any currency."""
    section: str = "target"
    """Where it is configured, for errors."""

    def __post_init__(self) -> None:
        check_url(f"{self.section}.url", self.url)
        for name in ("concurrency", "timeout_seconds", "attempts", "max_tokens"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{self.section}.{name}: must be above 0")
        if self.patience_seconds < 0:
            raise SettingsError(f"{self.section}.patience_seconds: must not be below 0")
        remember_secrets_of(self.url)
        if isinstance(self.api_key, str):
            checked_api_key(f"{self.section}.api_key", self.api_key)

    @property
    def completions(self) -> httpx.URL:
        """Where completions are asked for, whether or not the URL names it; its query stays."""
        url = httpx.URL(self.url)
        base = url.path.rstrip("/").removesuffix(_COMPLETIONS)
        return url.copy_with(path=base + _COMPLETIONS)

    @property
    def patience(self) -> float:
        """Seconds; besides them a request may have to wait for its turn."""
        turn = 60.0 / self.requests_per_minute if self.requests_per_minute > 0 else 0.0
        return (self.patience_seconds or 2 * self.timeout_seconds) + turn

    @property
    def place(self) -> str:
        """The URL for messages: without a password and without a query, which may hold a key."""
        url = httpx.URL(self.url)
        return str(url.copy_with(username=None, password=None, query=None, fragment=None))


@dataclass(slots=True)
class Usage:
    """What an endpoint has cost so far."""

    requests: int = 0
    retries: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, per_million: tuple[float, float]) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * per_million[0] + self.completion_tokens * per_million[1]) / 1e6


class ChatClient:
    """One endpoint. Safe for many tasks of one event loop; `concurrency` requests at a time."""

    def __init__(
        self,
        policy: EndpointPolicy,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises SettingsError when the environment names a proxy that cannot be used."""
        self.policy = policy
        self.usage = Usage()
        self._client = http_client(
            policy.section,
            timeout=policy.timeout_seconds,
            transport=transport,
            limits=httpx.Limits(max_connections=policy.concurrency),
        )
        self._slots = asyncio.Semaphore(policy.concurrency)
        self._waiting: set[asyncio.Timeout] = set()
        self._progressed = float("-inf")
        self._limiter = RateLimiter(policy.requests_per_minute, clock=clock, sleep=sleep)
        self._clock = clock
        self._sleep = sleep
        self._without: set[str] = set()
        self._renamed = False
        self._answered = False
        self._guesses = 0
        self._told_until = float("-inf")

    async def complete(
        self, messages: Sequence[Mapping[str, str]], *, seed: int | None = None
    ) -> Completion:
        """The model's answer.

        Raises TargetError when no attempt succeeded, Unanswerable when this request is refused
        as it is, SettingsError when no request can work.
        """
        try:
            async with self._patiently(), self._slots:
                return await self._with_retries(messages, seed)
        except TargetError as error:
            self.usage.errors += 1
            if not isinstance(error, Unanswerable):
                self._tell(error)
            raise

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator[None]:
        """Ends with TargetError once nothing was answered for as long as patience lasts: else each
        of many requests would wait for its turn to find out the same."""
        policy = self.policy
        try:
            async with asyncio.timeout(policy.patience) as patience:
                self._waiting.add(patience)
                try:
                    yield
                finally:
                    self._waiting.discard(patience)
        except TimeoutError:
            raise TargetError(
                f"{policy.section}: {policy.place} has answered nothing for {policy.patience:g} s"
            ) from None

    def _answers(self) -> None:
        """The endpoint has answered something: whoever waits has their patience anew."""
        now = asyncio.get_running_loop().time()
        # Told once for many answers, which together move as many deadlines as there are requests.
        if now - self._progressed > self.policy.patience / 100:
            self._progressed = now
            for patience in self._waiting:
                if not patience.expired():
                    patience.reschedule(now + self.policy.patience)

    def _tell(self, error: TargetError) -> None:
        """Whoever looks at the log learns at once why nothing comes; an outage of thousands of
        requests is a line a minute."""
        now = self._clock()
        if now >= self._told_until:
            self._told_until = now + _TOLD_SECONDS
            _log.warning("%s", error)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _with_retries(
        self, messages: Sequence[Mapping[str, str]], seed: int | None
    ) -> Completion:
        policy = self.policy
        failure = TargetError(f"{policy.section}: not asked")
        for attempt in range(policy.attempts):
            if attempt:
                if self.usage.retries >= 10 + policy.retry_share * self.usage.requests:
                    raise TargetError(f"{failure}; the retry budget is spent")
                self.usage.retries += 1
            try:
                return await self._without_refused(messages, seed)
            except _Again as again:
                failure = TargetError(f"{policy.section}: {again.reason}")
                pause = min(policy.backoff_seconds * 2**attempt, policy.max_backoff_seconds)
                if again.after is not None:
                    pause = min(again.after, policy.max_backoff_seconds)
                    self._limiter.hold(pause)
            if attempt + 1 < policy.attempts:
                await self._sleep(pause)
        raise TargetError(f"{failure} ({policy.attempts} attempts)")

    async def _without_refused(
        self, messages: Sequence[Mapping[str, str]], seed: int | None
    ) -> Completion:
        """Ask, and ask again without what the endpoint refuses: once for each parameter."""
        left_out: set[str] = set()
        while True:
            parameters = {
                name: value
                for name, value in self._parameters(seed).items()
                if name not in left_out
            }
            try:
                completion = await self._request(messages, parameters)
            except _Refused as refused:
                refusal = parse_refusal(
                    refused.raw,
                    parameters,
                    [message.get("content", "") for message in messages],
                    await self._key(),
                )
                if refusal.filtered:
                    return Completion("", "content_filter")
                reason = f"answered {refused.status}: {refusal.reason}"
                guess = self._guess(parameters)
                if refusal.parameters and not refusal.too_long:
                    self._remember(refusal.parameters, refusal.renamed, reason)
                elif guess is not None and not refusal.too_long:
                    # It does not say what it refuses, and has answered nothing yet.
                    left_out.add(guess)
                else:
                    raise Unanswerable(
                        f"{self.policy.section}: {self.policy.place} {reason}"
                    ) from None
            else:
                if left_out:
                    self._remember(frozenset(left_out), False, "refused without a reason")
                self._answered = True
                return completion

    def _guess(self, parameters: Mapping[str, object]) -> str | None:
        if self._answered or self._guesses >= _MAX_GUESSES:
            return None
        self._guesses += 1
        return next((name for name in _OPTIONAL if name in parameters), None)

    def _remember(self, refused: frozenset[str], renamed: bool, reason: str) -> None:
        if renamed:
            self._renamed = True
            refused -= {"max_tokens"}
            if not refused:
                _log.info("%s: asks for max_completion_tokens", self.policy.section)
        if refused - self._without:
            self._without |= refused
            _log.warning(
                "%s: %s %s; asked without %s from now on",
                self.policy.section,
                self.policy.place,
                reason,
                ", ".join(sorted(refused)),
            )

    def _parameters(self, seed: int | None) -> dict[str, object]:
        policy = self.policy
        longest = "max_completion_tokens" if self._renamed else "max_tokens"
        wanted: dict[str, object] = {longest: policy.max_tokens, "temperature": policy.temperature}
        if policy.top_p != 1.0:
            wanted["top_p"] = policy.top_p
        if seed is not None:
            wanted["seed"] = seed
        return {name: value for name, value in wanted.items() if name not in self._without}

    async def _request(
        self, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, object]
    ) -> Completion:
        policy = self.policy
        await self._limiter.wait()
        started = self._clock()
        body = {"model": policy.model, "messages": list(messages), **parameters, "stream": False}
        headers = {"content-type": "application/json"}
        key = await self._key()
        if key:
            headers["authorization"] = f"Bearer {key}"
        self.usage.requests += 1
        try:
            # httpx's own time-outs are per read: a server that drips would never end.
            async with (
                asyncio.timeout(policy.timeout_seconds),
                self._client.stream(
                    "POST",
                    policy.completions,
                    content=json.dumps(body).encode(),
                    headers=headers,
                ) as response,
            ):
                packed = response.headers.get("content-encoding", "")
                raw = await read_answer(response.aiter_raw(), MAX_ANSWER_BYTES, packed)
                self._answers()
        except AnswerError as error:
            raise _Again(f"{policy.place} {error}") from None
        except TimeoutError:
            raise _Again(f"{policy.place} gave no answer in {policy.timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            # At once: what is not there will not be there in half a second either, and whoever
            # asks has a patience of their own.
            raise TargetError(f"{policy.section}: {policy.place}: {_unreached(error)}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Again(f"{type(error).__name__} at {policy.place}") from None
        if response.status_code != 200:
            self._raise_for(response.status_code, response, raw)
        completion = parse_completion(raw)
        if completion is None:
            prompts = [message.get("content", "") for message in messages]
            failure = parse_error(raw, prompts, key)
            if failure is None:
                kind = _MEDIA_TYPE.match(response.headers.get("content-type", ""))
                raise _Again(
                    f"{policy.place} answered with {kind[0] if kind else 'something else'}, "
                    f"expected a chat completion; check {policy.section}.url"
                )
            if failure.status is not None:
                self._raise_for(failure.status, response, raw)
            raise _Again(f"{policy.place} answered with an error: {failure.reason}")
        self.usage.prompt_tokens += completion.prompt_tokens
        self.usage.completion_tokens += completion.completion_tokens
        return replace(completion, seconds=self._clock() - started)

    async def _key(self) -> str | None:
        key = self.policy.api_key
        return await asyncio.to_thread(key.value) if isinstance(key, Renewed) else key

    def _raise_for(self, status: int, response: httpx.Response, raw: bytes) -> None:
        policy = self.policy
        if status in (400, 413, 422):
            raise _Refused(status, raw)
        if status in _OF_KEYS and self._answered and isinstance(policy.api_key, Renewed):
            # The key was good: it is being exchanged, and its file is read for each request.
            raise _Again(f"{policy.place} answered {status}")
        if status in (401, 402, 403, 407):
            why = {402: "the account has no credit", 407: "the proxy wants a password"}
            raise SettingsError(
                f"{policy.section}.api_key: {policy.place} answered {status}; "
                f"{why.get(status, 'give a valid key')}"
            )
        if status in _MISDIRECTED:
            raise SettingsError(
                f"{policy.section}.url, {policy.section}.model: {policy.place} answered {status} "
                f"for model {policy.model}; check both"
                + ("" if "/v1" in policy.completions.path else ", most servers want /v1 at the end")
            )
        if status < 500 and status not in _PASSING:
            raise Unanswerable(f"{policy.section}: {policy.place} answered {status}")
        after = retry_after(response.headers.get("retry-after", ""), time.time())
        raise _Again(f"{policy.place} answered {status}", after)


def check_url(field_name: str, address: str) -> None:
    """Raise SettingsError naming the field when nothing can be asked at an address."""
    try:
        url = httpx.URL(address)
        known = url.scheme in ("http", "https") and bool(url.host) and not re.search(r"\s", address)
        known = known and 0 < (url.port or 80) < 65_536
    except (httpx.InvalidURL, UnicodeError, ValueError):
        known = False
    if not known:
        raise SettingsError(
            f"{field_name}: expected http:// or https:// with a host, such as "
            "http://127.0.0.1:8000/v1"
        )


def http_client(section: str, **arguments: Any) -> httpx.AsyncClient:
    """An HTTP client; the environment's proxies and authorities (SSL_CERT_FILE) are used. Its
    answers are to be read with `read_answer`.

    Raises SettingsError naming their variables where httpx cannot use one. Values of proxies are
    not shown, for they may hold a password.
    """
    headers = {**ASKED_ENCODINGS, **arguments.pop("headers", {})}
    try:
        return httpx.AsyncClient(headers=headers, **arguments)
    except OSError as error:
        # httpx asks the second where the first is not set.
        named = next(filter(os.environ.get, _AUTHORITIES), "the authorities of this machine")
        raise SettingsError(
            f"{section}: {named}: cannot be read as certificates: {said(error)}"
        ) from None
    except ImportError:
        reason = "a SOCKS proxy needs `pip install 'httpx[socks]'`"
    except (httpx.InvalidURL, ValueError):
        reason = "not an address of a proxy, or not a host to reach without one"
    known = [name for name in (*_PROXIES, *map(str.lower, _PROXIES)) if os.environ.get(name)]
    raise SettingsError(f"{section}: {', '.join(known) or 'the proxy of this machine'}: {reason}")


class _Again(Exception):
    """This attempt failed; another may not."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class _Refused(Exception):
    """The request as it is was refused; `raw` says why."""

    def __init__(self, status: int, raw: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.raw = raw


def _unreached(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return "no such host"
        if isinstance(cause, ssl.SSLError):
            reason = f"TLS failed: {cause.reason or type(cause).__name__}"
            trusted = "; name the authority that signed its certificate in SSL_CERT_FILE"
            return reason + trusted * isinstance(cause, ssl.SSLCertVerificationError)
    return "cannot be reached"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error with what it was made of, groups included; few, and never twice."""
    waiting, seen = [error], set[int]()
    while waiting:
        now = waiting.pop()
        if id(now) in seen:
            continue
        seen.add(id(now))
        yield now
        if isinstance(now, BaseExceptionGroup):
            waiting += now.exceptions
        waiting += [inner for inner in (now.__cause__, now.__context__) if inner is not None]
