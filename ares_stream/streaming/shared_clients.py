"""Connections that the transactions of a session share.

A client for each partition connects two or three times to each broker, with TLS and a login each
time. A broker answers the requests of one connection one after another, so that one client alone
would have transactions wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import retrieve

CLOSE_SECONDS: Final = 1.0
"""TLS says goodbye; a broker that is gone does not."""


class SharedClients:
    """Up to `count` clients, each started when it is first taken."""

    def __init__(self, connection: KafkaConnection, count: int) -> None:
        self._connection = connection
        self._starting: list[asyncio.Task[AIOKafkaClient] | None] = [None] * count
        self._users: Counter[AIOKafkaClient] = Counter()
        self._retired: set[AIOKafkaClient] = set()

    async def take(self, place: int) -> AIOKafkaClient:
        """The client of a place, the same one for every `count`th. To be given back.

        Raises what connecting raises: LoginError, KafkaError, OSError.
        """
        number = place % len(self._starting)
        starting = self._starting[number]
        if starting is None:
            starting = asyncio.create_task(self._started(), name=f"client {number}")
            starting.add_done_callback(retrieve)
            self._starting[number] = starting
        try:
            # Whoever gives up leaves it to the others that wait for it.
            client = await asyncio.shield(starting)
        except Exception:
            if self._starting[number] is starting:
                self._starting[number] = None
            raise
        self._users[client] += 1
        return client

    async def give_back(self, client: AIOKafkaClient, *, failed: bool = False) -> None:
        """End the use of a client. Where something failed on it the next one is new, as the brokers
        may have moved."""
        self._users[client] -= 1
        if failed:
            for number, starting in enumerate(self._starting):
                if starting is not None and _made(starting) is client:
                    self._starting[number] = None
                    self._retired.add(client)
        if client in self._retired and not self._users[client]:
            self._retired.discard(client)
            del self._users[client]
            await _end([client])

    async def close(self) -> None:
        """End all, whoever uses them."""
        starting = [task for task in self._starting if task is not None]
        self._starting = [None] * len(self._starting)
        for task in starting:
            task.cancel()
        made = [client for client in map(_made, starting) if client is not None]
        clients = {*self._retired, *self._users, *made}
        self._retired.clear()
        self._users.clear()
        await _end(clients)
        await asyncio.gather(*starting, return_exceptions=True)

    async def _started(self) -> AIOKafkaClient:
        client = AIOKafkaClient(**self._connection.client_arguments())
        try:
            await client.bootstrap()
        except BaseException:
            await _end([client])
            raise
        return client


def _made(starting: asyncio.Task[AIOKafkaClient]) -> AIOKafkaClient | None:
    if not starting.done() or starting.cancelled() or starting.exception() is not None:
        return None
    return starting.result()


async def _end(clients: Any) -> None:
    """Close connections at once, then wait a moment for them: who is cancelled here leaves no open
    socket behind."""
    ending: list[asyncio.Future[Any]] = []
    for client in clients:
        if client._sync_task is not None:
            client._sync_task.add_done_callback(retrieve)
            client._sync_task.cancel()
            ending.append(client._sync_task)
        ending += [connection.close() for connection in list(client._conns.values())]
    if ending:
        with contextlib.suppress(KafkaError, OSError):
            await asyncio.wait(ending, timeout=CLOSE_SECONDS)
