"""Ports for processes that this machine starts: free, different, not those of its connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ares_stream.processes import ports

CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_are_different_and_can_be_listened_on() -> None:
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.skipif(not CONNECTIONS.exists(), reason="not Linux")
def test_no_connection_of_this_machine_is_given_one_of_them() -> None:
    first = int(CONNECTIONS.read_text().split()[0])
    if first < 32_768:
        pytest.skip("this machine gives connections other ports than Linux does by default")
    assert ports.PORTS.stop <= first


def test_a_port_that_is_taken_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        monkeypatch.setattr(ports, "_TRIES", 1)
        with pytest.raises(OSError, match=f"no 1 free ports of 127.0.0.1 between {port}"):
            ports.free_port()
