"""`ares rates`: what the monitor knows, by version and slice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ares_stream.cli.terminal import Console
    from ares_stream.records.base import Interval
    from ares_stream.records.rates import AnchorFigures, MonitorState, Rates
    from ares_stream.services.settings import Settings

FILE_WIDTH = 240


def command(
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file; the environment wins over it.")
    ] = None,
    lane: Annotated[str | None, typer.Option(help="Only this lane: production or probe.")] = None,
    policy: Annotated[str | None, typer.Option(help="Only this policy, by its name.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Also the values of this attribute of monitor.slices.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
    sampling: Annotated[
        bool,
        typer.Option(
            "--sampling", help="Print the scorer.review_split that would help the labels most."
        ),
    ] = False,
) -> None:
    """Rates since each version's first verdict, with 95 % intervals.

    CFR is the share of verdicts that are coupled failures, contested ones counted as harmless;
    its interval is a confidence sequence: it holds however often you look. `contested` counts
    those as harmful. `corrected` takes the judge's error out by people's labels; where it is
    missing, the reason stands in the JSON. `hour` is the last hour before the slice's last
    verdict, with a plain Wilson interval. `outliers` is the share of answers that lie outside of
    what the reward model's benign answers cover, where its bundle can tell.

    Exits 0, 2 for wrong settings or no rates topic, 3 when Kafka cannot be reached.
    """
    from ares_stream.services.settings import load_settings

    state, rates, anchors = asyncio.run(read_rates(load_settings(settings_file)))
    if state is None:
        typer.echo("no rates yet; `ares monitor` writes them")
        return
    if sampling:
        typer.echo("scorer:\n  review_split:")
        for name, share in state.review_shares.items():
            typer.echo(f'    "{name}": {share}')
        return
    chosen = [
        item
        for item in rates
        if lane in (None, item.slice.lane)
        and policy in (None, item.slice.policy.name)
        and item.slice.attribute in ("", by)
    ]
    if as_json:
        typer.echo(json.dumps(_as_json(state, chosen, anchors), indent=2))
        return
    _table(state, chosen)


async def read_rates(
    settings: Settings,
) -> tuple[MonitorState | None, list[Rates], list[AnchorFigures]]:
    """What the monitor has published last."""
    from ares_stream.cli.streams import tell_passed_over
    from ares_stream.detection.ledger import in_order
    from ares_stream.records.rates import AnchorFigures, MonitorState, Rates, decode_held
    from ares_stream.records.topics import RATES, topic_name
    from ares_stream.streaming.compacted import read_latest_as

    topic = topic_name(settings.topic_prefix, RATES)
    latest = await read_latest_as(
        settings.kafka,
        topic,
        lambda record: decode_held(record.key, record.value),
        unreadable=tell_passed_over,
    )
    states = [item for item in latest.values() if isinstance(item, MonitorState)]
    rates = [item for item in latest.values() if isinstance(item, Rates)]
    anchors = [item for item in latest.values() if isinstance(item, AnchorFigures)]
    return states[0] if states else None, in_order(rates), anchors


def _as_json(
    state: MonitorState, rates: list[Rates], anchors: list[AnchorFigures]
) -> dict[str, Any]:
    return {
        "schema": "ares.rates-report/1",
        "covers": [item.model_dump() for item in state.positions],
        "gaps": [item.model_dump() for item in state.gaps],
        "unreadable": state.unreadable,
        "folded": state.folded,
        "review_shares": state.review_shares,
        "rates": [item.as_report() for item in rates],
        "anchors": [item.model_dump(mode="json", exclude={"windows"}) for item in anchors],
    }


def _table(state: MonitorState, rates: list[Rates]) -> None:
    console = print_rates(rates)
    for gap in state.gaps:
        console.print(f"gap: {gap.topic} {gap.partition} lacks offsets {gap.start} to {gap.end}")


def print_rates(rates: Iterable[Rates], *, stderr: bool = False) -> Console:
    """A row per slice, as `ares rates` and `ares scan` print them."""
    from rich.table import Table

    from ares_stream.cli.terminal import Console

    table = Table(box=None, pad_edge=False)
    for name in ("lane", "policy", "slice", "since", "verdicts", "CFR", "contested", "corrected",
                 "hour", "harmful", "RM blind", "lift", "outliers"):  # fmt: skip
        table.add_column(name, overflow="fold")
    for item in rates:
        key, figures = item.slice, item.figures
        correction = figures.correction
        corrected = "no" if correction.rate is None else _range(correction.rate)
        policy = f"{key.policy.name} {key.policy.version}"
        table.add_row(
            key.lane,
            policy + (f" / {key.reward}" if key.reward else ""),
            f"{key.attribute} {key.value}".strip() or "all",
            f"{item.since:%Y-%m-%d %H:%M}",
            f"{figures.total:,}",
            _range(figures.cfr),
            _range(correction.contested_harmful),
            corrected,
            _range(figures.recent),
            _range(figures.harmful),
            _range(figures.reward_blind),
            "-" if figures.lift is None else f"{figures.lift.value:.1f}",
            "-" if figures.outliers is None else _range(figures.outliers),
        )
    console = Console(stderr=stderr)
    if not console.is_terminal:
        # No one's window: a file or a pipe takes whole lines.
        console = Console(stderr=stderr, width=FILE_WIDTH)
    console.print(table)
    return console


def _range(interval: Interval) -> str:
    if interval.count == 0:
        return "-"
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"
