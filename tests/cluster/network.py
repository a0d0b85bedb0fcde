"""Whether the chart's NetworkPolicies open what they must and cut all else, on a real cluster:

    python -m tests.cluster.network VICTIM [--hostpath DIR]

Needs what tests.cluster.trial needs, and a network that enforces NetworkPolicy. First without
policies: each connection of WAYS is made, so that one which fails later was cut. Then the
namespace forbids everything, the chart is upgraded with `networkPolicy.enabled`, whose hook runs
in that namespace, each way is tried again, and traffic is answered. Exits 1 where one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cluster.count import answers, count, places
from tests.cluster.scaling import send, until
from tests.cluster.trial import (
    BOOTSTRAP,
    CHART,
    NAMESPACE,
    RELEASE,
    SOURCE,
    WAIT,
    Log,
    call,
    forget,
    forwarded,
    helm,
    kubectl,
    lag,
    prepare,
    secrets,
)

ELSEWHERE = f"{NAMESPACE}-elsewhere"
RECORDS = 200
SECONDS = 60.0
OWN = f"{RELEASE}-ares-stream"
IMAGE = "ares-stream-scorer-cpu:0.2.0"
PORT, PAGES, METRICS, KAFKA = 8000, 9470, 9464, 9092
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4).close()
except OSError as error:
    sys.exit(f"cut: {type(error).__name__}")
"""
NAMES = ("scorer-production", "monitor", "notary", "console", "repairer")
INNER = [f"deployment/{OWN}-{name}" for name in NAMES]
REPAIRER = INNER[4]
WAYS: list[tuple[str, str, int, bool]] = [
    *(("pod/prometheus", target, METRICS, True) for target in INNER),
    *(("pod/stranger", target, METRICS, False) for target in INNER),
    *(("elsewhere", target, METRICS, False) for target in INNER),
    *((source, "deployment/kafka", KAFKA, True) for source in INNER),
    *((source, "pod/stranger", PORT, False) for source in INNER),
    *((source, "elsewhere", PORT, False) for source in INNER),
    *((source, "server", 443, source == REPAIRER) for source in INNER),
    ("step", "deployment/kafka", KAFKA, True),
    ("step", "pod/stranger", PORT, False),
    ("step", "elsewhere", PORT, False),
    ("step", "server", 443, False),
    ("step", INNER[0], METRICS, False),
    ("step", REPAIRER, METRICS, False),
    ("pod/prometheus", "step", PORT, False),
    ("pod/stranger", "step", PORT, False),
    ("elsewhere", "step", PORT, False),
    (INNER[0], "step", PORT, False),
    (REPAIRER, "step", PORT, False),
    ("pod/visitor", INNER[3], PAGES, True),
    ("pod/visitor", INNER[3], METRICS, False),
    ("pod/prometheus", INNER[3], PAGES, False),
    ("pod/stranger", INNER[3], PAGES, False),
    (INNER[0], INNER[1], METRICS, False),
]
"""From, to, port, and whether it is open under the policies."""
STEP = f"""
import http.server, pathlib, sys, threading, time
folder, kept = pathlib.Path(sys.argv[1]), pathlib.Path("/registry/trial")
kept.write_text("kept in the registry")
made = http.server.SimpleHTTPRequestHandler
server = http.server.ThreadingHTTPServer(("", {PORT}), made)
threading.Thread(target=server.serve_forever, daemon=True).start()
deadline = time.monotonic() + 900
while not (folder / "end").exists() and time.monotonic() < deadline:
    time.sleep(0.2)
print(kept.read_text())
"""
FOLDER = "/repairs/trial"
STEP_LABELS = "app.kubernetes.io/component=repair"
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    seccompProfile: {{type: RuntimeDefault}}
  containers:
    - name: python
      image: {image}
      command: [python, -m, http.server, "{port}", --directory, /models]
      resources: {{requests: {{cpu: 10m, memory: 32Mi}}, limits: {{memory: 128Mi}}}}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {{drop: [ALL]}}
"""
FORBID = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nothing}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: kafka}
spec:
  podSelector: {matchLabels: {app: kafka}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 9092}]}]
---
# Those who ask may ask everyone: what cuts them is the policy of whom they ask.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: askers}
spec:
  podSelector:
    matchExpressions: [{key: app, operator: In, values: [prometheus, visitor, stranger]}]
  policyTypes: [Ingress, Egress]
  ingress: [{}]
  egress: [{}]
"""
POLICY = {
    "enabled": True,
    "kafkaPeers": [{"podSelector": {"matchLabels": {"app": "kafka"}}}],
    "scrapers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    "visitors": [{"podSelector": {"matchLabels": {"app": "visitor"}}}],
}


def place(name: str) -> tuple[str, str]:
    """Namespace and name of what WAYS calls so."""
    if name == "step":
        return NAMESPACE, kubectl("get", "pods", "-l", STEP_LABELS, "-o", "name")
    return (ELSEWHERE, "pod/elsewhere") if name == "elsewhere" else (NAMESPACE, name)


def repairs(lines: list[bytes], folder: Path) -> dict[str, Any]:
    """Values of a repairer that makes Jobs, and the files that it asks for, as a ConfigMap."""
    row = json.loads(lines[0])
    row = {"messages": row["messages"], "response": row["response"]}
    pair = {"messages": row["messages"], "chosen": "yes", "rejected": "no"}
    for name, content in (("benign", row), ("over_refusal", row), ("validated", pair)):
        (folder / f"{name}.jsonl").write_text(json.dumps(content) + "\n")
    (folder / "reference.jsonl").write_bytes(lines[0] + b"\n")
    files = [f"--from-file={file}" for file in sorted(folder.glob("*.jsonl"))]
    kubectl("create", "configmap", "replay", *files)
    settings = {
        "incumbent": "/models/reward",
        "reference": "/replay/reference.jsonl",
        "replay": "/replay",
        "recipe": {"policy": "/models/policy", "reward": "/models/reward", "judge": "/models/harm"},
    }
    small = {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    jobs = {
        "gpu": False,
        "tolerations": [],
        # A null takes the default GPU away.
        "resources": {
            "requests": small["requests"] | {"nvidia.com/gpu": None},
            "limits": small["limits"] | {"nvidia.com/gpu": None},
        },
    }
    return {
        "repairer": {
            "enabled": True,
            "existingClaim": "repairs",
            "resources": small,
            "settings": settings,
            "jobs": jobs,
        },
        "registry": {"pvc": {"existingClaim": "registry"}},
        "extraVolumes": [{"name": "replay", "configMap": {"name": "replay"}}],
        "extraVolumeMounts": [{"name": "replay", "mountPath": "/replay", "readOnly": True}],
    }


def begun() -> subprocess.Popen[str]:
    """The repairer's program that makes a step's Job, or finds it, and follows it."""
    job = ["python", "-m", "ares_stream.processes.job", "/etc/ares/job.yaml"]
    command = ["kubectl", "-n", NAMESPACE, "exec", REPAIRER, "--", *job]
    return subprocess.Popen(
        [*command, "--", "python", "-c", STEP, FOLDER],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def step_runs() -> bool:
    """Whether the step's pod answers."""
    found = json.loads(kubectl("get", "pods", "-l", STEP_LABELS, "-o", "json"))["items"]
    return bool(found) and found[0]["status"]["phase"] == "Running"


def address(name: str) -> str:
    """IP of the pod, of the Deployment's one pod, or of the API server's Service."""
    if name == "server":
        return call("kubectl", "get", "service", "kubernetes", "-o=jsonpath={.spec.clusterIP}")
    namespace, target = place(name)
    kind, _, own = target.partition("/")
    if kind == "pod":
        return call("kubectl", "-n", namespace, "get", "pod", own, "-o=jsonpath={.status.podIP}")
    labels = json.loads(kubectl("get", target, "-o", "json"))["spec"]["selector"]["matchLabels"]
    chosen = ",".join(f"{key}={value}" for key, value in labels.items())
    return kubectl(
        "get", "pods", "-l", chosen, "--field-selector=status.phase=Running",
        "-o=jsonpath={.items[-1:].status.podIP}",
    )  # fmt: skip


def opens(source: str, host: str, port: int) -> bool:
    """Whether a connection from there is made within four seconds."""
    namespace, name = place(source)
    command = ["python", "-c", CONNECT, host, str(port)]
    try:
        call("kubectl", "-n", namespace, "exec", name, "--", *command)
    except SystemExit as refused:
        # Anything else is no answer of CONNECT.
        if "cut: " not in str(refused):
            raise
        return False
    return True


def tried(enforced: bool, log: Log) -> int:
    """Try each way; the number of those that are not as they must be."""
    hosts = {target: address(target) for target in {way[1] for way in WAYS}}
    wrong = 0
    for source, target, port, allowed in WAYS:
        found, wanted = opens(source, hosts[target], port), allowed or not enforced
        wrong += found != wanted
        if enforced or found != wanted:
            mark = "" if found == wanted else "   WRONG"
            log.say(f"    {source} -> {target}:{port}: {'open' if found else 'cut'}{mark}")
    log.say(f"  {len(WAYS)} ways, {wrong} not as they must be")
    return wrong


def main() -> int:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("victim", type=Path)
    arguments.add_argument("--hostpath", type=Path)
    given = arguments.parse_args()
    lines = (given.victim / "conversations.jsonl").read_bytes().splitlines()
    log = Log()
    with contextlib.ExitStack() as stack:
        stack.callback(forget, given.hostpath)
        stack.callback(call, "kubectl", "delete", "namespace", ELSEWHERE, "--ignore-not-found")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(given.victim, given.hostpath, log)
        call("kubectl", "create", "namespace", ELSEWHERE)
        for name in ("prometheus", "visitor", "stranger", "elsewhere"):
            namespace = ELSEWHERE if name == "elsewhere" else NAMESPACE
            pod = POD.format(name=name, namespace=namespace, image=IMAGE, port=PORT)
            call("kubectl", "apply", "-f", "-", given=pod)
            ready = f"--timeout={WAIT}"
            call("kubectl", "-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", ready)
        values = secrets(folder)
        (folder / "repairs.json").write_text(json.dumps(repairs(lines, folder)))
        values += ["-f", str(folder / "repairs.json")]
        log.say("install without policies")
        helm("install", str(CHART), *values)
        kubectl("exec", REPAIRER, "--", "mkdir", FOLDER)
        step = begun()
        stack.callback(step.kill)
        until(step_runs, "a step of a repair runs as a Job", log)
        wrong = tried(False, log)
        log.say("a namespace that forbids everything; upgrade with networkPolicy.enabled")
        kubectl("apply", "-f", "-", given=FORBID)
        helm("upgrade", str(CHART), *values, "--set-json", f"networkPolicy={json.dumps(POLICY)}",
             "--set", "logLevel=debug")  # fmt: skip
        log.say("  the hook made its topics, every pod is ready")
        wrong += tried(True, log)
        again = begun()
        stack.callback(again.kill)
        _, own = place("step")
        kubectl("exec", own, "--", "touch", f"{FOLDER}/end")
        told, _ = again.communicate(timeout=SECONDS)
        log.say(f"the repairer, of its step: {'; '.join(told.split(chr(10)))}")
        wrong += again.returncode != 0 or "kept in the registry" not in told
        with forwarded():
            send(lines[:RECORDS])
            deadline = time.monotonic() + SECONDS
            while (left := lag()) and time.monotonic() < deadline:
                time.sleep(1)
            sent = places(BOOTSTRAP, SOURCE)
            found = count(sent, *answers(BOOTSTRAP, "ares.", SOURCE))
        log.say(f"lag {left}; counted: {json.dumps(asdict(found))}")
        helm("uninstall")
        return 1 if wrong or left or not found.holds or len(sent) != RECORDS else 0


if __name__ == "__main__":
    sys.exit(main())
