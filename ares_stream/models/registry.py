"""The registry of releases for who may not block: each call runs in a thread, since hashing and
copying gigabytes would stand in the way of heartbeats, probes and scrapes.

A call that is cancelled is finished by its thread: a step is whole or not taken, and taking it
again changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ares_stream.models.releases import Author, Log
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.records.forecast import Forecast
from ares_stream.records.release import Release


class Registry:
    """See ReleaseStore for what each call does and raises."""

    def __init__(self, store: ReleaseStore) -> None:
        self._store = store

    @property
    def max_rank(self) -> int:
        """The largest rank of an adapter that is accepted."""
        return self._store.max_rank

    async def log(self) -> Log:
        """Every step until now."""
        return await asyncio.to_thread(self._store.log)

    async def fetch(self, release: Release, cache: Path) -> Path:
        """A verified local directory of a release."""
        return await asyncio.to_thread(self._store.fetch, release, cache)

    async def gate_report(self, digest: str) -> bytes | None:
        """What a gate said, JSON; None where it is not kept."""
        return await asyncio.to_thread(self._store.gate_report, digest)

    async def keep_gate_report(self, report: bytes) -> None:
        """Keep what the gate said of a repair that makes no release."""
        await asyncio.to_thread(self._store.keep_gate_report, report)

    async def propose(
        self,
        artefacts: Sequence[Artefact],
        author: Author,
        *,
        plan_id: str | None = None,
        gate_report: bytes | None = None,
        against: Mapping[str, str | None] | None = None,
    ) -> tuple[Release, ...]:
        """Copy files and make them candidates, together."""
        take = partial(self._store.propose, plan_id=plan_id, gate_report=gate_report)
        return await asyncio.to_thread(take, artefacts, author, against=against)

    async def forecast(
        self, selector: str, forecast: Forecast, author: Author
    ) -> tuple[Release, ...]:
        """Keep what candidates are expected to do in production."""
        return await asyncio.to_thread(self._store.forecast, selector, forecast, author)

    async def approve(self, selector: str, author: Author) -> tuple[Release, ...]:
        """Make candidates active, and what was active superseded."""
        return await asyncio.to_thread(self._store.approve, selector, author)

    async def reject(self, selector: str, author: Author) -> tuple[Release, ...]:
        """Make candidates rejected, for good."""
        return await asyncio.to_thread(self._store.reject, selector, author)

    async def rollback(self, model: str, author: Author) -> tuple[Release, ...]:
        """Take back a model's active release; each predecessor becomes active again."""
        return await asyncio.to_thread(self._store.rollback, model, author)
