"""Clients that transactions share: made once, made anew where something failed, all closed."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
from aiokafka.errors import KafkaConnectionError

from ares_stream.streaming import shared_clients
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.shared_clients import SharedClients


class Client:
    """Counts itself; `failures` of the first starts."""

    made: ClassVar[list[Client]] = []
    failures = 0
    entered: asyncio.Event
    gate: asyncio.Event | None = None

    def __init__(self, **_: Any) -> None:
        Client.made.append(self)
        self.closed = False
        self._sync_task: asyncio.Task[None] | None = None
        self._conns: dict[int, Client] = {0: self}

    async def bootstrap(self) -> None:
        Client.entered.set()
        if Client.gate is not None:
            await Client.gate.wait()
        if len(Client.made) <= Client.failures:
            raise KafkaConnectionError("away")
        self._sync_task = asyncio.create_task(asyncio.sleep(3600))

    def close(self) -> asyncio.Future[None]:
        self.closed = True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "made", [])
    Client.failures, Client.entered, Client.gate = 0, asyncio.Event(), None
    monkeypatch.setattr(shared_clients, "AIOKafkaClient", Client)


def closed() -> list[bool]:
    return [client.closed for client in Client.made]


def several(count: int = 2) -> SharedClients:
    return SharedClients(KafkaConnection(), count)


async def test_places_share_as_many_clients_as_there_may_be() -> None:
    clients = several(3)
    taken = await asyncio.gather(*(clients.take(place) for place in range(10)))
    assert len(Client.made) == len(set(taken)) == 3
    assert taken[0] is taken[3] is taken[9]
    await clients.close()
    assert all(closed())


async def test_one_that_everybody_has_given_back_is_there_for_the_next() -> None:
    clients = several()
    first = await clients.take(0)
    await clients.give_back(first)
    assert await clients.take(2) is first
    assert closed() == [False]
    await clients.close()


async def test_one_on_which_something_failed_goes_once_its_last_user_has() -> None:
    clients = several()
    first, same = await clients.take(0), await clients.take(2)
    assert first is same
    await clients.give_back(first, failed=True)
    assert closed() == [False]
    second = await clients.take(0)
    assert second is not first
    await clients.give_back(same, failed=True)
    assert closed() == [True, False]
    assert await clients.take(2) is second
    await clients.close()
    assert closed() == [True, True]


async def test_a_start_that_fails_is_told_to_all_that_wait_and_tried_again() -> None:
    Client.failures = 1
    clients = several(1)
    taken = await asyncio.gather(*(clients.take(0) for _ in range(3)), return_exceptions=True)
    assert [type(item) for item in taken] == [KafkaConnectionError] * 3
    assert len(Client.made) == 1
    assert closed() == [True]
    await clients.take(0)
    assert len(Client.made) == 2
    await clients.close()


async def test_who_gives_up_waiting_leaves_the_start_to_the_others() -> None:
    Client.gate = asyncio.Event()
    clients = several(1)
    impatient = asyncio.create_task(clients.take(0))
    patient = asyncio.create_task(clients.take(0))
    await Client.entered.wait()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    Client.gate.set()
    assert await patient is Client.made[0]
    await clients.close()


async def test_what_still_starts_is_closed_as_well() -> None:
    Client.gate = asyncio.Event()
    clients = several(1)
    waiting = asyncio.create_task(clients.take(0))
    await Client.entered.wait()
    await clients.close()
    assert closed() == [True]
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], BaseException)


async def test_nothing_taken_is_nothing_made() -> None:
    clients = several()
    await clients.close()
    assert Client.made == []
