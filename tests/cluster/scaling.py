"""A lane that KEDA scales to nothing and back, on a real cluster:

    python -m tests.cluster.scaling VICTIM [--hostpath DIR] [--many 30000]

Needs what tests.cluster.trial needs, and KEDA's operator in the cluster. Installs the chart with
`minReplicas: 0`, waits until no pod is left, sends conversations, waits until all are answered and
no pod is left, and once more. With `--many` so many are sent then, until there are several pods,
which KEDA's metrics server and the HPA ask for, and none again. Exits 1 where a record is lost or
doubled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from confluent_kafka import Producer

from tests.cluster.count import answers, count, places
from tests.cluster.trial import (
    BOOTSTRAP,
    CHART,
    HERE,
    SOURCE,
    Log,
    forget,
    forwarded,
    helm,
    kubectl,
    lag,
    pods,
    prepare,
)

SECONDS = 300.0
RECORDS = 300
KEDA = {
    "enabled": True,
    "minReplicas": 0,
    "maxReplicas": 4,
    "lagThreshold": 50,
    "pollingInterval": 5,
    "cooldownPeriod": 20,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}},
}


def until(holds: Callable[[], bool], what: str, log: Log) -> None:
    """Wait for it; tell when it came. Ends the script after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {SECONDS:.0f} s")
        time.sleep(0.5)
    log.say(f"  {what}")


def send(lines: list[bytes]) -> None:
    """All at once, acknowledged."""
    producer = Producer({"bootstrap.servers": BOOTSTRAP, "enable.idempotence": True})
    for number, line in enumerate(lines):
        producer.produce(SOURCE, key=b"line-%d" % number, value=line)
    if left := producer.flush(60):
        raise SystemExit(f"{left} records were not acknowledged")


def ready() -> bool:
    """Whether a pod of the lane scores."""
    found = json.loads(
        kubectl("get", "pods", "-l", "app.kubernetes.io/component=scorer-production", "-o", "json")
    )
    return any(
        status["ready"]
        for item in found["items"]
        for status in item["status"].get("containerStatuses", ())
    )


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("victim", type=Path)
    arguments.add_argument("--hostpath", type=Path)
    arguments.add_argument("--many", type=int, default=0)
    given = arguments.parse_args()
    lines = (given.victim / "conversations.jsonl").read_bytes().splitlines()[:RECORDS]
    log = Log()
    with contextlib.ExitStack() as stack:
        stack.callback(forget, given.hostpath)
        prepare(given.victim, given.hostpath, log)
        own = {"scorer.lanes.production.keda": KEDA, "notary.enabled": False}
        own |= {"console.enabled": False, "replayer.nightly.enabled": False}
        options = [f"{name}={json.dumps(value)}" for name, value in own.items()]
        more = [word for option in options for word in ("--set-json", option)]
        log.say("install with minReplicas 0")
        helm("install", str(CHART), "-f", str(HERE / "values.yaml"), *more)
        until(lambda: not pods(), "no pod", log)
        stack.enter_context(forwarded())
        for turn in ("first", "second"):
            log.say(f"{turn} {len(lines)} conversations")
            send(lines)
            until(lambda: bool(pods()), "KEDA asks for a pod", log)
            until(ready, "it is ready", log)
            until(lambda: lag() == 0, "lag 0", log)
            until(lambda: not pods(), "no pod again", log)
        if given.many:
            log.say(f"{given.many} conversations")
            send([lines[number % len(lines)] for number in range(given.many)])
            until(lambda: len(pods()) > 1, "several pods", log)
            until(lambda: len(pods()) == KEDA["maxReplicas"], f"{KEDA['maxReplicas']} pods", log)
            until(lambda: lag() == 0, "lag 0", log)
            until(lambda: not pods(), "no pod again", log)
        found = count(places(BOOTSTRAP, SOURCE), *answers(BOOTSTRAP, "ares.", SOURCE))
        log.say(f"counted: {json.dumps(asdict(found))}")
        scaled = kubectl("get", "scaledobject", "-o", "wide")
        print(scaled)
        helm("uninstall")
        return 0 if found.holds and found.records == 2 * len(lines) + given.many else 1


if __name__ == "__main__":
    sys.exit(main())
