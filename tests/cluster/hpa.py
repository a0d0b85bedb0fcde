"""A lane that an HPA scales above one replica and back, under traffic, on a real cluster:

    python -m tests.cluster.hpa VICTIM [--hostpath DIR] [--low 5] [--high 200]

Needs what tests.cluster.trial needs, and metrics-server (`kubectl top pods`). Installs the chart
with `hpa.enabled`, sends a little, then much until the lane has three replicas, upgrades the chart
meanwhile, sends a little again until one is left; then takes the HPA away and gives it back. Exits
1 where a record is lost or doubled, or the upgrade changed the number of replicas.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster.scaling import until
from tests.cluster.trial import (
    CHART,
    HERE,
    SCORER,
    SETTLE_SECONDS,
    WAIT,
    Log,
    Traffic,
    drained,
    forget,
    forwarded,
    helm,
    kubectl,
    lag,
    pods,
    prepare,
    table,
)

MOST = 3
HPA = {
    "enabled": True,
    "minReplicas": 1,
    "maxReplicas": MOST,
    "cpu": 80,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}},
}
LANE = "scorer.lanes.production"
OWN: dict[str, Any] = {
    f"{LANE}.resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
    "notary.enabled": False,
    "console.enabled": False,
    "replayer.nightly.enabled": False,
}


def options(**more: Any) -> list[str]:
    """Values of the trial, as words of helm."""
    given = [f"{name}={json.dumps(value)}" for name, value in (OWN | more).items()]
    return [
        "-f",
        str(HERE / "values.yaml"),
        *(word for item in given for word in ("--set-json", item)),
    ]


def seen() -> tuple[int | None, int, int]:
    """Percent of the CPU request that the HPA sees, None before it sees any; replicas it has, and
    wants."""
    (found,) = json.loads(kubectl("get", "hpa", "-o", "json"))["items"]
    status = found["status"]
    metrics: list[dict[str, Any]] = status.get("currentMetrics") or [{}]
    percent = metrics[0].get("resource", {}).get("current", {}).get("averageUtilization")
    return percent, status.get("currentReplicas", 0), status.get("desiredReplicas", 0)


def live(log: Log, traffic: Traffic, low: float, high: float) -> bool:
    """Much traffic and little; whether an upgrade kept the number of replicas."""

    def told(name: str) -> None:
        log.say(f"  {name}: CPU %, replicas, wanted: {seen()}; lag {lag()}")

    hpa = {f"{LANE}.hpa": HPA}
    log.step(f"{low:g}/s")
    until(lambda: seen()[0] is not None, "the HPA sees the CPU", log)
    time.sleep(SETTLE_SECONDS)
    told("little")
    log.step(f"{high:g}/s")
    traffic.per_second = high
    until(lambda: len(pods()) > 1, "more than one pod", log)
    until(lambda: len(pods()) == MOST, f"{MOST} pods", log)
    kubectl("rollout", "status", SCORER, f"--timeout={WAIT}")
    told("all are ready")
    log.step("upgrade meanwhile")
    helm("upgrade", str(CHART), *options(**hpa, logLevel="debug"))
    kept = len(pods()) == MOST
    told(f"every pod replaced and ready, {len(pods())} pods")
    log.step(f"{low:g}/s again")
    traffic.per_second = low
    until(lambda: len(pods()) == 1, "one pod", log)
    told("little")
    log.step("three replicas by hand")
    helm("upgrade", str(CHART), *options(**{f"{LANE}.replicas": MOST}))
    log.say(f"  {len(pods())} pods")
    log.step("an HPA again, three at least")
    helm("upgrade", str(CHART), *options(**{f"{LANE}.hpa": HPA | {"minReplicas": MOST}}))
    log.say(f"  {len(pods())} pods")
    until(lambda: len(pods()) == MOST, f"{MOST} pods", log)
    kubectl("rollout", "status", SCORER, f"--timeout={WAIT}")
    return kept


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("victim", type=Path)
    arguments.add_argument("--hostpath", type=Path)
    arguments.add_argument("--low", type=float, default=5)
    arguments.add_argument("--high", type=float, default=200)
    given = arguments.parse_args()
    lines = (given.victim / "conversations.jsonl").read_bytes().splitlines()
    log = Log()
    with contextlib.ExitStack() as stack:
        stack.callback(forget, given.hostpath)
        prepare(given.victim, given.hostpath, log)
        log.say("install with an HPA")
        helm("install", str(CHART), *options(**{f"{LANE}.hpa": HPA}))
        with forwarded():
            with Traffic(lines, given.low) as traffic:
                kept = live(log, traffic, given.low, given.high)
            whole, sent, verdicts = drained(log, traffic)
        print(kubectl("get", "events", "--field-selector=reason=SuccessfulRescale"))
        helm("uninstall")
        table(log, sent, verdicts)
        return 0 if whole and kept else 1


if __name__ == "__main__":
    sys.exit(main())
