"""`ares trace`: the life of an interaction, or of a release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from ares_stream.audit.trace import InteractionTrace, ReleaseTrace
    from ares_stream.services.settings import Settings
    from ares_stream.streaming.connection import KafkaConnection


def command(
    selector: Annotated[
        str | None, typer.Argument(help="The id of an interaction or of a verdict.")
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="A release's digest, or its first 8 or more digits.")
    ] = None,
    replays: Annotated[
        list[Path] | None,
        typer.Option(
            "--replay", metavar="REPORT", help="A report of `ares replay`; repeat for several."
        ),
    ] = None,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show every record of one interaction with its coordinates, from what came in to what was
    released because of it; or what a release was trained and judged on. Never any text.

    Reads the topics whole. Exits 0; 2 where nothing is found; 3 where a range cannot be read.
    """
    import asyncio
    import json
    from dataclasses import asdict

    from ares_stream.audit.trace import ReleaseTrace, with_gates
    from ares_stream.cli.topics import connect
    from ares_stream.errors import InputError, SettingsError
    from ares_stream.files import read_json

    if (selector is None) == (release is None):
        raise SettingsError("name an id, or --release DIGEST, and not both")
    if release is not None and len(release) < 8:
        raise SettingsError("--release: give 8 or more digits of the digest")
    if selector is not None and not 0 < len(selector.strip()) <= 256:
        raise SettingsError("the id: expected 1 to 256 characters")
    settings, connection = connect(settings_file, bootstrap)
    reports: list[dict[str, object]] = [read_json(file, dict) for file in replays or ()]
    trace: InteractionTrace | ReleaseTrace
    if selector is not None:
        trace = asyncio.run(_interaction(settings, connection, selector))
        trace.replayed(reports)
    else:
        trace = asyncio.run(_release(settings, connection, release or ""))
    steps = with_gates(trace.steps, settings.registry.store().gate_report)
    if not steps:
        raise InputError("nothing is found of it; retention may have deleted it")
    if as_json:
        document: dict[str, object] = {
            "schema": "ares.trace/1",
            "steps": [asdict(item) for item in steps],
        }
        if isinstance(trace, ReleaseTrace):
            document["verdicts"] = trace.verdicts
        typer.echo(json.dumps(document, indent=2))
        return
    for step in steps:
        typer.echo(str(step))
    if isinstance(trace, ReleaseTrace):
        typer.echo(f"{trace.verdicts} verdicts took it")


async def _interaction(
    settings: Settings, connection: KafkaConnection, selector: str
) -> InteractionTrace:
    from ares_stream.audit.trace import FOLLOWING, InteractionTrace
    from ares_stream.records import topics
    from ares_stream.services.scorer import inputs_of
    from ares_stream.streaming.reader import read, snapshot

    inputs = inputs_of(settings)
    maps = {item.topic: item.map for item in inputs if item.map is not None}
    trace = InteractionTrace(selector, maps, settings.scorer.limits)
    verdicts = await snapshot(connection, [f"{settings.topic_prefix}{topics.VERDICTS}"])
    async for record in read(connection, verdicts):
        trace.learn([record])
    read_by_scorers = await snapshot(connection, [item.topic for item in inputs])
    async for record in read(connection, read_by_scorers):
        trace.take_input(record)
    for name in FOLLOWING:
        ranges = await snapshot(connection, [f"{settings.topic_prefix}{name}"])
        async for record in read(connection, ranges):
            trace.take(name, record)
    return trace


async def _release(settings: Settings, connection: KafkaConnection, digest: str) -> ReleaseTrace:
    from ares_stream.audit.trace import ReleaseTrace
    from ares_stream.records import topics
    from ares_stream.streaming.reader import read, snapshot

    trace = ReleaseTrace(digest)
    for name in (topics.REPAIRS, topics.RELEASES, topics.VERDICTS):
        ranges = await snapshot(connection, [f"{settings.topic_prefix}{name}"])
        async for record in read(connection, ranges):
            trace.take(name, record)
    return trace
