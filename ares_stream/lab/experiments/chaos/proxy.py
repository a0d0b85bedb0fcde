"""A TCP proxy in front of a broker that can go deaf: bytes are taken and never passed on."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Proxy:
    """`async with Proxy(host, port) as proxy`: listens on proxy.port and passes everything on.

    `deaf` swallows what clients say and what the broker answers, as a network does that drops
    packets. `mute(key)` swallows requests of one Kafka API only, and all that follows on that
    connection. `cut` closes every connection and refuses new ones until `heal`.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._muted: frozenset[int] = frozenset()
        self.deaf = False
        self._cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        self._drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def connections(self) -> int:
        """How many clients and brokers it holds together now."""
        return len(self._writers)

    def mute(self, *api_keys: int) -> None:
        """Swallow requests of these Kafka APIs."""
        self._muted = frozenset(api_keys)

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._cut = True
        self._drop()

    def heal(self) -> None:
        """Everything passes again, on new connections."""
        self._cut = self.deaf = False
        self._muted = frozenset()
        self._drop()

    def _drop(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._cut:
            writer.close()
            return
        self._writers.add(writer)
        mine = [writer]
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                broker_reader, broker_writer = await asyncio.open_connection(*self._target)
                self._writers.add(broker_writer)
                mine.append(broker_writer)
                await asyncio.gather(
                    self._requests(reader, broker_writer), self._answers(broker_reader, writer)
                )
        finally:
            # A client whose broker is away is told so: its connection ends too.
            for each in mine:
                each.close()
                self._writers.discard(each)
            for each in mine:
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        muted = False
        while True:
            size = await reader.readexactly(4)
            request = await reader.readexactly(int.from_bytes(size))
            muted = muted or int.from_bytes(request[:2]) in self._muted
            if not (self.deaf or muted):
                writer.write(size + request)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.deaf:
                writer.write(data)
                await writer.drain()
        writer.close()
