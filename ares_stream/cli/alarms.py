"""`ares alarms`: what has changed, and that someone has taken note."""

from __future__ import annotations

import asyncio
import getpass
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import SettingsFile

if TYPE_CHECKING:
    from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
    from ares_stream.services.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See and acknowledge the monitor's alarms.")


@app.command("list")
def list_alarms(
    settings_file: SettingsFile = None,
    every: Annotated[bool, typer.Option("--all", help="Acknowledged ones as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Whole records, with offsets.")] = False,
) -> None:
    """Open alarms, oldest first. Exits 0, also when there are some; 2 without the topic.

    Example: ares alarms list --json
    """
    from ares_stream.services.settings import load_settings

    alarms, taken = asyncio.run(_read(load_settings(settings_file)))
    shown = [item for item in alarms if every or item.id not in taken]
    if as_json:
        rows = [
            item.model_dump(mode="json", exclude_none=True)
            | ({"acknowledged": taken[item.id].model_dump(mode="json")} if item.id in taken else {})
            for item in shown
        ]
        typer.echo(json.dumps({"alarms": rows}, indent=2))
        return
    for item in shown:
        by = f"; acknowledged by {taken[item.id].by}" if item.id in taken else ""
        typer.echo(f"{item.id}  {item.raised_at:%Y-%m-%d %H:%M}  {item.attribution:6}  "
                   f"{item.summary}{by}")  # fmt: skip
        typer.echo(f"    {item.attribution_reason}")
        if item.evidence:
            places = ", ".join(f"{e.partition}@{e.offset}" for e in item.evidence[:8])
            more = "" if len(item.evidence) <= 8 else f" and {len(item.evidence) - 8} more"
            typer.echo(f"    {item.evidence[0].topic} {places}{more}")
    if not shown:
        typer.echo("no open alarms" if not every else "no alarms yet")


@app.command()
def acknowledge(
    alarm: Annotated[str, typer.Argument(help="The alarm's id, or its first digits.")],
    note: Annotated[str, typer.Option(help="What was found; kept with the alarm.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; the user's name by default.")] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Take note of an alarm: its watch begins anew, and raises again if it goes on.

    Exits 0, or 2 where no open alarm has this id.
    """
    from ares_stream.errors import InputError
    from ares_stream.records.alarm import AlarmAcknowledgement
    from ares_stream.records.topics import ALARMS, FIRST_PARTITION, topic_name
    from ares_stream.services.settings import load_settings
    from ares_stream.streaming.publisher import Publisher
    from ares_stream.streaming.records import OutboundRecord

    settings = load_settings(settings_file)
    alarms, taken = asyncio.run(_read(settings))
    found = [item for item in alarms if item.id.startswith(alarm) and item.id not in taken]
    if len(found) != 1:
        raise InputError(f"{alarm}: {len(found)} open alarms begin so; see `ares alarms list`")
    record = AlarmAcknowledgement(
        alarm_id=found[0].id, by=by or getpass.getuser(), at=datetime.now(UTC), note=note
    )

    async def send() -> None:
        async with Publisher(settings.kafka) as publisher:
            topic = topic_name(settings.topic_prefix, ALARMS)
            key = record.alarm_id.encode()
            await publisher.publish(
                [OutboundRecord(topic, key, record.encode(), partition=FIRST_PARTITION)]
            )

    asyncio.run(send())
    typer.echo(f"acknowledged {found[0].id}: {found[0].summary}")


async def _read(settings: Settings) -> tuple[list[Alarm], dict[str, AlarmAcknowledgement]]:
    from ares_stream.cli.streams import tell_passed_over
    from ares_stream.errors import DecodeError
    from ares_stream.records.alarm import Alarm, decode_told
    from ares_stream.records.topics import ALARMS, topic_name
    from ares_stream.streaming.reader import read, snapshot

    topic = topic_name(settings.topic_prefix, ALARMS)
    alarms: dict[str, Alarm] = {}
    taken: dict[str, AlarmAcknowledgement] = {}
    async for record in read(settings.kafka, await snapshot(settings.kafka, [topic])):
        try:
            told = decode_told(record.value)
        except DecodeError as error:
            tell_passed_over(record, error)
        else:
            if isinstance(told, Alarm):
                alarms[told.id] = told
            else:
                taken[told.alarm_id] = told
    return sorted(alarms.values(), key=lambda item: item.raised_at), taken
