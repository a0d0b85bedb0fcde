"""The HTTP side of a service, over a real socket."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from ares_stream.errors import SettingsError
from ares_stream.services.health import health_app, serve_health


async def test_readiness_says_what_is_missing_until_nothing_is() -> None:
    missing: list[str | None] = ["the first batch was not scored yet"]
    app = health_app(CollectorRegistry(), lambda: missing[0])
    async with serve_health(app, "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        base = f"http://127.0.0.1:{port}"
        assert (await client.get(f"{base}/livez")).status_code == 200
        before = await client.get(f"{base}/readyz")
        missing[0] = None
        after = await client.get(f"{base}/readyz")
    assert (before.status_code, after.status_code) == (503, 200)
    assert "the first batch" in before.text


async def test_metrics_come_as_text_and_as_openmetrics() -> None:
    registry = CollectorRegistry()
    Counter("ares_things", "Things.", registry=registry).inc()
    app = health_app(registry, lambda: None)
    async with serve_health(app, "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/metrics"
        plain = await client.get(url, headers={"accept": "text/plain"})
        openmetrics = await client.get(url, headers={"accept": "application/openmetrics-text"})
    assert "ares_things_total 1.0" in plain.text
    assert openmetrics.text.endswith("# EOF\n")


async def test_a_port_in_use_is_a_clear_error() -> None:
    app = health_app(CollectorRegistry(), lambda: None)
    async with serve_health(app, "127.0.0.1", 0) as port:
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}"):
            async with serve_health(app, "127.0.0.1", port):
                pass


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ["127.0.0.1", "[::1]"]),
        ("::1", ["[::1]"]),
        (str(IPv4Address(0)), ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
async def test_a_host_is_an_address_of_either_family_or_all_of_them(
    host: str, reached: list[str]
) -> None:
    if not has_ipv6():
        reached = [address for address in reached if "[" not in address]
        if not reached:
            pytest.skip("this machine has no IPv6")
    app = health_app(CollectorRegistry(), lambda: None)
    client = httpx.AsyncClient(trust_env=False)
    async with serve_health(app, host, 0) as port, client:
        for address in reached:
            assert (await client.get(f"http://{address}:{port}/livez")).status_code == 200


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_all_addresses_are_those_of_ipv4_where_the_kernel_has_no_ipv6(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    create = socket.create_server

    def without_ipv6(address: Any, *, family: int = socket.AF_INET, **rest: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(code, "no IPv6")
        return create(address, family=family, **rest)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    app = health_app(CollectorRegistry(), lambda: None)
    client = httpx.AsyncClient(trust_env=False)
    async with serve_health(app, "::", 0) as port, client:
        assert (await client.get(f"http://127.0.0.1:{port}/livez")).status_code == 200


async def test_a_page_of_a_service_is_what_it_is_at_that_moment_as_json() -> None:
    open_alarms = ["a"]
    app = health_app(
        CollectorRegistry(), lambda: None, pages={"/alarms": lambda: {"alarms": open_alarms}}
    )
    async with serve_health(app, "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/alarms"
        assert (await client.get(url)).json() == {"alarms": ["a"]}
        open_alarms.clear()
        assert (await client.get(url)).json() == {"alarms": []}
