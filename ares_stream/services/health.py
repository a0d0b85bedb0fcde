"""The HTTP side of a service: /livez, /readyz and /metrics.

/livez   200 while the event loop turns.
/readyz  200 once `missing()` returns None, with a line per note; 503 with its reason else.
/metrics Prometheus text, or OpenMetrics (with exemplars) to a client that asks for it.

A service may serve further pages of JSON, see lifecycle.Pages.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address
from typing import Final

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ares_stream.errors import SettingsError, masked

STOP_SECONDS: Final = 5.0
"""A scrape in flight may finish; a client that hangs may not hold up the shutdown."""
EVERY_ADDRESS: Final = "::"
"""As a host: every address of the machine, of IPv4 and IPv6."""
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What a kernel without IPv6 says."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The service owns SIGTERM, to drain before it goes.
        yield


def health_app(
    registry: CollectorRegistry,
    missing: Callable[[], str | None],
    notes: Callable[[], Sequence[str]] = tuple,
    pages: Mapping[str, Callable[[], object]] | None = None,
) -> Starlette:
    """The application; `missing` says what the service cannot work without and lacks now, or
    None; `notes` what an operator should know although it works; `pages` what a path shows as
    JSON."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        lacking = missing()
        lines = [
            "ready" if lacking is None else f"not ready: {lacking}",
            *(f"note: {note}" for note in notes()),
        ]
        text = masked("\n".join(lines))
        return PlainTextResponse(text + "\n", 200 if lacking is None else 503)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    def page(show: Callable[[], object]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            return JSONResponse(show())

        return answer

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            *(Route(path, page(show)) for path, show in (pages or {}).items()),
        ]
    )


def _config(app: Starlette) -> uvicorn.Config:
    # Who a request comes from is its connection's other end, never what a header says.
    return uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", proxy_headers=False,
        server_header=False,
    )  # fmt: skip


def _listener(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    if host == EVERY_ADDRESS:
        try:
            return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
        host = str(IPv4Address(0))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


@asynccontextmanager
async def serve_health(
    app: Starlette, host: str, port: int, *, start_deadline: float = 10.0, field: str = "http"
) -> AsyncIterator[int]:
    """Serve `app` beside the service at an address of either family, or at `::`, which stands for
    all; yields the port in use (`port` 0 takes a free one).

    Raises SettingsError, naming `field`, when the port cannot be bound.
    """
    try:
        listener = _listener(host, port)
    except OSError as error:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise SettingsError(f"{field}.port: cannot listen on {place}: {error}") from None
    server = _Server(_config(app))
    task = asyncio.create_task(server.serve([listener]), name="health")
    try:
        async with asyncio.timeout(start_deadline):
            await server.up.wait()
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await task
        except TimeoutError:
            task.cancel()
        listener.close()
