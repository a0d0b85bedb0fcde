"""Servers of one's own bytes: what a broken or hostile endpoint answers, and no framework would."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx


@dataclass
class RawServer:
    """`replies`: for each connection in turn what is sent once a request's head is there, the last
    for all that follow; of several parts each is flushed. `hold`: keep the connection open;
    `greets`: send without a request."""

    replies: list[Iterable[bytes]]
    hold: bool = False
    greets: bool = False
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self.tasks.append(task)
        try:
            head = b"" if self.greets else await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            for part in self.replies[min(len(self.heads), len(self.replies)) - 1]:
                writer.write(part)
                await writer.drain()
            if self.hold:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def answering(
    *replies: Iterable[bytes] | bytes,
    hold: bool = False,
    greets: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RawServer]:
    """Serve until the block ends."""
    parts = [[reply] if isinstance(reply, bytes) else reply for reply in replies]
    found = RawServer(parts, hold, greets)
    server = await asyncio.start_server(found._serve, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        # Whoever still reads a request that never comes ends with its connection.
        for task in found.tasks:
            task.cancel()
        await asyncio.gather(*found.tasks, return_exceptions=True)


class Answers(httpx.MockTransport):
    """Answers of a function, which are read from a stream as those of a server are."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        found = await super().handle_async_request(request)
        return httpx.Response(
            found.status_code, headers=found.headers, stream=httpx.ByteStream(found.content)
        )
