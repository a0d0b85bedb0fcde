"""`ares release` against a real broker and a real HTTP server: who follows the topic sees what
was approved, the policy server loads it, and a roll-back reaches both."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.models.bundles import (
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    load_bundle,
    write_bundle,
)
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.topics import specs
from ares_stream.services.health import serve_health
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import follow_compacted, read_latest
from ares_stream.streaming.connection import KafkaConnection
from tests.support.adapters import write_adapter
from tests.support.policy_server import PolicyServer

pytestmark = pytest.mark.kafka


def bundle(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(content)
    manifest = Manifest(
        name="rm",
        kind="reward",
        template=InputTemplate(first="{{ response }}", max_length=64),
        outputs=Outputs(activation="identity", labels=(0,)),
        lineage=Lineage(base="tiny"),
    )
    files = {"model.onnx": folder / "weights", "tokenizer.json": folder / "weights"}
    return write_bundle(folder / content.decode(), manifest, files).path


def adapter(folder: Path, content: bytes) -> Path:
    return write_adapter(folder / content.decode(), content)


@pytest.fixture
def connection(kafka: str) -> KafkaConnection:
    return KafkaConnection(bootstrap=kafka)


@pytest.fixture(autouse=True)
def topics(connection: KafkaConnection, prefix: str) -> None:
    asyncio.run(create_topics(connection, specs(prefix, partitions=1, replication=1)))


def settings_file(
    folder: Path, kafka: str, prefix: str, url: str | None = None, **kind: str
) -> str:
    registry: dict[str, Any] = {"root": str(folder / "registry")}
    if url is not None:
        (folder / "token").write_text("s3cret\n")
        registry["policy_server"] = {
            "kind": kind.get("kind", "vllm"),
            "url": url,
            "token_file": str(folder / "token"),
            "seconds": 5,
        }
    content = {"kafka": {"bootstrap": kafka}, "topic_prefix": prefix, "registry": registry}
    file = folder / "ares.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


async def ares(settings: str, *arguments: str) -> Result:
    """Run the command in a thread: it has an event loop of its own."""
    line = ["release", *arguments, "--settings", settings]
    return await asyncio.to_thread(CliRunner().invoke, app, line)


async def ok(settings: str, *arguments: str) -> str:
    result = await ares(settings, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@asynccontextmanager
async def following(connection: KafkaConnection, topic: str) -> AsyncIterator[list[Release]]:
    """What a scorer that follows the topic sees, as it arrives."""
    seen: list[Release] = []

    async def follow() -> None:
        async for record in follow_compacted(connection, topic):
            if record.value is not None:
                seen.append(Release.decode(record.value))

    task = asyncio.create_task(follow())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_active(seen: list[Release], digest: str) -> None:
    async with asyncio.timeout(150):
        while (ReleaseState.ACTIVE, digest) not in [(item.state, item.digest) for item in seen]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_follower_sees_each_approval_and_the_roll_back(
    connection: KafkaConnection, kafka: str, prefix: str, tmp_path: Path
) -> None:
    settings = settings_file(tmp_path, kafka, prefix)
    first, second = (bundle(tmp_path / "b", content) for content in (b"one", b"two"))
    digests = [load_bundle(path).digest for path in (first, second)]
    async with following(connection, f"{prefix}releases") as seen:
        for path, digest in zip((first, second), digests, strict=True):
            await ok(settings, "add", str(path), "--kind", "reward")
            await ok(settings, "approve", digest[:12], "--by", "anna")
            await until_active(seen, digest)
        seen.clear()
        await ok(settings, "rollback", "rm", "--by", "ben", "--reason", "over-refuses")
        await until_active(seen, digests[0])

    latest = await read_latest(connection, f"{prefix}releases")
    held = {
        key.decode(): Release.decode(record.value)
        for key, record in latest.items()
        if record.value is not None
    }
    assert {key: item.state.value for key, item in held.items()} == {
        "rm": "active",
        f"rm@{digests[1]}": "rolled_back",
    }
    assert held["rm"].digest == digests[0]
    assert (held["rm"].changed_by, held["rm"].reason) == ("ben", "over-refuses")
    listed = json.loads(await ok(settings, "list", "--json"))["releases"]
    assert [item["state"] for item in listed] == ["active", "rolled_back"]
    assert "(verified)" in await ok(settings, "show", digests[0][:8])


@pytest.mark.parametrize("in_place", [True, False])
async def test_the_policy_server_loads_what_is_active_and_unloads_what_was_taken_back(
    kafka: str, prefix: str, tmp_path: Path, in_place: bool
) -> None:
    server = PolicyServer(in_place=in_place)
    async with serve_health(server.app, "127.0.0.1", 0) as port:
        settings = settings_file(tmp_path, kafka, prefix, f"http://127.0.0.1:{port}")
        digests = []
        for content in (b"one", b"two"):
            path = str(adapter(tmp_path / "a", content))
            shown = await ok(settings, "add", path, "--kind", "policy", "--model", "chat")
            digests.append(shown.split()[3])
            await ok(settings, "approve", digests[-1])
            assert server.served["chat"].rsplit("/", 1)[-1].startswith(digests[-1])
            assert (Path(server.served["chat"]) / "adapter_config.json").is_file()
        await ok(settings, "rollback", "chat")
        assert server.served["chat"].rsplit("/", 1)[-1].startswith(digests[0])
        await ok(settings, "rollback", "chat")
        assert server.served == {}
        assert server.authorised


async def test_a_webhook_receives_the_release(kafka: str, prefix: str, tmp_path: Path) -> None:
    received: list[Release] = []

    async def hook(request: Request) -> Response:
        received.append(Release.decode(await request.body()))
        return PlainTextResponse("thanks")

    site = Starlette(routes=[Route("/ares", hook, methods=["POST"])])
    async with serve_health(site, "127.0.0.1", 0) as port:
        settings = settings_file(
            tmp_path, kafka, prefix, f"http://127.0.0.1:{port}/ares", kind="webhook"
        )
        path = str(adapter(tmp_path / "a", b"one"))
        shown = await ok(settings, "add", path, "--kind", "policy", "--model", "chat")
        assert received == []
        await ok(settings, "approve", shown.split()[3])

    assert [(item.model, item.state) for item in received] == [("chat", ReleaseState.ACTIVE)]


async def test_a_policy_server_that_fails_leaves_a_state_that_announce_finishes(
    connection: KafkaConnection, kafka: str, prefix: str, tmp_path: Path
) -> None:
    broken, healthy = PolicyServer(broken=True), PolicyServer()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = unused.getsockname()[1]
    path = str(adapter(tmp_path / "a", b"one"))
    settings = settings_file(tmp_path, kafka, prefix, f"http://127.0.0.1:{nobody}")
    await ok(settings, "add", path, "--kind", "policy", "--model", "chat", "--offline")
    digest = json.loads(await ok(settings, "list", "--json"))["releases"][0]["digest"]

    refused = await ares(settings, "approve", digest)
    assert refused.exit_code == 3
    assert "ConnectError" in refused.stderr
    async with serve_health(broken.app, "127.0.0.1", 0) as port:
        settings = settings_file(tmp_path, kafka, prefix, f"http://127.0.0.1:{port}")
        refused = await ares(settings, "announce")
    assert refused.exit_code == 3
    assert "refused chat" in refused.stderr
    assert "HTTP 500" in refused.stderr

    async with serve_health(healthy.app, "127.0.0.1", 0) as port:
        settings = settings_file(tmp_path, kafka, prefix, f"http://127.0.0.1:{port}")
        assert "announced: 0 records" in await ok(settings, "announce")
    assert healthy.served["chat"].endswith(digest)
    latest = await read_latest(connection, f"{prefix}releases")
    assert list(latest) == [b"chat"]
