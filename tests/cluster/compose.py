"""What a started demo of docker-compose.yml shows in its Prometheus:

    docker compose --profile demo up --build --detach
    python -m tests.cluster.compose [--prometheus http://127.0.0.1:9090]

Waits until every target that a service answers for is up, the rules are evaluated, and coupled
failures are counted; then asks every query of every dashboard, as Grafana fills it in, and opens
what the alerts' `evidence` leads to. Prints what it found, with the alerts that are pending or
firing; exits 1 where a rule or a query fails, a link does not open, or something did not come in
time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from services.dashboards.panels import as_asked

DASHBOARDS = Path(__file__).parents[2] / "helm/ares-stream/dashboards"
FAILURES = 'sum(ares_verdicts_total{failure_class="coupled_failure"})'
PENDING_SECONDS = 240.0
SECONDS = 900.0
RANGE, STEP = 120, 15


class Asked:
    """A Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def __call__(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer; RuntimeError with Prometheus' words when it refuses."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        body = answer.json()
        if body["status"] != "success":
            raise RuntimeError(body["error"])
        return body["data"]


def until(holds: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait for it, also for a Prometheus that starts; ends the script where it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                break
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(1)
    print(what, flush=True)


def rules(ask: Asked) -> list[dict[str, Any]]:
    """Every rule that is loaded."""
    return [rule for group in ask("rules")["groups"] for rule in group["rules"]]


def panels(ask: Asked) -> int:
    """Ask what the dashboards ask, say it page by page; the number of refused queries."""
    refused = 0
    for file in sorted(DASHBOARDS.glob("*.json")):
        asked, empty = 0, []
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", ()):
                asked, now = asked + 1, time.time()
                query = as_asked(target["expr"])
                over = {"start": now - RANGE, "end": now, "step": STEP}
                try:
                    if target.get("range"):
                        data = ask("query_range", query=query, **over)
                    else:
                        data = ask("query", query=query)
                except RuntimeError as error:
                    refused += 1
                    print(f"{file.stem}: {panel['title']}: {error}")
                else:
                    if not data["result"]:
                        empty.append(panel["title"])
        shown = ", ".join(sorted(set(empty))) or "none"
        print(f"dashboard {file.stem}: {asked} queries, {len(empty)} without data: {shown}")
    return refused


def opened(ask: Asked) -> bool:
    """Whether the evidence of every alert can be read from here, and there is some."""
    links = {
        link for alert in ask("alerts")["alerts"] if (link := alert["annotations"].get("evidence"))
    }
    read = True
    for link in sorted(links):
        try:
            answer = httpx.get(link, timeout=10, trust_env=False)
            found = f"{answer.status_code}, {len(answer.json()['alarms'])} alarms"
            read = read and answer.is_success
        except (httpx.TransportError, ValueError, KeyError) as error:
            found, read = type(error).__name__, False
        print(f"evidence {link}: {found}")
    return read and bool(links)


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--prometheus", default="http://127.0.0.1:9090")
    ask = Asked(arguments.parse_args().prometheus)
    targets: Callable[[], list[dict[str, Any]]] = lambda: ask("targets")["activeTargets"]  # noqa: E731
    until(
        lambda: (found := targets()) and all(item["health"] == "up" for item in found),
        "every target is up",
    )
    for item in targets():
        print(f"  {item['labels']['job']}: {item['health']}, {item['scrapeUrl']}")
    until(
        lambda: (found := rules(ask)) and all(rule["health"] == "ok" for rule in found),
        "every rule is evaluated",
    )
    print(f"  {len(rules(ask))} rules")
    until(
        lambda: (found := ask("query", query=FAILURES)["result"]) and float(found[0]["value"][1]),
        "coupled failures are counted",
    )
    until(
        lambda: any("evidence" in alert["annotations"] for alert in ask("alerts")["alerts"]),
        "an alert with evidence is pending or firing",
        PENDING_SECONDS,
    )
    refused, is_read = panels(ask), opened(ask)
    print(f"coupled failures: {ask('query', query=FAILURES)['result'][0]['value'][1]}")
    for alert in ask("alerts")["alerts"]:
        print(f"alert {alert['labels']['alertname']}: {alert['state']}")
    failed = [rule["name"] for rule in rules(ask) if rule["health"] != "ok"]
    print(f"{refused} refused queries, {len(failed)} failed rules {failed or ''}")
    return 0 if is_read and not refused and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
