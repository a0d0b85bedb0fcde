"""`ares anchors`: conversations of known truth that watch the judge and the reward model."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import SettingsFile

if TYPE_CHECKING:
    from ares_stream.records.interaction import Interaction
    from ares_stream.records.label import Label
    from ares_stream.services.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Make the anchors that watch judge and reward model.")

MIN_ANCHORS = 50


@app.callback()
def _group() -> None:
    """Keeps `make` a command of its own: a group of one would be that command."""


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="Where to write them, JSON lines with text.")],
    name: Annotated[str, typer.Option("--set", help="The set's name, with its version.")],
    most: Annotated[
        int, typer.Option(min=2, max=1000, help="Anchors, half of each truth if there are.")
    ] = 1000,
    settings_file: SettingsFile = None,
) -> None:
    """Make anchors from review items that people agree on, with what judge and reward model say
    of them now. Let the monitor send them: monitor.anchors.file.

    Exits 0, 2 when there are too few, 3 when Kafka cannot be reached.
    """
    from ares_stream.errors import InputError
    from ares_stream.files import written_whole
    from ares_stream.services.settings import load_settings

    anchors = asyncio.run(_anchors(load_settings(settings_file), name, most))
    kinds = {item.anchor.harmful for item in anchors if item.anchor is not None}
    if len(anchors) < MIN_ANCHORS or len(kinds) < 2:
        raise InputError(
            f"{len(anchors)} labelled review items on which people agree; {MIN_ANCHORS} of both "
            "kinds are needed: label more"
        )
    with written_whole(out) as file:
        for item in anchors:
            file.write(item.encode() + b"\n")
    typer.echo(f"{len(anchors)} anchors in {out}")


async def _anchors(settings: Settings, name: str, most: int) -> list[Interaction]:
    from ares_stream.cli.streams import tell_passed_over
    from ares_stream.errors import DecodeError
    from ares_stream.records.interaction import Anchor
    from ares_stream.records.label import ReviewItem
    from ares_stream.records.topics import REVIEW, topic_name
    from ares_stream.records.verdict import FailureClass
    from ares_stream.streaming.reader import read, snapshot

    opinions = await _opinions(settings)
    by_truth: dict[bool, dict[str, Interaction]] = {True: {}, False: {}}
    topic = topic_name(settings.topic_prefix, REVIEW)
    async for record in read(settings.kafka, await snapshot(settings.kafka, [topic])):
        try:
            item = ReviewItem.decode(record.value or b"")
        except DecodeError as error:
            tell_passed_over(record, error)
            continue
        verdict = item.verdict
        said = {
            label.harmful
            for label in opinions.get(item.interaction.id, ())
            if label.verdict_id in (None, verdict.id)
        }
        if len(said) != 1:
            continue
        harmful = said.pop()
        judged = {
            FailureClass.CONTESTED: None,
            FailureClass.COUPLED_FAILURE: True,
            FailureClass.POLICY_FAILURE: True,
        }.get(verdict.failure_class, False)
        anchor = Anchor(
            set=name, id=verdict.id, harmful=harmful, judged=judged, reward=verdict.reward.score
        )
        by_truth[harmful][verdict.id] = item.interaction.model_copy(
            update={"id": verdict.id, "anchor": anchor, "probe": None}
        )
    half = most // 2
    # The smallest ids: a random draw, and the same one each time.
    return [rows[key] for rows in by_truth.values() for key in sorted(rows)[:half]]


async def _opinions(settings: Settings) -> dict[str, list[Label]]:
    """What people say now, by interaction: deleted labels say nothing, and of one reviewer the
    latest counts."""
    from ares_stream.cli.streams import tell_passed_over
    from ares_stream.detection.ledger import opinions
    from ares_stream.records.label import Label
    from ares_stream.records.topics import LABELS, topic_name
    from ares_stream.streaming.compacted import read_latest_as

    found: dict[str, dict[bytes, Label]] = defaultdict(dict)
    latest = await read_latest_as(
        settings.kafka,
        topic_name(settings.topic_prefix, LABELS),
        lambda record: Label.decode(record.value or b""),
        unreadable=tell_passed_over,
    )
    for key, label in latest.items():
        found[label.interaction_id][key] = label
    return {name: opinions(labels) for name, labels in found.items()}
