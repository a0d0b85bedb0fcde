"""One life cycle for every service: signals, the HTTP side, readiness, waiting, the end.

    process starts ─► SIGTERM ends it with 0 ─► serve ─► listen ─► run ─► drain ─► end with a code
                      (nothing to drain yet)     /livez   /readyz      SIGTERM, SIGINT

A service is an object with four members (Service). It says only what is its own; the rest is
here and the same for all:

- `serve(service_of, settings)` is the whole process: logs, signals, event loop, exit code. A
  command of the CLI calls it and nothing else.
- `live(service, life, http)` is the service inside a running event loop, for tests.
- `Life` is given to the service when it is made: it knows when to stop and how to wait.

What a service promises: `run` returns soon after `life.stop()`, with what is in flight settled
or left to be read again, and may be cut off as by a kill where that takes longer than
`settle_seconds`: a Kafka that does not answer settles nothing. `missing` is cheap, raises nothing
and tells the truth; an AresError that leaves `run` is the end of the process, with its exit code
and one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from prometheus_client import CollectorRegistry, ProcessCollector

from ares_stream.errors import AresError, DefectError, ResourceError, root_cause
from ares_stream.processes.signals import end_at_once
from ares_stream.services import logs
from ares_stream.services.health import health_app, serve_health
from ares_stream.services.renewals import RenewalMetrics, refusals, watch_renewals
from ares_stream.services.settings import HttpSettings, Settings

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SETTLE_SECONDS: Final = 20.0
"""After `stop`, for what a service settles with a Kafka that answers; below what an orchestrator
waits before it kills."""
CUT_SECONDS: Final = 5.0
"""For a service that was cut off: clients that say no goodbye are closed within this."""

T = TypeVar("T")


class Stopped(Exception):
    """What may be broken off was, since the service stops."""


class Service(Protocol):
    """What the life cycle asks of a service."""

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        ...

    def missing(self) -> str | None:
        """What it cannot work without and does not have now; None while it works. A lost broker,
        a partition that does not open, no progress while there is work: all are missing."""
        ...

    def notes(self) -> Sequence[str]:
        """What an operator should know although it works, such as lost offsets."""
        ...

    async def run(self) -> None:
        """Work until the life is stopped. Raises the AresError that ended it."""
        ...


@runtime_checkable
class Pages(Protocol):
    """A service that shows more over HTTP than its life and metrics."""

    def pages(self) -> Mapping[str, Callable[[], object]]:
        """Path to what is answered there, as JSON. Whoever can scrape can read it: no text of a
        conversation. Cheap, and raises nothing."""
        ...


class Life:
    """When a service stops, and how it waits. One per process; its clock is an argument, so that
    tests move it. Whatever still runs `settle_seconds` after `stop` is cut off."""

    def __init__(
        self,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self.name = name
        self.clock = clock
        self.settle_seconds = settle_seconds
        self.log = logs.get(name)
        self._stopping = asyncio.Event()
        self._on_stop: list[Callable[[], None]] = []

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask the service to drain and end. Safe in a signal handler, and as often as one likes."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.log.info("draining")
        for told in self._on_stop:
            told()

    def on_stop(self, told: Callable[[], None]) -> None:
        """Have `told` called at `stop`; at once where that has come already."""
        self._on_stop.append(told)
        if self._stopping.is_set():
            told()

    async def stopped(self) -> None:
        """Return once `stop` was called."""
        await self._stopping.wait()

    async def pause(self, seconds: float) -> None:
        """Wait, no longer than until `stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    @contextlib.asynccontextmanager
    async def breaking_off(self) -> AsyncIterator[None]:
        """Break the block off when `stop` comes: for what holds nothing that must be settled, such
        as a start. Raises Stopped then, which `live` takes for the end of a service."""
        if self.is_stopping:
            raise Stopped
        try:
            async with asyncio.timeout(None) as limit:

                def break_off() -> None:
                    limit.reschedule(asyncio.get_running_loop().time())

                self._on_stop.append(break_off)
                try:
                    yield
                finally:
                    self._on_stop.remove(break_off)
        except TimeoutError:
            if limit.expired():
                raise Stopped from None
            raise

    async def unless_stopped(self, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """The coroutine's result, or None when `stop` comes first; then it is cancelled."""
        work = asyncio.create_task(coroutine)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)


async def live(service: Service, life: Life, http: HttpSettings) -> None:
    """Serve HTTP and run the service until SIGTERM, SIGINT or the error that ends it.

    Raises that error alone, not the group of tasks it arose in; what is no AresError is raised as
    ResourceError (the machine: a full disk, no memory) or DefectError. Cancelling it stops the
    service as a signal does: a Kafka client that is cancelled anywhere leaves connections behind.
    """
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, life.stop)

    def missing() -> str | None:
        return "draining" if life.is_stopping else service.missing()

    def notes() -> Sequence[str]:
        return (*service.notes(), *refusals())

    pages = service.pages() if isinstance(service, Pages) else None
    service.registry.register(RenewalMetrics())
    ProcessCollector(registry=service.registry)
    try:
        async with (
            serve_health(
                health_app(service.registry, missing, notes, pages), http.host, http.port
            ) as port,
            _looking(),
        ):
            life.log.info("listening", port=port)
            work = asyncio.create_task(service.run(), name=life.name)
            try:
                await _ended(work, life)
            except asyncio.CancelledError:
                if work.done():
                    raise
                life.stop()
                await _ended(work, life)
                raise
            finally:
                life.log.info("stopped")
    except Exception as error:
        explained = _explained(error)
        if explained is error:
            raise
        raise explained from error


async def _ended(work: asyncio.Task[None], life: Life) -> None:
    """Return once the service has ended, or was cut off after its stop. Raises what ended it."""
    stopped = asyncio.create_task(life.stopped(), name="stop")
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    if not work.done():
        await asyncio.wait({work}, timeout=life.settle_seconds)
    if not work.done():
        life.log.warning("cut off", seconds=life.settle_seconds)
        work.cancel()
        await asyncio.wait({work}, timeout=CUT_SECONDS)
        return
    with contextlib.suppress(Stopped):
        work.result()


@contextlib.asynccontextmanager
async def _looking() -> AsyncIterator[None]:
    """With an eye on the files that are renewed."""
    task = asyncio.create_task(watch_renewals(), name="renewals")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _explained(error: BaseException) -> BaseException:
    """The one error that a person is told."""
    if isinstance(error, BaseExceptionGroup):
        error = root_cause(error)
    if isinstance(error, AresError):
        return error
    if isinstance(error, (OSError, MemoryError)):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return ResourceError(f"the machine refused: {reason} (at {_place(error)})")
    # The message may quote what was read; the place never does.
    return DefectError(f"{type(error).__name__} at {_place(error)}; this is a defect, report it")


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def serve(
    service_of: Callable[[Life], Service],
    settings: Settings,
    name: str,
    *,
    settle_seconds: float = SETTLE_SECONDS,
) -> None:
    """A service's whole process, from its logs to its last line. Raises AresError."""
    end_at_once()
    logs.configure(level=settings.log_level)

    async def main() -> None:
        life = Life(name, settle_seconds=settle_seconds)
        await live(service_of(life), life, settings.http)

    try:
        asyncio.run(main())
    finally:
        # The loop gave the signals back to the system, which would end the process with -15.
        end_at_once()
