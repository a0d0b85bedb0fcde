"""An upgrade from another release's chart and images to this one's and back, under traffic, on a
real cluster:

    python -m tests.cluster.upgrade VICTIM OLD --tag TAG [--hostpath DIR]

OLD is the other chart (`git archive REVISION helm | tar -x`), TAG that of its images. Needs what
tests.cluster.trial needs. Installs OLD, upgrades to the chart of now with the values of then,
upgrades with what is new switched on, rolls back to OLD, and upgrades again. Exits 1 where a
record is lost or doubled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import yaml

from tests.cluster.count import answers, count, places
from tests.cluster.trial import (
    BOOTSTRAP,
    CHART,
    DRAIN_SECONDS,
    HERE,
    SETTLE_SECONDS,
    SOURCE,
    Log,
    Traffic,
    forget,
    forwarded,
    helm,
    lag,
    pods,
    prepare,
    secrets,
    table,
)


def of_then(old: Path, folder: Path) -> list[str]:
    """Those of the trial's values that the other chart knows, as options of helm."""
    known = yaml.safe_load((old / "values.yaml").read_text())
    values = yaml.safe_load((HERE / "values.yaml").read_text())
    file = folder / "then.json"
    file.write_text(json.dumps({name: values[name] for name in values if name in known}))
    return ["-f", str(file)]


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("victim", type=Path)
    arguments.add_argument("old", type=Path)
    arguments.add_argument("--tag", required=True)
    arguments.add_argument("--hostpath", type=Path)
    given = arguments.parse_args()
    lines = (given.victim / "conversations.jsonl").read_bytes().splitlines()
    log = Log()
    with contextlib.ExitStack() as stack:
        stack.callback(forget, given.hostpath)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(given.victim, given.hostpath, log)
        then, now = of_then(given.old, folder), secrets(folder)
        log.say("install the other release")
        helm("install", str(given.old), *then, "--set", f"image.tag={given.tag}")
        with forwarded():
            with Traffic(lines) as traffic:
                for name, chart, more in (
                    ("this chart, values of then", CHART, then),
                    ("what is new as well", CHART, now),
                    ("back", None, []),
                    ("this chart again", CHART, then),
                ):
                    time.sleep(SETTLE_SECONDS)
                    log.step(name)
                    if chart is None:
                        helm("rollback", "1")
                    else:
                        helm("upgrade", str(chart), *more)
                    log.say(f"  every pod replaced and ready; {len(pods())} pods, lag {lag()}")
                time.sleep(SETTLE_SECONDS)
            deadline = time.monotonic() + DRAIN_SECONDS
            while (left := lag()) and time.monotonic() < deadline:
                time.sleep(1)
            log.say(f"traffic ended: {traffic.acknowledged} acknowledged, lag {left}")
            sent = places(BOOTSTRAP, SOURCE)
            verdicts, dead = answers(BOOTSTRAP, "ares.", SOURCE)
        found = count(sent, verdicts, dead)
        log.say(f"counted: {json.dumps(asdict(found))}")
        helm("uninstall")
        table(log, sent, verdicts)
        matches = found.holds and len(sent) == traffic.acknowledged and not traffic.refused
        return 0 if matches and not left else 1


if __name__ == "__main__":
    sys.exit(main())
