"""Ports for processes that this machine starts."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from typing import Final

PORTS: Final = range(20_000, 32_768)
"""Systems take the ports of outgoing connections from above it. A port up there that is closed and
opened again, as by a broker that starts anew, may belong to a connection by then."""
_TRIES: Final = 1_000


def free_port() -> int:
    """A port of loopback that nothing listens on now. Raises OSError where none is found."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many ports, all different. They are drawn, so that two processes that ask at one moment
    are not told the same. Raises OSError where not so many are found."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(PORTS, _TRIES):
            try:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"no {count} free ports of 127.0.0.1 between {PORTS.start} and {PORTS.stop - 1}")
