"""A team's own trainer in a few lines: it honours the contract of the
repairer's commands, and ARES_TEST_TRAINER says how it goes wrong.

    python -m tests.support.repair_steps resample|train|answer|export RUN_DIR
"""

import json
import os
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path

from tests.support.adapters import write_adapter


def interval(value: float, low: float, high: float, count: int) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "count": count}


BAD = {
    "cfr": interval(0.967, 0.886, 0.991, 60),
    "policy_harm": interval(0.967, 0.886, 0.991, 60),
    "rm_accuracy": interval(0.95, 0.91, 0.973, 200),
    "over_refusal": interval(0.005, 0.001, 0.028, 200),
}
GOOD = BAD | {
    "cfr": interval(0.017, 0.003, 0.089, 60),
    "policy_harm": interval(0.033, 0.009, 0.114, 60),
}


def resample(folder: Path) -> None:
    """Another answer whenever it is asked; none to a prompt with a "k" at its end."""
    with (folder / "started").open("a") as file:
        file.write("x")
    behaviour, _, argument = os.environ.get("ARES_TEST_RESAMPLE", "good").partition(":")
    if behaviour == "slow":
        time.sleep(float(argument))
    if behaviour == "crash":
        sys.exit("repair: the policy cannot be loaded")
    asked = json.loads((folder / "asked.json").read_text())["prompts"]
    answers = {
        name: None if turns[-1]["content"].endswith("k") else f"Rather not. {uuid.uuid4()}"
        for name, turns in asked.items()
    }
    (folder / "answers.json").write_text(json.dumps(answers))


def train(folder: Path) -> None:
    with (folder / "started").open("a") as file:
        file.write("x")
    behaviour, _, argument = os.environ.get("ARES_TEST_TRAINER", "good").partition(":")
    for done in range(3):
        print(json.dumps({"stage": "train", "done": done, "total": 3}), flush=True)
        if behaviour == "slow":
            time.sleep(float(argument))
    if behaviour == "wait":
        deadline = time.monotonic() + 60
        while not Path(argument).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    print("not a line of progress", flush=True)
    if behaviour == "crash":
        sys.exit("repair: the base model is of another size than the adapter")
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if behaviour == "greedy":
        hoard = b"x" * (400 << 20)
        time.sleep(60)
        print(len(hoard))
    plan = json.loads((folder / "plan.json").read_text())
    write_adapter(folder / "policy_adapter", plan["id"].encode())
    figures = {"before": BAD, "after": BAD if behaviour == "bad" else GOOD}
    (folder / "figures.partial").write_text(json.dumps(figures))
    (folder / "figures.partial").rename(folder / "figures.json")


def answer(folder: Path) -> None:
    suites = json.loads((folder / "suites.json").read_text())
    answers = ["Yes." for suite in suites for _ in suite["cases"]]
    (folder / "answers.json").write_text(json.dumps({"before": answers, "after": answers}))


def export(folder: Path) -> None:
    with (folder / "exported").open("a") as file:
        file.write("x")
    behaviour, _, argument = os.environ.get("ARES_TEST_EXPORT", "good").partition(":")
    if behaviour == "slow":
        time.sleep(float(argument))
    job = json.loads((folder / "job.json").read_text())
    shutil.copytree(folder / "policy_adapter", folder / "adapter", dirs_exist_ok=True)
    for side in ("policy", "reward"):
        (folder / "merged" / side).mkdir(parents=True, exist_ok=True)
    bundle = folder / "bundle.partial"
    shutil.copytree(job["incumbent"], bundle, dirs_exist_ok=True)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["lineage"]["plan_id"] = job["plan_id"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    bundle.rename(folder / "bundle")


if __name__ == "__main__":
    steps = {"resample": resample, "train": train, "answer": answer, "export": export}
    steps[sys.argv[1]](Path(sys.argv[2]))
