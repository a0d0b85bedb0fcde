"""`ares review`: the review queue in another tool, and its decisions back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from ares_stream.records.label import ReviewItem
    from ares_stream.streaming.unreadable import UnreadableRecord

app = typer.Typer(no_args_is_help=True, help="The review queue in Label Studio, and back.")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="JSON file of tasks to write.")],
    interface: Annotated[
        Path | None, typer.Option(help="Also write the project's labelling interface, XML.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Tasks at most, the newest items.")] = 10_000,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="Also what has a label, for second opinions.")
    ] = False,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Write the items of the review topic that nobody has labelled as Label Studio's tasks.

    The file holds the text of conversations, and nothing of what the models said. Exits 0; 2 for
    a missing topic; 3 where a range cannot be read whole.
    """
    import asyncio
    import json
    from collections import OrderedDict

    from ares_stream.cli.topics import connect
    from ares_stream.files import check_outputs, write_whole
    from ares_stream.interchange.label_studio import CONFIG, as_task
    from ares_stream.interchange.review_topics import read_items, read_present_labels
    from ares_stream.streaming.unreadable import PassedOver

    check_outputs({"OUT": out, "--interface": interface}, {"--settings": settings_file})
    settings, connection = connect(settings_file, bootstrap)
    wanted: OrderedDict[str, ReviewItem] = OrderedDict()
    seen = 0

    async def work() -> None:
        passed_over = PassedOver(tell)
        labels = await read_present_labels(connection, settings.topic_prefix, passed_over)
        done = {label.interaction_id for label in labels.values()}

        def take(item: ReviewItem) -> None:
            nonlocal seen
            seen += 1
            name = item.interaction.id
            wanted.pop(name, None)
            if labelled or name not in done:
                wanted[name] = item
            if len(wanted) > limit:
                wanted.popitem(last=False)

        await read_items(connection, settings.topic_prefix, take, passed_over)

    asyncio.run(work())
    tasks = [as_task(item) for item in wanted.values()]
    write_whole(out, json.dumps(tasks, ensure_ascii=False).encode())
    out.chmod(0o600)
    if interface is not None:
        write_whole(interface, CONFIG.encode())
    typer.echo(f"{len(wanted)} tasks of {seen} items in {out}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Label Studio's JSON export.")],
    reviewers: Annotated[
        list[str] | None,
        typer.Option(
            "--reviewer",
            metavar="USER=NAME",
            help="A Label Studio user's e-mail or number, and the name of the labels; repeat.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written.")] = False,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Publish the decisions of an export as labels. A second time nothing is published.

    Exits 0; 1 where tasks or annotations were passed over, the others are published; 2 for a file
    that is no JSON export; 3 where Kafka cannot be reached.
    """
    import asyncio

    from ares_stream.cli.topics import connect
    from ares_stream.errors import SettingsError
    from ares_stream.interchange.label_studio import newer, read_annotations
    from ares_stream.interchange.review_topics import read_items, read_present_labels
    from ares_stream.records.topics import LABELS, topic_name
    from ares_stream.streaming.publisher import Publisher
    from ares_stream.streaming.records import OutboundRecord
    from ares_stream.streaming.unreadable import PassedOver

    names: dict[str, str] = {}
    for pair in reviewers or ():
        user, sign, name = pair.partition("=")
        if not (user and sign and name):
            raise SettingsError(f"--reviewer {pair}: expected USER=NAME")
        names[user] = name
    settings, connection = connect(settings_file, bootstrap)
    topic = topic_name(settings.topic_prefix, LABELS)

    async def work() -> tuple[int, int]:
        passed_over, known = PassedOver(tell), dict[str, set[str]]()
        labels = await read_present_labels(connection, settings.topic_prefix, passed_over)

        def take(item: ReviewItem) -> None:
            known.setdefault(item.interaction.id, set()).add(item.verdict.id)

        await read_items(connection, settings.topic_prefix, take, passed_over)
        found = await asyncio.to_thread(read_annotations, file, known, names)
        for item in found.passed[:_TOLD]:
            typer.echo(f"{item.place}: {item.reason}", err=True)
        present = {key: label.decided_at for key, label in labels.items()}
        fresh = newer(found.labels, present)
        if fresh and not dry_run:
            async with Publisher(connection) as publisher:
                await publisher.publish(
                    [OutboundRecord(topic, label.key, label.encode()) for label in fresh]
                )
        said = "would be published" if dry_run else "published"
        typer.echo(
            f"{len(fresh)} labels {said}, {len(found.labels) - len(fresh)} there already, "
            f"{len(found.passed)} passed over"
        )
        return len(fresh), len(found.passed)

    if asyncio.run(work())[1]:
        raise typer.Exit(1)


_TOLD = 20


def tell(item: UnreadableRecord) -> None:
    """For records that no tool can read."""
    typer.echo(f"{item.topic} {item.partition}@{item.offset}: {item.reason}", err=True)
