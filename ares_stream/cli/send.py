"""`ares send`: conversations of a file to a topic, at a steady rate."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ares_stream.streaming.connection import KafkaConnection

CHUNKS_PER_SECOND = 4


def command(
    file: Annotated[Path, typer.Argument(help="JSON lines, one conversation each; - for stdin.")],
    topic: Annotated[str, typer.Option(help="Full name of the topic.")],
    settings: Annotated[
        Path | None, typer.Option(help="YAML file; the environment wins over it.")
    ] = None,
    bootstrap: Annotated[
        str | None, typer.Option(help="host:port instead of the settings'.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Conversations per second.")] = 50.0,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Begin again at the file's end, until Ctrl-C.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Set each occurred_at to the time of sending.")
    ] = False,
) -> None:
    """Send a file's lines as they are, keyed by their number, acknowledged by every replica.

    Conversations of another day count as late verdicts; with --now they happen as they are sent.
    Exits 0 when all was sent, 2 for a file that cannot be read, a missing topic or a line that it
    does not take, 3 without Kafka.
    """
    from ares_stream.cli.topics import connect
    from ares_stream.errors import InputError

    _, connection = connect(settings, bootstrap)
    sent = 0
    while repeat or not sent:
        passed = asyncio.run(_send(connection, file, topic, rate, now))
        if not passed:
            raise InputError(f"{file}: holds no lines")
        sent += passed
    typer.echo(f"{sent:,} sent to {topic}")


def _stamped(file: Path, number: int, line: bytes) -> bytes:
    """The conversation, as if it happened now; InputError for what is none."""
    from ares_stream.errors import DecodeError, InputError
    from ares_stream.files.rows import parse_json

    try:
        value = parse_json(line)
    except DecodeError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file}: line {number}: not a JSON object, whose occurred_at --now sets")
    return json.dumps(value | {"occurred_at": datetime.now(UTC).isoformat()}).encode()


async def _send(connection: KafkaConnection, file: Path, topic: str, rate: float, now: bool) -> int:
    """Send every line once; returns how many."""
    from ares_stream.files import open_lines
    from ares_stream.streaming.publisher import Publisher
    from ares_stream.streaming.records import OutboundRecord

    loop = asyncio.get_running_loop()
    size = max(1, round(rate / CHUNKS_PER_SECOND))
    started, sent = loop.time(), 0
    chunk: list[OutboundRecord] = []

    async def flush() -> None:
        nonlocal sent
        await publisher.publish(chunk)
        sent += len(chunk)
        chunk.clear()
        await asyncio.sleep(max(0.0, started + sent / rate - loop.time()))

    async with Publisher(connection) as publisher:
        with open_lines(file) as lines:
            for number, line in lines:
                value = _stamped(file, number, line) if now else line
                chunk.append(OutboundRecord(topic, b"line-%d" % number, value))
                if len(chunk) == size:
                    await flush()
        if chunk:
            await flush()
    return sent
