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
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.trial import (
    CHART,
    SETTLE_SECONDS,
    Log,
    Traffic,
    drained,
    forget,
    forwarded,
    helm,
    lag,
    pods,
    prepare,
    secrets,
    table,
)


def known(values: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that a chart's schema has."""
    named = schema.get("properties")
    if named is None:
        return values
    return {
        name: known(value, named[name]) if isinstance(value, dict) else value
        for name, value in values.items()
        if name in named
    }


def of_then(old: Path, now: list[str], folder: Path) -> list[str]:
    """Those of the trial's values that the other chart knows, as options of helm."""
    schema = json.loads((old / "values.schema.json").read_text())
    words = []
    for place, file in enumerate(now[1::2]):
        then = folder / f"then-{place}.json"
        then.write_text(json.dumps(known(yaml.safe_load(Path(file).read_text()), schema)))
        words += ["-f", str(then)]
    return words


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
        now = secrets(folder)
        then = of_then(given.old, now, folder)
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
            whole, sent, verdicts = drained(log, traffic)
        helm("uninstall")
        table(log, sent, verdicts)
        return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
