"""How often requests may start."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

_MINUTE = 60.0


class RateLimiter:
    """Starts at most `per_minute` requests a minute; 0 means no limit.

    Whoever can wait calls `wait`, and starts are evenly spaced. Whoever cannot calls `admit`,
    which says no to what is over the budget of the last minute.
    """

    def __init__(
        self,
        per_minute: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval = _MINUTE / per_minute if per_minute > 0 else 0.0
        self._started: deque[float] | None = (
            deque(maxlen=max(1, int(per_minute))) if per_minute > 0 else None
        )
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0

    async def wait(self) -> None:
        """Return when the next request may start."""
        now = self._clock()
        start = max(self._next, now)
        if self._interval:
            self._next = start + self._interval
        if start > now:
            await self._sleep(start - now)

    def admit(self) -> bool:
        """Whether a request may start now; it counts as started then."""
        now = self._clock()
        if now < self._next:
            return False
        if self._started is not None:
            if len(self._started) == self._started.maxlen and now - self._started[0] < _MINUTE:
                return False
            self._started.append(now)
        return True

    def hold(self, seconds: float) -> None:
        """Nobody starts for this long: the endpoint said so (Retry-After)."""
        self._next = max(self._next, self._clock() + seconds)


def retry_after(header: str, now: float) -> float | None:
    """Seconds that an endpoint asks to wait for, which says so as a number or as a date (RFC 9110,
    section 10.2.3); None where it says neither. `now`: seconds since the epoch."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)
