"""`ares archive`: topics to Parquet, and back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

app = typer.Typer(no_args_is_help=True, help="Topics to Parquet files, and back.")

Url = Annotated[str, typer.Argument(help="A folder, or the URL of an object store.")]


@app.callback()
def _group() -> None: ...


@app.command()
def write(
    url: Url,
    topics: Annotated[
        list[str],
        typer.Option("--topic", metavar="NAME", help="Without the prefix; repeat for several."),
    ],
    since: Annotated[datetime | None, typer.Option(help="Only records from this UTC time.")] = None,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Archive what the topics hold now, a Parquet file for each partition.

    Exits 0; 2 for a missing topic or a store that cannot be written; 3 where a range cannot be
    read whole.
    """
    import asyncio
    import time
    from datetime import UTC

    from ares_stream.audit.archive import write_archive
    from ares_stream.audit.ranges import TopicReader
    from ares_stream.cli.topics import connect

    settings, connection = connect(settings_file, bootstrap)
    reader = TopicReader(connection)
    names = [f"{settings.topic_prefix}{name}" for name in topics]
    since_ms = None if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000)

    async def work() -> int:
        at_ms = time.time_ns() // 1_000_000
        ranges = await reader.snapshot(names, since_ms=since_ms)
        return await write_archive(reader, ranges, url, at_ms=at_ms)

    typer.echo(f"{asyncio.run(work())} records in {url}")


@app.command()
def restore(
    url: Url,
    topics: Annotated[
        list[str],
        typer.Option(
            "--topic", metavar="NAME", help="Whole names, as archived; repeat for several."
        ),
    ],
    to_prefix: Annotated[
        str, typer.Option(help="Written to topics of this prefix in the place of the settings'.")
    ],
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Publish archived records to topics that exist, under another prefix.

    Keys, values, headers and times are as they were; offsets are new. Exits 0; 2 for a missing
    topic; 3 for a hole in the archive.
    """
    import asyncio

    from ares_stream.audit.archive import ArchiveReader
    from ares_stream.audit.archive import restore as publish
    from ares_stream.cli.topics import connect

    settings, connection = connect(settings_file, bootstrap)
    reader = ArchiveReader(url)
    prefix = settings.topic_prefix

    async def work() -> int:
        return await publish(
            reader, await reader.snapshot(topics), connection,
            lambda name: to_prefix + name.removeprefix(prefix),
        )  # fmt: skip

    typer.echo(f"{asyncio.run(work())} records published")
