"""An auditor of the golden month: archives its topics, alters them, replays them."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.replay.models import MadeWith, Resources
from ares_stream.audit.replay.report import Circumstances, report
from ares_stream.audit.replay.run import run_replay
from ares_stream.audit.replay.selecting import Names, select
from ares_stream.audit.replay.spec import ReplaySpec
from ares_stream.records.decoding import DecodingLimits
from ares_stream.scoring.panel import ScoringConfig
from tests.support.golden_month import (
    DEADLETTERS,
    INPUTS,
    OUTPUTS,
    POLICIES,
    PREFIX,
    Month,
    Topics,
)

NAMES = Names(
    inputs=tuple(item.topic for item in INPUTS),
    outputs=(*OUTPUTS.all, DEADLETTERS),
    verdicts=OUTPUTS.verdicts,
    repairs=f"{PREFIX}repairs",
)


class Auditor:
    """Archives topics and replays them."""

    def __init__(self, month: Month, folder: Path) -> None:
        self.month = month
        self.folder = folder
        self.topics = Topics({place: list(log) for place, log in month.topics.held.items()})
        self._runs = 0

    def spec(self, **changed: Any) -> ReplaySpec:
        bundles = self.month.bundles
        paths = (bundles.judge, *bundles.rewards, bundles.strict)
        made = ReplaySpec(
            mode="proof",
            source=str(self.folder / "archive"),
            inputs=INPUTS,
            outputs=OUTPUTS,
            deadletters=DEADLETTERS,
            limits=DecodingLimits(),
            resources=Resources(
                policies=POLICIES,
                bundles=tuple(str(item.path) for item in paths),
                config=ScoringConfig(threads=1),
            ),
            configured=MadeWith(
                (("judge", bundles.judge.digest),), ("reward", bundles.rewards[0].digest),
                POLICIES[0].digest,
            ),
            block=64,
        )  # fmt: skip
        return replace(made, **changed)

    def replay(
        self,
        spec: ReplaySpec | None = None,
        *,
        workers: int = 1,
        work: str | None = None,
        part: tuple[int, int] = (0, 1),
        **chosen: Any,
    ) -> dict[str, Any]:
        spec = spec or self.spec()
        archive = self.folder / "archive"
        shutil.rmtree(archive, ignore_errors=True)
        self.topics.archive(archive)
        self._runs += 1
        folder = self.folder / (work or f"work-{self._runs}")
        selection = asyncio.run(select(ArchiveReader(str(archive)), NAMES, **chosen))
        done = run_replay(spec, selection, folder, workers=workers, part=part)
        now = datetime(2026, 11, 1, tzinfo=UTC)
        return report(spec, done, Circumstances(now, now, workers, part, {"python": "3"}))
