"""Telling those who run the models what is active: scorers by the releases topic, the policy
server by HTTP. Both can be repeated at any time and end in the same state, so a kill between
the registry and the announcement is mended by announcing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import httpx

from ares_stream.errors import TargetError
from ares_stream.files import read_api_key
from ares_stream.models.policy_server import PolicyServer
from ares_stream.models.registry import Log, announcements, differences
from ares_stream.records.release import Release, ReleaseState
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read_latest
from ares_stream.streaming.records import OutboundRecord

ALREADY_LOADED: Final = 400
NOT_LOADED: Final = 404


async def announce_topic(connection: KafkaConnection, topic: str, log: Log) -> int:
    """Publish what the topic lacks; returns the number of records. Raises StreamError."""
    latest = await read_latest(connection, topic)
    present = {key: record.value for key, record in latest.items() if record.value is not None}
    missing = differences(announcements(log), present)
    # A key that is not there needs no deletion.
    records = [
        OutboundRecord(topic, key, value)
        for key, value in missing.items()
        if value is not None or key in present
    ]
    # What becomes active comes first: a reader that stops between sees the new release.
    records.sort(key=lambda record: (record.value is None, b"@" in (record.key or b"")))
    if records:
        async with Publisher(connection) as publisher:
            await publisher.publish(records)
    return len(records)


async def announce_policies(server: PolicyServer, log: Log) -> tuple[str, ...]:
    """Have the server load every active adapter, and unload those taken back without a
    predecessor; returns one line for each. Raises TargetError naming the adapter."""
    lines: list[str] = []
    models = sorted({item.model for item in log.releases if item.kind == "policy"})
    async with httpx.AsyncClient(timeout=server.seconds, headers=_headers(server)) as client:
        for model in models:
            active = log.active(model)
            if active is not None:
                await _tell(client, server, active)
                lines.append(f"{model}: {active.digest[:12]} loaded")
                continue
            gone = _last_taken_back(log.releases, model)
            if gone is not None:
                await _tell(client, server, gone)
                lines.append(f"{model}: {gone.digest[:12]} unloaded")
    return tuple(lines)


def _last_taken_back(releases: Sequence[Release], model: str) -> Release | None:
    gone = [
        item for item in releases if item.model == model and item.state is ReleaseState.ROLLED_BACK
    ]
    return max(gone, key=lambda item: item.changed_at, default=None)


async def _tell(client: httpx.AsyncClient, server: PolicyServer, release: Release) -> None:
    if server.kind == "webhook":
        answer = await _post(client, server.url, release.model_dump(mode="json", exclude_none=True))
        _expect_success(answer, release)
        return
    base = server.url.rstrip("/").removesuffix("/v1")
    name = {"lora_name": release.model}
    if release.state is ReleaseState.ACTIVE:
        load = name | {"lora_path": release.uri.removeprefix("file://")}
        answer = await _post(client, f"{base}/v1/load_lora_adapter", load | {"load_inplace": True})
        if answer.status_code != ALREADY_LOADED:
            _expect_success(answer, release)
            return
        # Servers from before load_inplace refuse a name that they know.
        await _unload(client, base, release)
        _expect_success(await _post(client, f"{base}/v1/load_lora_adapter", load), release)
    else:
        await _unload(client, base, release)


async def _unload(client: httpx.AsyncClient, base: str, release: Release) -> None:
    answer = await _post(client, f"{base}/v1/unload_lora_adapter", {"lora_name": release.model})
    if answer.status_code not in (ALREADY_LOADED, NOT_LOADED):
        _expect_success(answer, release)


async def _post(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> httpx.Response:
    try:
        return await client.post(url, json=body)
    except httpx.HTTPError as error:
        raise TargetError(
            f"policy server {url}: {type(error).__name__}: {error}; once it is back, "
            "`ares release announce` tells it again"
        ) from error


def _expect_success(answer: httpx.Response, release: Release) -> None:
    if not answer.is_success:
        raise TargetError(
            f"policy server {answer.request.url}: refused {release.model} "
            f"{release.digest[:12]} with HTTP {answer.status_code}; see its log, then "
            "`ares release announce`"
        )


def _headers(server: PolicyServer) -> dict[str, str]:
    if server.token_file is None:
        return {}
    token = read_api_key("registry.policy_server.token_file", server.token_file)
    return {"authorization": f"Bearer {token}"}
