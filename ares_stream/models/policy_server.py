"""Telling the server of the policy by HTTP which adapter is active.

vLLM answers an adapter that it refuses with 400, 404 or 500, and one whose name it knows with 400
too where it cannot load in place (before load_inplace). So nothing is concluded from a status
alone: /v1/models says what is served, before and after, and what is served is never unloaded
before the new adapter has loaded once.

    not served ─► load ─► look
    served     ─► load in place ─► look
                       └ refused ─► load under a name of its own ─► unload ─► load ─► look
                                          └ refused: what is served stays
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ares_stream.errors import TargetError
from ares_stream.files import AnswerError, read_answer, read_api_key
from ares_stream.models.releases import Log
from ares_stream.records.release import Release, ReleaseState

if TYPE_CHECKING:
    import httpx

MAYBE_LOADED: Final = 400
"""What a server that cannot load in place says of a name it knows, and of an adapter it refuses."""
ANSWER_BYTES: Final = 4 << 20
"""A list of thousands of adapters; more than this is no answer of a policy server."""
REASON_CHARACTERS: Final = 300


class PolicyServer(BaseModel):
    """Who serves the policy, and how it is told of an adapter.

    vllm: GET {url}/v1/models, POST {url}/v1/load_lora_adapter and /v1/unload_lora_adapter, which
    the server offers with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; clients ask for the model by the
    release's model name. webhook: POST {url} with the release as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm", "webhook"]
    url: str = Field(pattern=r"^https?://[^\s]+$")
    token_file: Path | None = None
    """Sent as a bearer token."""
    seconds: float = Field(30.0, gt=0)
    """For one request: a server that loads an adapter for longer is taken for stuck."""


async def announce_policies(server: PolicyServer, log: Log) -> tuple[str, ...]:
    """Have the server load every active adapter, and unload those taken back without a
    predecessor; returns one line for each. What is right already is left alone.

    Every model is told, whatever the others answer. Raises TargetError naming the adapters that
    the server refused, and why; it then serves what it served; SettingsError for a proxy of the
    environment that cannot be used.
    """
    from ares_stream.endpoints.client import http_client

    lines: list[str] = []
    refused: list[str] = []
    models = sorted({item.model for item in log.releases if item.kind == "policy"})
    client = http_client("policy_server", timeout=server.seconds, headers=_headers(server))
    async with client:
        told = _Webhook(client, server) if server.kind == "webhook" else _Vllm(client, server)
        for model in models:
            active = log.active(model)
            gone = _last_taken_back(log.releases, model)
            try:
                if active is not None:
                    await told.load(active)
                    lines.append(f"{model}: {active.digest[:12]} loaded")
                elif gone is not None:
                    await told.unload(gone)
                    lines.append(f"{model}: {gone.digest[:12]} unloaded")
            except TargetError as error:
                refused.append(str(error))
    if refused:
        raise TargetError("; ".join(refused))
    return tuple(lines)


def _last_taken_back(releases: Sequence[Release], model: str) -> Release | None:
    gone = [
        item for item in releases if item.model == model and item.state is ReleaseState.ROLLED_BACK
    ]
    return max(gone, key=lambda item: item.changed_at, default=None)


class _Http:
    """Requests with a bounded answer and one kind of error."""

    def __init__(self, client: httpx.AsyncClient, server: PolicyServer) -> None:
        self._client = client
        self._server = server

    async def ask(self, method: str, url: str, body: Any = None) -> tuple[int, bytes]:
        """(status, content). Raises TargetError when there is no answer."""
        import httpx

        try:
            async with self._client.stream(method, url, json=body) as answer:
                packed = answer.headers.get("content-encoding", "")
                content = await read_answer(answer.aiter_raw(), ANSWER_BYTES, packed)
                return answer.status_code, content
        except AnswerError as error:
            raise TargetError(f"policy server {url}: {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise TargetError(
                f"policy server {url}: {type(error).__name__}: {error}; once it is back, "
                "`ares release announce` tells it again"
            ) from error


class _Webhook(_Http):
    async def load(self, release: Release) -> None:
        await self._tell(release)

    async def unload(self, release: Release) -> None:
        await self._tell(release)

    async def _tell(self, release: Release) -> None:
        body = release.model_dump(mode="json", exclude_none=True)
        status, content = await self.ask("POST", self._server.url, body)
        if not 200 <= status < 300:
            raise _refusal(self._server.url, release, status, content)


class _Vllm(_Http):
    async def load(self, release: Release) -> None:
        name, path = release.model, release.uri.removeprefix("file://")
        served = await self._served()
        if served.get(name) == path:
            return
        known = name in served
        status, content = await self._post("load", name, path, load_inplace=known)
        if known and status == MAYBE_LOADED:
            await self._replace(release, path, served[name])
        elif not _succeeded(status):
            raise _refusal(self._url("load"), release, status, content, stays=known)
        now = await self._served()
        if now.get(name) != path:
            raise TargetError(
                f"policy server {self._url('load')}: accepted {name} {release.digest[:12]} and "
                f"serves {now.get(name) or 'nothing'} under that name; see its log, then "
                "`ares release announce`"
            )

    async def _replace(self, release: Release, path: str, before: str | None) -> None:
        """For a server that loads nothing in place: the new adapter must load once under a name of
        its own; only then the one that is served gives way."""
        name = release.model
        trial = f"{name}-{release.digest[:12]}"
        status, content = await self._post("load", trial, path)
        if not _succeeded(status):
            raise _refusal(self._url("load"), release, status, content, stays=True)
        try:
            status, content = await self._post("unload", name)
            if not _succeeded(status):
                raise _refusal(self._url("unload"), release, status, content, stays=True)
            status, content = await self._post("load", name, path)
            if not _succeeded(status):
                if before is not None:
                    await self._post("load", name, before)
                raise _refusal(self._url("load"), release, status, content)
        finally:
            await self._post("unload", trial)

    async def unload(self, release: Release) -> None:
        if release.model not in await self._served():
            return
        status, content = await self._post("unload", release.model)
        if not _succeeded(status) and release.model in await self._served():
            raise _refusal(self._url("unload"), release, status, content)

    async def _served(self) -> dict[str, str | None]:
        """Model names to the paths that they were loaded from, as the server says."""
        url = f"{self._base}/v1/models"
        status, content = await self.ask("GET", url)
        try:
            if not _succeeded(status):
                raise ValueError
            cards = json.loads(content)["data"]
            return {str(card["id"]): card.get("root") for card in cards}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise TargetError(
                f"policy server {url}: HTTP {status}, expected its list of models; without it "
                "nothing is loaded and nothing unloaded"
            ) from None

    async def _post(
        self, verb: Literal["load", "unload"], name: str, path: str | None = None, **more: bool
    ) -> tuple[int, bytes]:
        body = {"lora_name": name} | ({"lora_path": path} if path else {}) | more
        return await self.ask("POST", self._url(verb), body)

    def _url(self, verb: str) -> str:
        return f"{self._base}/v1/{verb}_lora_adapter"

    @property
    def _base(self) -> str:
        return self._server.url.rstrip("/").removesuffix("/v1")


def _succeeded(status: int) -> bool:
    return 200 <= status < 300


def _refusal(
    url: str, release: Release, status: int, content: bytes, *, stays: bool = False
) -> TargetError:
    kept = "; what it served before is served still" if stays else ""
    return TargetError(
        f"policy server {url}: refused {release.model} {release.digest[:12]} with HTTP {status}"
        f"{_reason(content)}{kept}; see its log, then `ares release announce`"
    )


def _reason(content: bytes) -> str:
    """What vLLM says of it: {"message": ...}, or {"error": {"message": ...}}."""
    try:
        body = json.loads(content)
        said = (body.get("error") or body)["message"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return f" ({' '.join(str(said).split())[:REASON_CHARACTERS]})"


def _headers(server: PolicyServer) -> dict[str, str]:
    if server.token_file is None:
        return {}
    token = read_api_key("registry.policy_server.token_file", server.token_file)
    return {"authorization": f"Bearer {token}"}
