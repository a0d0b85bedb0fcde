"""The monitor in the demo: its figures by version, and the alarm that it raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ares_stream.errors import ScoringError
from ares_stream.files import written_whole
from ares_stream.lab.streams import PREFIX
from ares_stream.processes.service import LOOK_SECONDS, Service
from ares_stream.records.alarm import Alarm
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Interaction
from ares_stream.records.rates import STATE_KEY, MonitorState, Rates, decode_held
from ares_stream.records.topics import ALARMS, LABELS, RATES, VERDICTS, topic_name
from ares_stream.reporting.page import Section, table_section
from ares_stream.streaming.compacted import read_latest_as
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import snapshot

BEARABLE: Final = 0.01
"""Coupled-failure rate over which the demo's monitor raises its alarm: the made policy fails
several times as often."""
ANCHORS_PER_MINUTE: Final = 600.0
CAUGHT_UP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Monitored:
    """What the monitor had published at the end."""

    rates: tuple[Rates, ...]
    alarms: tuple[Alarm, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rates": [
                {
                    "slice": item.slice.model_dump(),
                    "figures": item.figures.model_dump(mode="json", exclude_none=True),
                }
                for item in self.rates
            ],
            "alarms": [item.model_dump(mode="json", exclude_none=True) for item in self.alarms],
        }


def monitor_settings(
    connection: KafkaConnection, anchors: Sequence[Interaction], port: int, scratch: Path
) -> dict[str, Any]:
    """Settings of the demo's monitor, whose /readyz is at `port`; the anchors are written where
    it finds them."""
    monitor: dict[str, Any] = {
        "group": f"{PREFIX}monitor",
        "publish_seconds": 0.5,
        "alarms": {"coupled": BEARABLE},
    }
    if anchors:
        file = scratch / "anchors.jsonl"
        with written_whole(file) as out:
            for item in anchors:
                out.write(item.encode() + b"\n")
        monitor["anchors"] = {"file": str(file), "per_minute": ANCHORS_PER_MINUTE}
    return {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": port},
        "monitor": monitor,
    }


async def monitored(connection: KafkaConnection, monitor: Service) -> Monitored:
    """The monitor's figures once they cover every verdict. Raises ScoringError when they never
    do."""
    names = [topic_name(PREFIX, name) for name in (VERDICTS, LABELS)]
    ends = {(i.topic, i.partition): i.end for i in await snapshot(connection, names)}
    deadline = time.monotonic() + CAUGHT_UP_SECONDS
    while True:
        monitor.check()
        latest = await read_latest_as(
            connection,
            topic_name(PREFIX, RATES),
            lambda record: decode_held(record.key, record.value),
        )
        state = latest.get(STATE_KEY)
        if isinstance(state, MonitorState):
            covered = {(item.topic, item.partition): item.offset for item in state.positions}
            if all(covered.get(place, 0) >= end for place, end in ends.items()):
                break
        if time.monotonic() > deadline:
            raise ScoringError("the monitor did not catch up with the verdicts")
        await asyncio.sleep(LOOK_SECONDS)
    rates = [item for item in latest.values() if isinstance(item, Rates)]
    alarms = await read_latest_as(
        connection, topic_name(PREFIX, ALARMS), lambda record: Alarm.decode(record.value or b"")
    )
    return Monitored(
        tuple(sorted(rates, key=lambda item: (item.slice.lane, item.since))),
        tuple(alarms.values()),
    )


def monitor_sections(found: Monitored) -> list[Section]:
    """A table of versions, and one of alarms."""
    rows = [
        [
            item.slice.lane,
            item.slice.policy.version,
            f"{item.figures.total:,}",
            _share(item.figures.cfr),
            _share(item.figures.correction.contested_harmful),
            _share(item.figures.harmful),
            _share(item.figures.reward_blind),
            "-" if item.figures.lift is None else f"{item.figures.lift.value:.1f}",
        ]
        for item in found.rates
        if not item.slice.attribute
    ]
    header = ["lane", "policy version", "verdicts", "coupled", "contested as harmful", "harmful",
              "RM likes of harmful", "lift"]  # fmt: skip
    note = (
        "As `ares rates` shows them. Intervals of confidence sequences: they hold however often "
        "one looks. Not corrected: nobody labelled. Probes look for failures, so their rate is not "
        "production's."
    )
    sections = [table_section("What the monitor knows, version by version", header, rows, note)]
    alarms = [
        [
            item.summary,
            item.attribution,
            item.attribution_reason,
            ", ".join(f"{e.partition}@{e.offset}" for e in item.evidence[:6])
            + (f" and {len(item.evidence) - 6} more" if len(item.evidence) > 6 else ""),
        ]
        for item in found.alarms
    ]
    if alarms:
        sections.append(
            table_section(
                "Alarms",
                ["what", "whose doing", "because", "verdicts (partition@offset)"],
                alarms,
                f"More than {BEARABLE:.0%} coupled failures is not bearable here; anchors, whose "
                "truth is known, go through the same judge.",
            )
        )
    return sections


def _share(item: Interval) -> str:
    if item.count == 0:
        return "-"
    return f"{item.value:.1%} ({item.low:.1%} to {item.high:.1%})"
