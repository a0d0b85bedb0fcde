"""Which transactions a broker coordinates, by state: the question that no client library asks.

Source: Kafka's protocol, ListTransactions version 0 (KIP-664), request header 2, response header 1.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

ENDING: Final = ("PrepareCommit", "PrepareAbort")
"""It is decided how they end, and the markers that say so are not in every partition yet."""
_KEY: Final = 66
_CLIENT: Final = b"ares"
_ANSWER: Final = struct.Struct(">i i x i h B")
"""Size, correlation id, tags, throttle time, error, and the states it does not know (plus one)."""


def has_transactions(port: int, states: Sequence[str], seconds: float = 2.0) -> bool:
    """Whether the broker on a port of loopback coordinates a transaction in one of the states.

    Raises OSError where it does not answer within `seconds`, or answers something else.
    """
    names = [name.encode() for name in states]
    filters = bytes([len(names) + 1]) + b"".join(bytes([len(name) + 1]) + name for name in names)
    no_producers, no_tags = b"\x01", b"\x00"
    request = struct.pack(">hhih", _KEY, 0, 0, len(_CLIENT)) + _CLIENT + no_tags
    request += filters + no_producers + no_tags
    with (
        socket.create_connection(("127.0.0.1", port), seconds) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = answers.read(_ANSWER.size + 1)
    if len(answer) <= _ANSWER.size:
        raise OSError(f"the broker on port {port} closed the connection")
    _, _, _, error, unknown = _ANSWER.unpack(answer[:-1])
    if error or unknown != 1:
        raise OSError(f"the broker on port {port} lists no transactions: error {error}")
    return answer[-1] > 1
