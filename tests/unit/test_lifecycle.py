"""One life cycle for every service."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from ares_stream.errors import (
    AccessError,
    AresError,
    BreakerOpen,
    BrokerError,
    DefectError,
    LoginError,
    ResourceError,
    SettingsError,
    TopicError,
    root_cause,
)
from ares_stream.processes.ports import free_port
from ares_stream.services.lifecycle import Life, Stopped, live
from ares_stream.services.settings import HttpSettings
from ares_stream.streaming.patience import Patience


class Made:
    """A service that does what it is given."""

    def __init__(self, life: Life, work: Callable[[], object] = lambda: None) -> None:
        self.registry = CollectorRegistry()
        self.life = life
        self.work = work
        self.lacking: str | None = None
        self.told: Sequence[str] = ()
        self.drained = False

    def missing(self) -> str | None:
        return self.lacking

    def notes(self) -> Sequence[str]:
        return self.told

    async def run(self) -> None:
        self.work()
        await self.life.stopped()
        self.drained = True


async def listening(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_readiness_says_so(number: signal.Signals) -> None:
    life, port = Life("made"), free_port()
    service = Made(life)
    running = asyncio.create_task(live(service, life, HttpSettings(port=port)))
    await listening(port)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        service.told = ("in-3: offsets 5 to 8 are lost",)
        ready = await client.get("/readyz")
        service.lacking = "a broker"
        lacking = await client.get("/readyz")
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # An impatient operator changes nothing.
    await running
    assert (ready.status_code, ready.text) == (
        200,
        "ready\nnote: in-3: offsets 5 to 8 are lost\n",
    )
    assert lacking.status_code == 503
    assert lacking.text.startswith("not ready: a broker\n")
    assert service.drained
    assert life.is_stopping


async def test_cancelling_stops_the_service_as_a_signal_does() -> None:
    life, port = Life("made"), free_port()
    service = Made(life)
    running = asyncio.create_task(live(service, life, HttpSettings(port=port)))
    await listening(port)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert service.drained


class Waiting(Made):
    """A service that waits for a Kafka that never answers, in what may be broken off or not."""

    def __init__(self, life: Life, *, may_break_off: bool) -> None:
        super().__init__(life)
        self.may_break_off = may_break_off
        self.waits = asyncio.Event()
        self.ended_by: BaseException | None = None

    async def run(self) -> None:
        try:
            if self.may_break_off:
                async with self.life.breaking_off():
                    await self._wait()
            else:
                await self._wait()
        except BaseException as error:
            self.ended_by = error
            raise

    async def _wait(self) -> None:
        self.waits.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("may_break_off", "ended_by"), [(True, Stopped), (False, asyncio.CancelledError)]
)
async def test_who_waits_for_kafka_for_ever_ends_without_an_error_when_it_is_stopped(
    may_break_off: bool, ended_by: type[BaseException]
) -> None:
    life = Life("made", settle_seconds=1000.0 if may_break_off else 0.0)
    service = Waiting(life, may_break_off=may_break_off)
    running = asyncio.create_task(live(service, life, HttpSettings(port=0)))
    await service.waits.wait()
    life.stop()
    await running
    assert type(service.ended_by) is ended_by


async def test_what_may_be_broken_off_keeps_its_own_errors_and_begins_no_more_after_a_stop() -> (
    None
):
    life = Life("made")
    with pytest.raises(TimeoutError):
        async with life.breaking_off(), asyncio.timeout(0):
            await asyncio.Event().wait()
    async with life.breaking_off():
        pass
    life.stop()
    await asyncio.sleep(0)
    with pytest.raises(Stopped):
        async with life.breaking_off():
            raise AssertionError


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("raised", "told", "code", "text"),
    [
        (BrokerError("gone"), BrokerError, 3, "gone"),
        (ExceptionGroup("", [BrokerError("gone"), BreakerOpen("look")]), BreakerOpen, 3, "look"),
        (OSError(28, "No space left on device"), ResourceError, 3, "No space left on device"),
        (MemoryError(), ResourceError, 3, "MemoryError"),
        (KeyError("a secret of a record"), DefectError, 1, "KeyError at test_lifecycle.py:"),
        (
            ExceptionGroup("", [ExceptionGroup("", [ZeroDivisionError("x")])]),
            DefectError,
            1,
            "ZeroDivisionError",
        ),
    ],
)
async def test_every_end_is_one_error_with_an_exit_code_and_quotes_nothing(
    raised: BaseException, told: type[AresError], code: int, text: str
) -> None:
    life = Life("made")
    with pytest.raises(told, match=text) as caught:
        await live(Made(life, raising(raised)), life, HttpSettings(port=0))
    assert caught.value.exit_code == code
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_port_in_use_is_named_before_the_service_begins() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        life = Life("made")
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}"):
            await live(Made(life, raising(AssertionError())), life, HttpSettings(port=port))


async def test_what_is_told_of_the_stop_is_told_once_and_never_too_late() -> None:
    life = Life("made")
    told: list[str] = []
    life.on_stop(lambda: told.append("before"))
    life.stop()
    life.stop()
    life.on_stop(lambda: told.append("after"))
    assert told == ["before", "after"]
    await life.pause(1000)

    async def endless() -> int:
        await asyncio.Event().wait()
        return 1

    assert await life.unless_stopped(endless()) is None


def test_the_cause_of_a_group_is_what_a_person_must_mend() -> None:
    lasting = SettingsError("wrong")
    group = BaseExceptionGroup(
        "",
        [
            BrokerError("passing"),
            asyncio.CancelledError(),
            BaseExceptionGroup("", [TimeoutError(), lasting]),
        ],
    )
    assert root_cause(group, (TimeoutError,)) is lasting
    only = BrokerError("passing")
    assert root_cause(BaseExceptionGroup("", [only])) is only


def test_patience_counts_from_the_last_progress_however_often_a_session_opens() -> None:
    now = [0.0]
    patience = Patience(60.0, lambda: now[0])
    for passed in range(0, 61, 10):
        now[0] = passed
        patience.waits("the coordinator does not answer")
    assert patience.reason == "the coordinator does not answer (no progress for 60 of 60 s)"
    now[0] = 61.0
    with pytest.raises(BrokerError, match="coordinator does not answer; no progress for 60 s"):
        patience.waits("the coordinator does not answer")


def test_an_idle_hour_takes_nothing_from_the_patience() -> None:
    now = [0.0]
    patience = Patience(60.0, lambda: now[0])
    patience.waits("a restart")
    patience.progressed()
    assert patience.reason is None
    now[0] = 10_000.0
    patience.waits("another")
    assert patience.reason == "another (no progress for 0 of 60 s)"


@pytest.mark.parametrize("error", [TopicError("missing"), AccessError("forbidden")])
def test_what_only_a_person_mends_is_never_waited_for(error: AresError) -> None:
    patience = Patience(60.0, lambda: 0.0)
    patience.progressed()
    with pytest.raises(type(error)):
        patience.failed(error)


def test_a_refused_login_is_waited_for_only_where_one_was_taken_before() -> None:
    patience = Patience(60.0, lambda: 0.0)
    refused = LoginError("kafka.password_file: refused")
    with pytest.raises(LoginError):
        patience.failed(refused)
    patience.failed(BrokerError("away"))
    with pytest.raises(LoginError):
        patience.failed(refused)
    patience.progressed()
    patience.failed(refused)
    assert patience.reason == "kafka.password_file: refused (no progress for 0 of 60 s)"


def test_sigterm_before_the_service_can_drain_ends_it_with_0(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    os.mkfifo(settings)  # Nobody writes to it: the process stays where it reads its settings.
    process = subprocess.Popen(
        [sys.executable, "-m", "ares_stream", "scorer", "--settings", str(settings)]
    )
    try:
        deadline = time.monotonic() + 20
        while not _handles_sigterm(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()


def _handles_sigterm(pid: int) -> bool:
    with Path(f"/proc/{pid}/status").open() as status:
        caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
