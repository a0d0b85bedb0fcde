"""Services inside a test's own event loop, until they are cancelled or end of an error."""

from __future__ import annotations

from ares_stream.services.lifecycle import Life, live
from ares_stream.services.repairer import Repairer
from ares_stream.services.scorer import Scorer, settle_seconds
from ares_stream.services.settings import Settings


async def run_repairer(settings: Settings) -> None:
    """Repair. Raises the AresError that ended it."""
    life = Life("repairer")
    await live(Repairer(settings, life), life, settings.http)


async def run_scorer(settings: Settings) -> None:
    """Score, then drain. Raises the AresError that ended it."""
    life = Life("scorer", settle_seconds=settle_seconds(settings))
    await live(Scorer(settings, life), life, settings.http)
