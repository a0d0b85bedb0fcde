"""The chart's GPU values on a real cluster, whose node offers nvidia.com/gpu:

    python -m tests.cluster.gpu VICTIM --handler NAME [--device-class NAME] [--hostpath DIR]

Needs what tests.cluster.trial needs, the image of target scorer-gpu, and one node with a device
plugin. `--handler` is the runtime behind the RuntimeClass that this makes (`nvidia` where NVIDIA's
container toolkit is there). `--device-class` is the DeviceClass of a driver of dynamic resource
allocation; without one that step is left out. Where the devices are none of NVIDIA's, the container
must end with exit code 2 and say so; the rest then goes on with `ARES_SCORER__PROVIDER=cpu` in the
same pods. Each line is one thing that holds; exits 1 at the first that does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cluster.count import answers, count, places
from tests.cluster.scaling import send
from tests.cluster.trial import (
    BOOTSTRAP,
    CHART,
    HERE,
    NAMESPACE,
    RELEASE,
    SCORER,
    SOURCE,
    Log,
    call,
    forget,
    forwarded,
    helm,
    kubectl,
    lag,
    prepare,
)

GPU = "nvidia.com/gpu"
RUNTIME = "ares-trial-gpu"
TAINT = f"{GPU}=present:NoSchedule"
RECORDS = 200
SECONDS = 120.0
LABEL = "app.kubernetes.io/component=scorer-production"
RUNTIME_CLASS = """
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {{name: {name}}}
handler: {handler}
"""
ELSE = """
apiVersion: v1
kind: Pod
metadata: {name: else}
spec:
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: none
      image: none:none
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""
CLAIM = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {{name: one-gpu}}
spec:
  spec:
    devices:
      requests:
        - name: gpu
          exactly: {{deviceClassName: {device_class}}}
"""


def found(kind: str, *options: str) -> list[dict[str, Any]]:
    """Resources of the namespace."""
    items: list[dict[str, Any]] = json.loads(kubectl("get", kind, *options, "-o", "json"))["items"]
    return items


def scorers() -> list[dict[str, Any]]:
    """The lane's pods that are not ending."""
    return [
        item for item in found("pods", "-l", LABEL) if "deletionTimestamp" not in item["metadata"]
    ]


def told(kind: str) -> str:
    """What events of a kind of object say."""
    return "\n".join(
        item["message"] for item in found("events") if item["involvedObject"]["kind"] == kind
    )


def until(holds: Callable[[], object], what: str, log: Log) -> None:
    """Wait for it and say it; ends the script with the pods' events after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            said = f"{told('Pod')}\n{told('ReplicaSet')}"
            raise SystemExit(f"{what}: not within {SECONDS:.0f} s\n{said}")
        time.sleep(0.5)
    log.say(f"  {what}")


def ended() -> dict[str, Any]:
    """How the container of a pod ended last; empty while it runs for the first time."""
    for pod in scorers():
        for status in pod["status"].get("containerStatuses", ()):
            for state in (status["state"], status["lastState"]):
                if "terminated" in state:
                    return dict(state["terminated"])
    return {}


def last_words(pod: str) -> str:
    """The last line of the container that ended, which may have been started again."""
    try:
        return kubectl("logs", pod, "--tail=1", "--previous")
    except SystemExit:
        return kubectl("logs", pod, "--tail=1")


def ready() -> int:
    """Pods that score."""
    return sum(
        status["ready"]
        for pod in scorers()
        for status in pod["status"].get("containerStatuses", ())
    )


def offered() -> tuple[str, int]:
    """The node with GPUs, and how many it has."""
    nodes = json.loads(call("kubectl", "get", "nodes", "-o", "json"))["items"]
    have = {
        item["metadata"]["name"]: int(item["status"]["allocatable"].get(GPU, 0)) for item in nodes
    }
    name = max(have, key=lambda key: have[key])
    if not have[name]:
        raise SystemExit(f"no node offers {GPU}; a device plugin does")
    return name, have[name]


@contextlib.contextmanager
def tainted(node: str) -> Iterator[None]:
    """The node takes no pods but those that tolerate GPU nodes."""
    call("kubectl", "taint", "node", node, TAINT)
    try:
        yield
    finally:
        call("kubectl", "taint", "node", node, f"{TAINT}-")


def plugged(
    handler: str, folder: Path, values: list[str], node: str, gpus: int, log: Log
) -> list[str]:
    """From a cluster without the RuntimeClass to as many pods as GPUs; the values by then."""
    log.say("install with provider cuda")
    cuda = {"provider": "cuda", "replicas": 1}
    resources = {
        "requests": {"cpu": "50m", "memory": "256Mi", GPU: 1},
        "limits": {"memory": "2Gi", GPU: 1},
    }
    gpu = {"runtimeClassName": RUNTIME, "resources": resources}
    own = {"scorer": {"defaults": {"gpu": gpu}, "lanes": {"production": cuda}}}
    (folder / "gpu.json").write_text(json.dumps(own))
    values = [*values, "-f", str(folder / "gpu.json")]
    call("helm", "install", RELEASE, str(CHART), *values, "-n", NAMESPACE)
    until(lambda: f'"{RUNTIME}" not found' in told("ReplicaSet"), "no RuntimeClass: said so", log)
    runtime = RUNTIME_CLASS.format(name=RUNTIME, handler=handler)
    call("kubectl", "apply", "-f", "-", given=runtime)
    with tainted(node):
        kubectl("apply", "-f", "-", given=ELSE)
        until(lambda: "untolerated taint" in told("Pod"), "a pod of others finds no node", log)
        kubectl("delete", "pod", "else")
        # What the controller waits between two tries doubles; a new template is tried at once.
        kubectl("rollout", "restart", SCORER)
        until(lambda: any(pod["spec"].get("nodeName") for pod in scorers()), "the lane's does", log)
    (pod,) = (item for item in scorers() if item["spec"].get("nodeName"))
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    log.say(f"    runtimeClass {pod['spec']['runtimeClassName']}, {GPU}: {limits[GPU]}")
    until(lambda: ended() or ready(), "its container scores or has ended", log)
    if last := ended():
        said = last_words(pod["metadata"]["name"])
        log.say(f"    exit code {last['exitCode']}: {said}")
        if last["exitCode"] != 2:
            raise SystemExit("exit code 2 was due")
        values = [
            *values,
            "--set-json",
            'extraEnv=[{"name":"ARES_SCORER__PROVIDER","value":"cpu"}]',
        ]
    log.say(f"upgrade: as many pods as GPUs, {gpus}")
    values = [*values, "--set", f"scorer.lanes.production.replicas={gpus}"]
    helm("upgrade", str(CHART), *values)
    until(lambda: ready() == gpus, "all are ready", log)
    return values


def full(values: list[str], gpus: int, log: Log) -> None:
    """Every GPU is taken: an upgrade goes through all the same, and one pod more waits."""
    log.say("upgrade while every GPU is taken")
    helm("upgrade", str(CHART), *values, "--set", "logLevel=debug")
    until(lambda: ready() == gpus, "every pod replaced and ready", log)
    log.say("one pod more than GPUs")
    more = ["--set", f"scorer.lanes.production.replicas={gpus + 1}"]
    call("helm", "upgrade", RELEASE, str(CHART), *values, *more, "-n", NAMESPACE)
    until(lambda: f"Insufficient {GPU}" in told("Pod"), "it waits, and says for what", log)
    if ready() != gpus:
        raise SystemExit("the others were not left alone")
    helm("upgrade", str(CHART), *values)


def claimed(device_class: str, values: list[str], log: Log) -> None:
    """The lane by dynamic resource allocation."""
    log.say("upgrade to gpu.resourceClaimTemplate")
    kubectl("apply", "-f", "-", given=CLAIM.format(device_class=device_class))
    lane = "scorer.lanes.production"
    none = [f"{lane}.gpu.resources.{kind}.nvidia\\.com/gpu=null" for kind in ("requests", "limits")]
    settings = [*none, f"{lane}.gpu.resourceClaimTemplate=one-gpu", f"{lane}.replicas=1"]
    helm("upgrade", str(CHART), *values, *(word for item in settings for word in ("--set", item)))
    until(lambda: len(scorers()) == ready() == 1, "the pod is ready", log)
    (claim,) = found("resourceclaims")
    (device,) = claim["status"]["allocation"]["devices"]["results"]
    holders = [item["name"] for item in claim["status"]["reservedFor"]]
    log.say(f"    {claim['metadata']['name']}: {device['driver']}/{device['device']} for {holders}")
    if holders != [item["metadata"]["name"] for item in scorers()]:
        raise SystemExit("the claim is not the pod's")


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("victim", type=Path)
    arguments.add_argument("--handler", required=True)
    arguments.add_argument("--device-class")
    arguments.add_argument("--hostpath", type=Path)
    given = arguments.parse_args()
    lines = (given.victim / "conversations.jsonl").read_bytes().splitlines()
    log = Log()
    node, gpus = offered()
    with contextlib.ExitStack() as stack:
        stack.callback(forget, given.hostpath)
        stack.callback(call, "kubectl", "delete", "runtimeclass", RUNTIME, "--ignore-not-found")
        log.say(f"{node} offers {gpus} of {GPU}")
        prepare(given.victim, given.hostpath, log)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        off: dict[str, Any] = {name: {"enabled": False} for name in ("notary", "console")}
        off |= {"replayer": {"nightly": {"enabled": False}}, "monitor": {"enabled": False}}
        (folder / "values.json").write_text(json.dumps(off))
        values = ["-f", str(HERE / "values.yaml"), "-f", str(folder / "values.json")]
        values = plugged(given.handler, folder, values, node, gpus, log)
        full(values, gpus, log)
        if given.device_class:
            claimed(given.device_class, values, log)
        with forwarded():
            send(lines[:RECORDS])
            until(lambda: not lag(), "lag 0", log)
            sent = places(BOOTSTRAP, SOURCE)
            counted = count(sent, *answers(BOOTSTRAP, "ares.", SOURCE))
        log.say(f"counted: {json.dumps(asdict(counted))}")
        helm("uninstall")
        return 0 if counted.holds and len(sent) == RECORDS else 1


if __name__ == "__main__":
    sys.exit(main())
