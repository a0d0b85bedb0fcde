"""Files that are renewed while a service works: looked at again and again, and told of in /readyz
and in metrics, whichever room of the code made something of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ares_stream.errors import SettingsError
from ares_stream.files import Renewed, renewed_values

LOOK_SECONDS: Final = 10.0
"""Connections look at their files when they are made; who was taken out of a file is out, and an
operator hears of a file that is of no use, within this time."""


async def watch_renewals() -> None:
    """Look at all files, until it is cancelled."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        await asyncio.to_thread(look)


def look() -> None:
    """Take what changed."""
    for item in renewed_values():
        try:
            item.value()
        except SettingsError:
            continue  # There was none yet: whoever asks for it is told.


def refusals() -> Sequence[str]:
    """A line for each value whose files cannot be used as they are."""
    lines = [item.refusal for item in renewed_values() if item.refusal is not None]
    return [f"{line}; what was read before stays in use" for line in dict.fromkeys(lines)]


class RenewalMetrics(Collector):
    """What became of files that are renewed, by the setting that names them."""

    def describe(self) -> Iterable[Metric]:
        """Of no names: nothing is looked up when it is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        renewals = CounterMetricFamily(
            "ares_file_renewals",
            "Changes of files with certificates, passwords and tokens; outcome: taken, refused.",
            labels=["setting", "outcome"],
        )
        refused = GaugeMetricFamily(
            "ares_file_refused",
            "1 while such a file cannot be used and what was read before stays in use.",
            labels=["setting"],
        )
        begins, ends = (
            GaugeMetricFamily(
                f"ares_certificate_{name}_timestamp_seconds",
                f"When the client certificate in use {text}.",
                labels=["setting"],
            )
            for name, text in (("not_before", "became valid"), ("not_after", "expires"))
        )
        by_setting: dict[str, list[Renewed[Any]]] = {}
        for item in renewed_values():
            by_setting.setdefault(item.setting, []).append(item)
        for setting, items in by_setting.items():
            renewals.add_metric([setting, "taken"], sum(item.taken for item in items))
            renewals.add_metric([setting, "refused"], sum(item.refused for item in items))
            refused.add_metric([setting], any(item.refusal is not None for item in items))
            valid = [item.validity for item in items if item.validity is not None]
            if valid:
                soonest = min(valid, key=lambda item: item.ends)
                begins.add_metric([setting], soonest.begins)
                ends.add_metric([setting], soonest.ends)
        return renewals, refused, begins, ends
