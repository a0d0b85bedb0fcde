"""Bringing what the releases topic announces into use, however often it takes.

A release that is refused (its files are not there yet, the store is away, a disk is full, its first
score fails) is tried again with growing pauses until it is in use or another one is announced in
its place; meanwhile the service goes on with what it has. So does a topic that cannot be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ares_stream.errors import AresError, DecodeError
from ares_stream.models.releases import Announced
from ares_stream.records.release import Release, ReleaseState
from ares_stream.streaming.records import InboundRecord

PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""Seconds before a refused release is tried again; the last one repeats. The first ones are for
files that are still on their way, the last for what a person has to mend: each try reads and
hashes every byte of the release."""


class FollowerObserver(Protocol):
    """What a follower tells; metrics and logs."""

    def on_refused(self, release: Release | None, offset: int, error: Exception) -> None:
        """A release could not be used, or (None) a record could not be read."""

    def on_unfollowed(self, error: Exception) -> None:
        """The topic cannot be read now; it is tried again."""

    def on_waiting(self, models: int) -> None:
        """So many models have an announced release that is not in use."""


@dataclass(slots=True)
class _Waiting:
    release: Release
    offset: int
    due: float
    tries: int = 0
    reason: str = ""


class ReleaseFollower:
    """`follow` reads the topic without an end, `in_use` gives digests by model, `swap` brings a
    release into use or raises AresError or OSError. Only judges and reward models are swapped."""

    def __init__(
        self,
        follow: Callable[[], AsyncIterator[InboundRecord]],
        in_use: Callable[[], Mapping[str, str]],
        swap: Callable[[Release], Awaitable[None]],
        observer: FollowerObserver,
        *,
        pauses: Sequence[float] = PAUSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._follow = follow
        self._in_use = in_use
        self._swap = swap
        self._observer = observer
        self._pauses = pauses
        self._clock = clock
        self._announced = Announced()
        self._waiting: dict[str, _Waiting] = {}
        self._unfollowed: str | None = None
        self._news = asyncio.Event()

    def notes(self) -> tuple[str, ...]:
        """What an operator should know: releases that are announced and not in use."""
        found = [
            f"release {item.release.digest[:12]} of {model} is not in use after {item.tries} "
            f"tries: {item.reason}"
            for model, item in sorted(self._waiting.items())
            if item.tries
        ]
        if self._unfollowed is not None:
            found.append(f"the releases topic cannot be read: {self._unfollowed}")
        return tuple(found)

    async def run(self) -> None:
        """Follow and swap until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="releases")
            tasks.create_task(self._apply(), name="swaps")

    async def _listen(self) -> None:
        failures = 0
        while True:
            try:
                async for record in self._follow():
                    self._unfollowed, failures = None, 0
                    self._take(record)
            # Whatever the client raises of a topic must not end the service that follows it.
            except Exception as error:
                self._unfollowed = f"{type(error).__name__}: {error}"
                self._observer.on_unfollowed(error)
            failures += 1
            await asyncio.sleep(self._pauses[:failures][-1])

    def _take(self, record: InboundRecord) -> None:
        in_use = self._in_use()
        try:
            release = self._announced.take(record.key, record.value)
            if (
                release is None
                or release.state is not ReleaseState.ACTIVE
                or release.kind == "policy"
                or release.model not in in_use
            ):
                return
            self._announced.check_key(record.key, release)
        except DecodeError as error:
            self._observer.on_refused(None, record.offset, error)
            return
        if in_use[release.model] == release.digest:
            self._waiting.pop(release.model, None)
        else:
            self._waiting[release.model] = _Waiting(release, record.offset, self._clock())
        self._news.set()

    async def _apply(self) -> None:
        """Swap in what is due, one at a time."""
        while True:
            self._news.clear()
            for model, item in list(self._waiting.items()):
                if item.due <= self._clock() and self._waiting.get(model) is item:
                    await self._try(model, item)
            self._observer.on_waiting(len(self._waiting))
            if not self._news.is_set():
                await self._rest()

    async def _try(self, model: str, item: _Waiting) -> None:
        try:
            # Each time anew: what contradicts it may be on its way to being deleted.
            self._announced.check(item.release)
            await self._swap(item.release)
        except (AresError, OSError) as error:
            item.tries += 1
            item.reason = str(error)
            item.due = self._clock() + self._pauses[: item.tries][-1]
            self._observer.on_refused(item.release, item.offset, error)
            return
        # Another release may have been announced while this one was loaded.
        if self._waiting.get(model) is item:
            del self._waiting[model]

    async def _rest(self) -> None:
        """Until something is announced, or a refused release is due."""
        dues = [item.due for item in self._waiting.values()]
        seconds = max(0.0, min(dues) - self._clock()) if dues else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
