"""How long a service goes on without progress. Pure: the clock is an argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ares_stream.errors import (
    AccessError,
    AresError,
    BrokerError,
    LimitError,
    LoginError,
    TopicError,
)

PATIENCE_SECONDS: Final = 600.0
"""A broker that is upgraded or moved is back within this; past it a person should know."""


class Patience:
    """Counts from the last progress: a commit, a publication, or nothing left to do.

    A session that opens is no progress, and neither is one that lasts: where the transaction
    coordinator cannot be reached a consumer lasts for ever and commits nothing.
    """

    def __init__(
        self, seconds: float = PATIENCE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: float | None = None
        self._reason: str | None = None
        self._worked = False

    @property
    def reason(self) -> str | None:
        """Why there is no progress now, with how long that has been; None while there is."""
        if self._since is None:
            return None
        waited = self._clock() - self._since
        return f"{self._reason} (no progress for {waited:.0f} of {self._seconds:.0f} s)"

    def progressed(self) -> None:
        """Something was achieved, or nothing is to do: the count begins anew."""
        self._since = self._reason = None
        self._worked = True

    def failed(self, error: AresError | OSError) -> None:
        """There was no progress for this error. Raises it where waiting does not help: a topic
        or a right is missing, a limit of the broker's forbids a setting, or the login was refused
        and none was ever taken. (Where one was, a password is being changed: the new one is read
        with the next session.)"""
        if isinstance(error, (TopicError, AccessError, LimitError)):
            raise error
        if isinstance(error, LoginError) and not self._worked:
            raise error
        self.waits(
            str(error) if isinstance(error, AresError) else f"{type(error).__name__}: {error}"
        )

    def waits(self, reason: str) -> None:
        """There is no progress now. Raises BrokerError once that has lasted too long."""
        now = self._clock()
        if self._since is None:
            self._since = now
        self._reason = reason
        if now - self._since > self._seconds:
            raise BrokerError(f"{reason}; no progress for {self._seconds:.0f} s")
