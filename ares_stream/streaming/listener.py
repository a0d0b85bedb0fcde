"""Which protocol a broker's port speaks, asked where a client gets no answer there.

A broker that is spoken to in the wrong protocol closes the connection and says nothing, as one does
that goes away. The questions asked here hold no secret, and no certificate is looked at: what is
learnt is told to a person and trusted with nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from typing import Final, Literal, TypeAlias

Protocol: TypeAlias = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]

ANSWER_SECONDS: Final = 3.0
"""For one way of asking; a broker answers at once."""
MAX_ANSWER: Final = 1 << 20
_API_VERSIONS: Final = 18
_SASL_HANDSHAKE: Final = 17
_ILLEGAL_SASL_STATE: Final = 34
"""Kafka's code: no login is taken here."""
_HEADER: Final = struct.Struct(">hhih")
"""Of a request, version 1: API, its version, correlation id, length of the client's name (none)."""


async def spoken_at(host: str, port: int) -> Protocol | None:
    """The protocol of a port that Kafka listens on; None where that cannot be told."""
    plain = await _asked(host, port, None)
    return plain or await _asked(host, port, _unverified())


async def _asked(host: str, port: int, context: ssl.SSLContext | None) -> Protocol | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await _ask(host, port, context)
    except ssl.SSLError as error:
        # A port that wants a certificate of its clients says so by an alert, in TLS.
        return "SSL" if "ALERT" in (error.reason or "") else None
    except (OSError, TimeoutError, asyncio.IncompleteReadError, struct.error):
        return None


async def _ask(host: str, port: int, context: ssl.SSLContext | None) -> Protocol | None:
    name = host if context is not None else None
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    try:
        if await _answer(reader, writer, _API_VERSIONS, 0, b"") is None:
            return None
        # Which mechanisms there are is asked by naming one.
        found = await _answer(reader, writer, _SASL_HANDSHAKE, 1, struct.pack(">h", 5) + b"PLAIN")
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await writer.wait_closed()
    if found is None:
        return None
    takes_login = struct.unpack_from(">h", found)[0] != _ILLEGAL_SASL_STATE
    if context is None:
        return "SASL_PLAINTEXT" if takes_login else "PLAINTEXT"
    return "SASL_SSL" if takes_login else "SSL"


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, api: int, version: int, body: bytes
) -> bytes | None:
    """What stands behind the correlation id; None where the answer is not Kafka's."""
    request = _HEADER.pack(api, version, api, -1) + body
    writer.write(struct.pack(">i", len(request)) + request)
    await writer.drain()
    size, correlation = struct.unpack(">ii", await reader.readexactly(8))
    if correlation != api or not 4 < size <= MAX_ANSWER:
        return None
    return await reader.readexactly(size - 4)


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
