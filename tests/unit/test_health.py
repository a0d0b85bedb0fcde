"""The HTTP side of a service, over a real socket."""

from __future__ import annotations

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
