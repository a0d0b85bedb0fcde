"""Bearer tokens for SASL/OAUTHBEARER: from a file that somebody renews, or from a token endpoint
by client credentials (RFC 6749, section 4.4)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from ares_stream.errors import DecodeError, SettingsError
from ares_stream.files import (
    ASKED_ENCODINGS,
    AnswerError,
    Renewed,
    checked_api_key,
    parse_json,
    read_answer,
    read_api_key,
)
from ares_stream.streaming.certificates import trusting

TOKEN_SECONDS: Final = 10.0
"""Below the time that a broker gives a client to authenticate (connections.max.reauth aside)."""
MAX_ANSWER_BYTES: Final = 64 << 10
DEFAULT_LIFE_SECONDS: Final = 300.0
"""Of a token whose endpoint does not say."""
BUSY: Final = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)
RENEW_SHARE: Final = 0.8
"""A token is renewed when so much of its life has passed, as Kafka's own clients do."""


class TokenRefused(KafkaError):  # type: ignore[misc]
    """There is no token, and asking again gives none: a setting is wrong."""


class FileToken(AbstractTokenProvider):  # type: ignore[misc]
    """The token in a file, read at each connection: whoever renews it replaces the file."""

    def __init__(self, file: Path) -> None:
        self._token = Renewed("kafka.token_file", [file], lambda: _token(file))

    async def token(self) -> str:
        """Raises TokenRefused where the file holds none, and never did."""
        try:
            return await asyncio.to_thread(self._token.value)
        except SettingsError as error:
            raise TokenRefused(str(error)) from None


def _token(file: Path) -> str:
    return read_api_key("kafka.token_file", file)


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of a token endpoint, kept for most of their life. The endpoint's certificate is the
    system's authorities' or that of the brokers'."""

    def __init__(
        self,
        url: str,
        client_id: str,
        secret: Renewed[str],
        scope: str | None = None,
        ca_file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._client_id = client_id
        self._secret = secret
        self._scope = scope
        self._trusted = Renewed(
            "kafka.ca_file",
            [] if ca_file is None else [ca_file],
            lambda: trusting(ca_file, and_system=True),
        )
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept = ""
        self._until = float("-inf")

    async def token(self) -> str:
        """Raises TokenRefused where the endpoint refuses one, KafkaError where it does not answer
        or is busy; its answer is not quoted."""
        async with self._lock:
            if self._clock() >= self._until:
                await self._renew()
            return self._kept

    async def _renew(self) -> None:
        form = {"grant_type": "client_credentials"}
        if self._scope:
            form["scope"] = self._scope
        secret = await asyncio.to_thread(self._secret.value)
        trusted = await asyncio.to_thread(self._trusted.value)
        try:
            async with (
                asyncio.timeout(TOKEN_SECONDS),
                httpx.AsyncClient(verify=trusted) as client,
                client.stream(
                    "POST",
                    self._url,
                    data=form,
                    auth=(self._client_id, secret),
                    headers=ASKED_ENCODINGS,
                ) as answer,
            ):
                packed = answer.headers.get("content-encoding", "")
                body = await read_answer(answer.aiter_raw(), MAX_ANSWER_BYTES, packed)
                status = answer.status_code
        except AnswerError as error:
            raise TokenRefused(f"kafka.token_endpoint: {self._url} {error}") from None
        except (ImportError, httpx.InvalidURL, ValueError):
            raise TokenRefused(
                "kafka.token_endpoint: the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or "
                "NO_PROXY names cannot be used"
            ) from None
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise KafkaError(f"kafka.token_endpoint: {self._url}: {type(error).__name__}") from None
        if status in BUSY or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise KafkaError(f"kafka.token_endpoint: {self._url} answers {status}")
        if status != httpx.codes.OK:
            raise TokenRefused(
                f"kafka.token_endpoint, kafka.token_client_id, kafka.token_client_secret_file: "
                f"{self._url} answers {status}"
            )
        try:
            fields = parse_json(body)
            token = fields["access_token"]
        except (DecodeError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not token:
            raise TokenRefused(f"kafka.token_endpoint: {self._url} answers without a token")
        try:
            self._kept = checked_api_key(f"kafka.token_endpoint: the token of {self._url}", token)
        except SettingsError as error:
            raise TokenRefused(str(error)) from None
        self._until = self._clock() + RENEW_SHARE * _life(fields.get("expires_in"))


def _life(said: object) -> float:
    """Seconds; what is no number says nothing, as if it were left out."""
    try:
        seconds = float(said) if isinstance(said, int | float | str) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    return max(0.0, seconds) if math.isfinite(seconds) else DEFAULT_LIFE_SECONDS
