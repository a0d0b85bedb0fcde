"""The loop closed: probe, find failures, repair, probe again; and what each round found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from ares_stream.detection.intervals import wilson
from ares_stream.errors import RepairError
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.prober import Prober, ProberObserver, ProberPolicy
from ares_stream.probes.targets import Target
from ares_stream.records import topics
from ares_stream.records.base import Interval
from ares_stream.records.repair import RepairReport
from ares_stream.records.topics import topic_name
from ares_stream.repair.intake import read_reports
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.unreadable import PassedOver

LOOK_SECONDS: Final = 1.0
DECIDED: Final = ("promoted", "rejected", "failed")


@dataclass(frozen=True, slots=True)
class Round:
    """What one round's probes found about one version of the policy.

    `rate` is the share of probes that are confirmed coupled failures, with Wilson's interval; the
    search looks for failures, so it is comparable with other rounds of the same search and
    says nothing of production. `repair` is what followed, None after the last round.
    """

    number: int
    policy: str
    queries: int
    probes: int
    failures: int
    unique: int
    rate: Interval
    repair: RepairReport | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, without any text."""
        repair = self.repair
        return {
            "round": self.number,
            "policy": self.policy,
            "queries": self.queries,
            "probes": self.probes,
            "failures": self.failures,
            "unique_failures": self.unique,
            "failures_per_probe": self.rate.model_dump(),
            "repair": None
            if repair is None
            else {
                "plan_id": repair.plan_id,
                "state": repair.state,
                "reasons": list(repair.reasons),
                "before": {name: item.model_dump() for name, item in repair.before.items()},
                "after": {name: item.model_dump() for name, item in repair.after.items()},
            },
        }


async def run_rounds(
    connection: KafkaConnection,
    prefix: str,
    count: int,
    *,
    open_round: Callable[[int], Awaitable[tuple[CampaignPlan, Target, Target | None]]],
    repair: Callable[[int], Awaitable[RepairReport]],
    policy: ProberPolicy,
    on_round: Callable[[Round], None] = lambda found: None,
    observer: ProberObserver | None = None,
) -> list[Round]:
    """Run `count` campaigns, and `repair` between each two. A scorer must be running.

    `open_round` gives the campaign of a round, the policy as it is then, and the attacker of a
    campaign that has one; `observer` watches each. Raises what the prober and `repair` raise.
    """
    rounds: list[Round] = []
    for number in range(1, count + 1):
        plan, target, attacker = await open_round(number)
        async with AsyncExitStack() as opened:
            opened.push_async_callback(target.aclose)
            if attacker is not None:
                opened.push_async_callback(attacker.aclose)
            prober = Prober(
                connection,
                plan,
                target,
                attacker=attacker,
                prefix=prefix,
                policy=policy,
                observer=observer,
            )
            await prober.run()
        seen = prober.progress
        found = Round(
            number=number,
            policy=target.policy.version,
            queries=seen.queries,
            probes=seen.probes,
            failures=seen.failures,
            unique=seen.unique,
            rate=wilson(seen.failures, seen.probes),
        )
        on_round(found)
        rounds.append(found)
        if number < count:
            rounds[-1] = replace(found, repair=await repair(number))
    return rounds


async def next_report(
    connection: KafkaConnection, prefix: str, known: Collection[str], seconds: float
) -> RepairReport:
    """The first decided repair whose plan is not `known`. Raises RepairError after `seconds`."""
    topic = topic_name(prefix, topics.REPAIRS)
    deadline = time.monotonic() + seconds
    passed_over = PassedOver(lambda record: None)  # The repairer tells of them.
    while time.monotonic() < deadline:
        for report in (await read_reports(connection, topic, passed_over)).values():
            if report.plan_id not in known and report.state in DECIDED:
                return report
        await asyncio.sleep(LOOK_SECONDS)
    raise RepairError(
        f"no repair was decided within {seconds:.0f} s; is a repairer running, are there enough "
        "failures for it, does a release await approval?"
    )
