"""Steps of a repair as Jobs of a real cluster, with the rights that the chart gives the repairer:

    python -m tests.cluster.jobs [--server https://127.0.0.1:6444 PROXY...] [--keep]

Makes the namespace ares-jobs, applies the chart's service account, role and Job template (the
repairer's image must be on the node), and runs `ares_stream.processes.job` here with a token of
that account. The steps are small shell commands; training is tests/integration's. Each line of the
output is one thing that holds; exits 1 at the first that does not.

Where the cluster knows TrainJobs (the CRDs of Kubeflow's trainer) one is followed as well: by the
trainer and JobSet where these run there (the trainer's webhooks say so), else this script says in
their place what becomes of the TrainJob. Where it has Kueue, Jobs and TrainJobs go through a queue
that is full at first.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.charts import NEEDED, merged, named, rendered

NAMESPACE = "ares-jobs"
NAME = "guard-ares-stream-repairer"
VALUES: dict[str, Any] = merged(
    NEEDED,
    {
        "repairer": {
            "enabled": True,
            "existingClaim": "repairs",
            "jobs": {
                "gpu": False,
                "tolerations": [],
                "trainJob": {"enabled": True, "nodes": 2},
                "resources": {
                    "requests": {"cpu": 0.02, "memory": "64Mi", "nvidia.com/gpu": None},
                    "limits": {"memory": "512Mi", "nvidia.com/gpu": None},
                },
            },
        },
        "registry": {"pvc": {"existingClaim": "registry"}},
    },
)


def kubectl(*arguments: str, given: str | None = None) -> str:
    """Standard output of kubectl in the namespace."""
    return subprocess.run(
        ["kubectl", "-n", NAMESPACE, *arguments],
        input=given,
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.strip()


def knows_train_jobs() -> bool:
    """Whether the cluster has the CRDs of Kubeflow's trainer."""
    return "trainjobs.trainer.kubeflow.org" in kubectl("get", "crd", "-o", "name")


def has_kueue() -> bool:
    """Whether Kueue runs in the cluster."""
    return "kueue" in kubectl("get", "validatingwebhookconfigurations", "-o", "name")


def has_trainer() -> bool:
    """Whether Kubeflow's trainer runs in the cluster."""
    return "trainer.kubeflow.org" in kubectl("get", "validatingwebhookconfigurations", "-o", "name")


def without_claims(pod: dict[str, Any]) -> None:
    """Empty folders in the place of a pod's claims."""
    for volume in pod["volumes"]:
        if volume.pop("persistentVolumeClaim", None):
            volume["emptyDir"] = {}


def applied() -> tuple[dict[str, Any], dict[str, Any]]:
    """Account, role and binding of the chart, and the runtime of TrainJobs where they are known;
    the templates of Job (with its claims as empty folders) and TrainJob."""
    resources = rendered(VALUES, release="guard")
    runtime = ("TrainingRuntime",) if knows_train_jobs() else ()
    for item in resources:
        kind = item["kind"]
        if kind in ("Role", "RoleBinding", *runtime) or (
            kind == "ServiceAccount" and item["metadata"]["name"] in (NAME, "guard-ares-stream")
        ):
            item["metadata"]["namespace"] = NAMESPACE
            if kind == "TrainingRuntime":
                (node,) = item["spec"]["template"]["spec"]["replicatedJobs"]
                without_claims(node["template"]["spec"]["template"]["spec"])
            for subject in item.get("subjects", ()):
                subject["namespace"] = NAMESPACE
            kubectl("apply", "-f", "-", given=json.dumps(item))
    data = named(resources, "ConfigMap", NAME)["data"]
    template, train = (yaml.safe_load(data[name]) for name in ("job.yaml", "trainjob.yaml"))
    for item in (template, train):
        item["metadata"]["namespace"] = NAMESPACE
    without_claims(template["spec"]["template"]["spec"])
    return template, train


def kubeconfig(server: str | None) -> str:
    """One that holds the repairer's token alone."""
    whole = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    cluster = whole["clusters"][0]["cluster"]
    if server:
        cluster["server"] = server
    authority = cluster.pop("certificate-authority", None)
    if authority:
        content = Path(authority).read_bytes()
        cluster["certificate-authority-data"] = base64.b64encode(content).decode()
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "repairer",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": kubectl("create", "token", NAME)}}],
            "contexts": [
                {"name": "repairer", "context": {"cluster": "c", "user": "u"}},
            ],
        }
    )


class Steps:
    """Runs job.py as the repairer does."""

    def __init__(self, folder: Path, template: dict[str, Any], server: str | None) -> None:
        self._folder = folder
        self._environment = {**os.environ, "KUBECONFIG": str(folder / "kubeconfig")}
        (folder / "kubeconfig").write_text(kubeconfig(server))
        self.write(template)

    def write(self, template: dict[str, Any], name: str = "job.yaml") -> None:
        (self._folder / name).write_text(yaml.safe_dump(template))

    def start(self, script: str, run: str, template: str = "job.yaml") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "ares_stream.processes.job", str(self._folder / template)),
                *("--", "sh", "-c", script, f"/repairs/{run}"),
            ],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def gated(self, word: str, run: str, template: str) -> int:
        command = [sys.executable, "-m", "ares_stream.processes.job", str(self._folder / template)]
        command += ["--gate", word, "all", f"/repairs/{run}"]
        return subprocess.run(command, env=self._environment, check=False).returncode

    def ended(self, script: str, run: str, template: str = "job.yaml") -> tuple[int, str, str]:
        process = self.start(script, run, template)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err


def jobs() -> list[dict[str, Any]]:
    return list(json.loads(kubectl("get", "jobs", "-o", "json"))["items"])


def job_of(run: str) -> dict[str, Any]:
    (found,) = [item for item in jobs() if item["metadata"]["labels"]["ares-stream/plan"] == run]
    return found


def until_running(run: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError):
            if job_of(run)["status"].get("ready"):
                return
        time.sleep(0.5)
    raise AssertionError(f"{run} did not run")


def holds(text: str, fact: bool, shown: object = "") -> None:
    """Print what holds; end with what does not."""
    if not fact:
        raise SystemExit(f"DOES NOT HOLD: {text}: {shown}")
    print(f"holds: {text}", flush=True)


def completes(steps: Steps) -> None:
    code, out, err = steps.ended('echo \'{"stage": "x", "done": 1, "total": 1}\'; echo ä', "one")
    holds(
        "a step completes and its output is passed on", code == 0 and "ä" in out, (code, out, err)
    )
    job = job_of("one")
    holds("its phase is a label", job["metadata"]["labels"]["ares-stream/phase"] == "complete", job)
    events = kubectl("get", "events", "-o", "jsonpath={.items[*].reason}").split()
    holds("its Events say so", {"Created", "Complete"} <= set(events), events)
    first = job["metadata"]["uid"]
    code, *_ = steps.ended('echo \'{"stage": "x", "done": 1, "total": 1}\'; echo ä', "one")
    second = job_of("one")["metadata"]["uid"]
    holds("asked again, an ended step runs again", code == 0 and first != second)


def fails(steps: Steps) -> None:
    code, out, err = steps.ended("echo no; exit 3", "two")
    holds("a failed step exits with 1 and says which Job", code == 1 and "failed" in err, err)
    holds("its output is passed on", "no" in out, out)
    holds(
        "its phase is failed", job_of("two")["metadata"]["labels"]["ares-stream/phase"] == "failed"
    )


def is_found_again(steps: Steps) -> None:
    process = steps.start("sleep 12; echo late", "three")
    until_running("three")
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    uid = job_of("three")["metadata"]["uid"]
    code, out, err = steps.ended("sleep 12; echo late", "three")
    holds(
        "a restarted repairer waits for the Job that runs",
        code == 0 and "there already" in err and "late" in out,
        (code, out, err),
    )
    holds("and makes no second one", job_of("three")["metadata"]["uid"] == uid)


def is_deleted(steps: Steps) -> None:
    process = steps.start("sleep 60", "four")
    until_running("four")
    kubectl("delete", "job", job_of("four")["metadata"]["name"], "--wait=false")
    _, err = process.communicate(timeout=90)
    holds(
        "a Job that a person deletes ends the step",
        process.returncode == 2 and "deleted" in err,
        err,
    )


def is_bounded(steps: Steps, template: dict[str, Any]) -> None:
    short = json.loads(json.dumps(template))
    short["spec"]["activeDeadlineSeconds"] = 6
    short["spec"]["template"]["spec"]["containers"][0]["image"] = "ares-stream-missing:0"
    steps.write(short, "missing.yaml")
    code, _, err = steps.ended("true", "five", "missing.yaml")
    holds("an image that is not there is named", code == 1 and "ares-stream-missing" in err, err)
    tall = json.loads(json.dumps(template))
    tall["spec"]["activeDeadlineSeconds"] = 6
    container = tall["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["requests"]["cpu"] = "4000"
    steps.write(tall, "tall.yaml")
    code, _, err = steps.ended("true", "six", "tall.yaml")
    holds("a node that is not there is named", code == 1 and "Insufficient cpu" in err, err)


def is_refused(steps: Steps, template: dict[str, Any]) -> None:
    elsewhere = json.loads(json.dumps(template))
    elsewhere["metadata"]["namespace"] = "kube-system"
    steps.write(elsewhere, "elsewhere.yaml")
    code, _, err = steps.ended("true", "seven", "elsewhere.yaml")
    holds("another namespace is refused in words", code == 2 and "forbidden" in err, err)
    account = f"--as=system:serviceaccount:{NAMESPACE}:{NAME}"
    asked = subprocess.run(
        ["kubectl", "-n", NAMESPACE, "auth", "can-i", "get", "secrets", account],
        capture_output=True,
        text=True,
        check=False,
    )
    holds("the account may not read secrets", asked.stdout.strip() == "no", asked.stdout)


def trains(steps: Steps, template: dict[str, Any]) -> None:
    steps.write(template, "trainjob.yaml")
    process = steps.start("true", "nine", "trainjob.yaml")

    def found() -> dict[str, Any]:
        (item,) = json.loads(kubectl("get", "trainjobs", "-o", "json"))["items"]
        return dict(item)

    def labelled(phase: str) -> bool:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(ValueError, KeyError):
                if found()["metadata"]["labels"]["ares-stream/phase"] == phase:
                    return True
            time.sleep(0.5)
        return False

    def becomes(**status: object) -> None:
        patch = json.dumps({"status": status})
        name = found()["metadata"]["name"]
        kubectl("patch", "trainjob", name, "--subresource=status", "--type=merge", "-p", patch)

    holds("a TrainJob is made, as its CRD takes it", labelled("pending"))
    holds("it names the chart's runtime", found()["spec"]["runtimeRef"]["name"].endswith("-repair"))
    counts = {"ready": 2, "succeeded": 0, "failed": 0, "suspended": 0}
    becomes(jobsStatus=[{"name": "node", "active": 1, **counts}])
    holds("its phase follows its status", labelled("running"))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ended = {"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": "done"}
    becomes(conditions=[{**ended, "lastTransitionTime": now}])
    _, err = process.communicate(timeout=60)
    holds("the step ends with it", process.returncode == 0 and labelled("complete"), err)
    code = steps.gated("passed", "nine", "trainjob.yaml")
    notes = found()["metadata"].get("annotations", {})
    holds("the gate's verdict stands on it", code == 0 and notes["ares-stream/gate"] == "passed")


def trains_on_two_nodes(steps: Steps, template: dict[str, Any]) -> None:
    """With the operators themselves."""
    steps.write(template, "trainjob.yaml")
    script = "echo rank $PET_NODE_RANK of $PET_NNODES at $PET_MASTER_ADDR"
    code, out, err = steps.ended(script, "ten", "trainjob.yaml")
    holds("a TrainJob of two nodes completes by the trainer's own operator", code == 0, (out, err))
    holds("the first node's output is passed on, and no other's", "rank 0 of 2 at ares-" in out
          and "rank 1" not in out, out)  # fmt: skip
    (item,) = json.loads(kubectl("get", "trainjobs", "-o", "json"))["items"]
    holds("its phase is complete", item["metadata"]["labels"]["ares-stream/phase"] == "complete")
    holds("the gate's verdict is taken", steps.gated("passed", "ten", "trainjob.yaml") == 0)
    code, out, err = steps.ended("echo no; exit 3", "eleven", "trainjob.yaml")
    holds("one that fails exits with 1", (code, "failed" in err) == (1, True), (code, out, err))


QUEUE = """
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {{name: ares-jobs}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {{name: ares-jobs}}
spec:
  namespaceSelector: {{}}
  resourceGroups:
    - coveredResources: [cpu, memory]
      flavors:
        - name: ares-jobs
          resources:
            - {{name: cpu, nominalQuota: "{cpu}"}}
            - {{name: memory, nominalQuota: 8Gi}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {{name: repairs}}
spec: {{clusterQueue: ares-jobs}}
"""


def queues(steps: Steps, template: dict[str, Any], run: str, file: str) -> None:
    """Through Kueue: held while the queue is full, begun once there is room."""
    kubectl("apply", "-f", "-", given=QUEUE.format(cpu="0"))
    queued = json.loads(json.dumps(template))
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "repairs"
    queued["spec"]["suspend"] = True
    steps.write(queued, file)
    process = steps.start("echo begun", run, file)
    time.sleep(15)
    kind = template["kind"]
    holds(f"a {kind} waits while its queue is full", process.poll() is None)
    pods = kubectl("get", "pods", "-l", f"ares-stream/plan={run}", "-o", "name")
    holds("it has no pod meanwhile", not pods, pods)
    kubectl("apply", "-f", "-", given=QUEUE.format(cpu="1"))
    out, err = process.communicate(timeout=120)
    holds("it begins once there is room, and completes", (process.returncode, "begun" in out)
          == (0, True), (process.returncode, out, err))  # fmt: skip
    holds("it told what it waited for", "queue repairs has not admitted it" in err, err)


def survives(steps: Steps, proxy: list[str]) -> None:
    """The API server goes away in the middle, and comes back."""
    with _running(proxy):
        process = steps.start("sleep 20; echo after", "eight")
        until_running("eight")
        time.sleep(3)
    time.sleep(6)
    with _running(proxy):
        out, err = process.communicate(timeout=120)
    holds(
        "an API server that is away for a while is waited for",
        process.returncode == 0 and "after" in out,
        (process.returncode, out, err),
    )


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", help="The API server through a proxy that PROXY starts.")
    parser.add_argument("proxy", nargs="*")
    given = parser.parse_args()
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True)
    try:
        kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        template, train = applied()
        with tempfile.TemporaryDirectory() as folder:
            steps = Steps(Path(folder), template, None)
            completes(steps)
            fails(steps)
            is_found_again(steps)
            is_deleted(steps)
            is_bounded(steps, template)
            is_refused(steps, template)
            if has_kueue():
                queues(steps, template, "twelve", "queued.yaml")
            if has_trainer():
                trains_on_two_nodes(steps, train)
                if has_kueue():
                    queues(steps, train, "thirteen", "queued-train.yaml")
            elif knows_train_jobs():
                trains(steps, train)
            if given.server:
                survives(Steps(Path(folder), template, given.server), given.proxy)
    finally:
        if has_kueue():
            made = QUEUE.format(cpu="0")
            kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", given=made)
        subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--timeout=120s"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
