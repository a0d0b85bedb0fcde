"""`ares verdicts`: see what is decided, as it is committed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from ares_stream.records.verdict import Verdict
    from ares_stream.streaming.records import InboundRecord

app = typer.Typer(no_args_is_help=True, help="See what is decided.")

CLASSES = "clean", "reward_failure", "policy_failure", "coupled_failure", "contested"
_HEADING = f"{'occurred':20} {'lane':10} {'class':15} {'harm':>5} {'reward':>6}  interaction"


@app.callback()
def _group() -> None: ...


@app.command()
def tail(
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
    prefix: Annotated[
        str | None, typer.Option(help="Prefix of the topic's name, ares. by default.")
    ] = None,
    failure_class: Annotated[
        str | None, typer.Option("--class", help=f"Only these: one of {', '.join(CLASSES)}.")
    ] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="What is there first, then what comes.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Whole verdicts, one JSON document a line.")
    ] = False,
) -> None:
    """Follow the verdicts as they are committed, until Ctrl-C.

    Reads read_committed and joins no group, so that it takes no partition from anyone. Reward is
    the score's quantile among benign answers. Exits 0; 2 for a missing topic; 3 without a broker.
    """
    import sys
    from contextlib import aclosing, suppress

    from ares_stream.cli.topics import connect
    from ares_stream.errors import SettingsError
    from ares_stream.records import topics
    from ares_stream.records.topics import topic_name
    from ares_stream.streaming.reader import follow, read, snapshot

    if failure_class is not None and failure_class not in CLASSES:
        raise SettingsError(f"--class {failure_class}: is one of {', '.join(CLASSES)}")
    settings, connection = connect(settings_file, bootstrap)
    name = topic_name(settings.topic_prefix if prefix is None else prefix, topics.VERDICTS)

    async def work() -> None:
        shown = 0
        ranges = await snapshot(connection, [name])
        if not as_json:
            typer.echo(_HEADING, err=True)
        for source in [read] * from_beginning + [follow]:
            async with aclosing(source(connection, ranges)) as records:
                async for record in records:
                    verdict = _decoded(record)
                    if verdict and failure_class in (None, verdict.failure_class.value):
                        typer.echo(verdict.encode().decode() if as_json else _line(verdict))
                        sys.stdout.flush()
                        shown += 1
                    if shown == limit:
                        return

    with suppress(KeyboardInterrupt):
        asyncio.run(work())


def _decoded(record: InboundRecord) -> Verdict | None:
    from ares_stream.errors import DecodeError
    from ares_stream.records.verdict import Verdict

    try:
        return Verdict.decode(record.value or b"")
    except DecodeError as error:
        place = f"{record.topic} {record.partition} offset {record.offset}"
        typer.echo(f"{place}: no verdict: {error}", err=True)
        return None


def _line(verdict: Verdict) -> str:
    return (
        f"{verdict.occurred_at:%Y-%m-%d %H:%M:%S} {verdict.lane:10} "
        f"{verdict.failure_class.value:15} {verdict.harm.probability:5.2f} "
        f"{verdict.reward.quantile:6.2f}  {verdict.interaction_id}"
    )
